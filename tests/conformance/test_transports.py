"""Every driver check over every transport, and the table of what each of them refuses.

`BUSLINE_UPDATE_MATRIX=1 pytest tests/conformance` writes the table anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from busline.testing.conformance import Check, all_checks, name, run
from busline.testing.harness import Harness
from busline.testing.harnesses import MemoryHarness, SqliteHarness, VirtualMemoryHarness

from . import matrix

HARNESSES: dict[str, Callable[[Path], Harness]] = {
    "memory": lambda _: MemoryHarness(),
    "memory-virtual": lambda _: VirtualMemoryHarness(),
}
if find_spec("busline.transports.sqlite"):
    HARNESSES["sqlite"] = SqliteHarness

EXPECTED = matrix.read()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("check", all_checks(), ids=name)
async def test_transport(check: Check, harness: str, tmp_path: Path) -> None:
    outcome = await run(check, HARNESSES[harness](tmp_path))
    if os.environ.get("BUSLINE_UPDATE_MATRIX"):
        EXPECTED[name(check)][harness] = outcome
        matrix.write(EXPECTED)
    assert EXPECTED[name(check)].get(harness) == outcome


def test_the_matrix_has_every_check_and_no_other() -> None:
    assert sorted(EXPECTED) == sorted(map(name, all_checks()))
