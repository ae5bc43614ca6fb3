"""`busline demo`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer


def demo(
    url: Annotated[
        str | None,
        typer.Argument(help="Where to play it, e.g. sqlite:///demo.db.", show_default="a fresh file"),
    ] = None,
    calls: Annotated[int, typer.Option(min=10, help="How many are made; fewer where a broker is slow.")] = 2_000,
) -> None:
    """Four workers, calls, one worker killed, events, an import, a dead letter, and the count of what was lost.

    The exit code is 1 if anything was.
    """
    from busline.demo.run import run
    from busline.demo.screen import Screen

    if not asyncio.run(run(url, Screen(), calls)):
        raise typer.Exit(1)
