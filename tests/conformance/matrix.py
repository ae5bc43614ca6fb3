"""The committed table `matrix.txt`: check × transport → "ran" or "refused(limit)".

`BUSLINE_UPDATE_MATRIX=1 pytest tests/conformance` writes the table anew.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from busline.testing.conformance import Check, name, run
from busline.testing.harness import Harness

FILE = Path(__file__).with_name("matrix.txt")

Matrix = defaultdict[str, dict[str, str]]


def read() -> Matrix:
    """By check, then by transport."""
    matrix: Matrix = defaultdict(dict)
    if FILE.exists():
        heading, *rows = [line.split() for line in FILE.read_text().splitlines()]
        for check, *outcomes in rows:
            matrix[check] = {name: cell for name, cell in zip(heading[1:], outcomes, strict=True) if cell != "-"}
    return matrix


def write(matrix: Matrix) -> None:
    """Aligned, sorted; `-` where nothing was run."""
    transports = sorted({transport for row in matrix.values() for transport in row})
    rows = [["check", *transports]]
    rows += [[check, *(matrix[check].get(each, "-") for each in transports)] for check in sorted(matrix)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    FILE.write_text("\n".join(text) + "\n")


EXPECTED = read()


async def agrees(check: Check, harness: str, h: Harness) -> None:
    """Run the check; its outcome is the one that the table says."""
    outcome = await run(check, h)
    if os.environ.get("BUSLINE_UPDATE_MATRIX"):
        EXPECTED[name(check)][harness] = outcome
        write(EXPECTED)
    assert EXPECTED[name(check)].get(harness) == outcome
