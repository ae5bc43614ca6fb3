"""The command: both examinations, one table or one JSON list, one exit code."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from busline.cli.describe import where
from busline.cli.doctor import offline, online
from busline.cli.doctor.findings import ORDER, Finding, finding
from busline.cli.exits import Exit
from busline.cli.handlers import App
from busline.cli.load import load_bus
from busline.cli.terminal import GREEN, RED, paint, say, show_json
from busline.errors import BuslineError


def doctor(
    app: App,
    only_offline: Annotated[bool, typer.Option("--offline", help="Look at the declarations alone.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that each check may take.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
) -> None:
    """Look for everything that can be wrong: in the declarations, at the broker, with the workers.

    It sends a message to itself through a queue that it makes and deletes; nothing else is changed. Exit code 1 if
    there is an error, or with --strict a warning. What each code means, and what to do, is in docs/control.md.
    """
    bus = load_bus(app)
    plan, found = offline.examine(bus)
    if not only_offline:
        try:
            found += asyncio.run(online.examine(bus, plan, timeout))
        except BuslineError as error:  # what goes wrong when the connection is closed
            found += [finding("check_failed", "broker", str(error))]
    found.sort(key=lambda each: (ORDER.index(each.severity), each.code, each.about))
    if as_json:
        show_json([asdict(each) for each in found])
    else:
        _show(app, where(bus), found)
    bad = ORDER[: 2 if strict else 1]
    raise typer.Exit(Exit.FAILED if any(each.severity in bad for each in found) else Exit.OK)


def _show(app: str, broker: str, found: list[Finding]) -> None:
    for each in found:
        colour = GREEN if each.severity == "note" else RED
        say(f"{paint(each.severity, colour, sys.stdout)} {each.code}: {each.about}: {' '.join(each.text.split())}")
        say(f"    {each.do}")
    counts = Counter(each.severity for each in found)
    told = ", ".join(f"{counts[each]} {each}{'' if counts[each] == 1 else 's'}" for each in ORDER)
    say(f"{app} at {broker}: {told}")
