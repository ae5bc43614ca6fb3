"""`busline handlers`: what a bus would serve, without connecting to anything."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from busline.catalog import served
from busline.cli.describe import plan_of
from busline.cli.load import load_bus
from busline.cli.terminal import show_json, show_table

App = Annotated[str, typer.Argument(metavar="MODULE:BUS", help="Where the bus is, for example orders.app:bus.")]


def handlers(
    app: App,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
) -> None:
    """List the topics that a bus serves, their queues and functions. Works offline."""
    rows = list(served(plan_of(app, load_bus(app))))
    if as_json:
        show_json([asdict(row) for row in rows])
        return
    header = ("TOPIC", "KIND", "QUEUE", "FUNCTION", "PLACE")
    show_table(header, [(row.topic, row.kind, row.queue, row.function, row.place) for row in rows])
