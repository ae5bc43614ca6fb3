"""What people and programs read: coloured and laid out on a terminal, plain and stable in a pipe or a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

import orjson
import typer

if TYPE_CHECKING:
    from rich.table import Table

RED, GREEN = "31", "32"


def say(text: str) -> None:
    """One line on standard output, at once."""
    typer.echo(text)


def complain(text: str) -> None:
    """One line `error: …` on standard error."""
    typer.echo(f"{paint('error:', RED, sys.stderr)} {' '.join(text.split())}", err=True)


def paint(text: str, colour: str, stream: TextIO) -> str:
    """`text` in colour where `stream` is a terminal and the user has not set $NO_COLOR."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def show_json(value: Any) -> None:
    """A value: indented and coloured on a terminal, one compact line elsewhere."""
    if not sys.stdout.isatty():
        say(orjson.dumps(value).decode())
        return
    from rich.console import Console  # 50 ms, spent only on terminals

    Console().print_json(orjson.dumps(value).decode())


def indented(value: Any) -> str:
    """A value's JSON over several lines."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns: fitted to a terminal's width, or aligned with spaces, one line a row."""
    if not sys.stdout.isatty():
        show_plain([header, *rows])
        return
    from rich.console import Console

    Console(highlight=False).print(make_table(header, rows))


def make_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Columns that fit themselves to a terminal's width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    return table


def show_plain(rows: Sequence[Sequence[str]]) -> None:
    """Aligned with spaces, one line a row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
