"""`busline worker`: serve a bus, in this process or in several that a supervisor keeps alive."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

import typer

from busline.bus import Bus
from busline.cli.describe import plan_of, served, where
from busline.cli.exits import Exit, Failure, exit_for
from busline.cli.handlers import App
from busline.cli.leaving import Leaving, patience
from busline.cli.load import load_bus
from busline.cli.logs import Level, configure
from busline.cli.supervisor import Supervisor
from busline.cli.terminal import say, show_table


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    app: str
    concurrency: int
    processes: int
    drain_timeout: float
    log_level: Level

    def child_command(self, lifeline: int) -> list[str]:
        """The command that runs one of several processes, which ends when the pipe `lifeline` does."""
        return [
            *(sys.executable, "-m", "busline", "--log-level", self.log_level.value),
            *("worker", self.app, "--concurrency", str(self.concurrency)),
            *("--drain-timeout", str(self.drain_timeout), "--lifeline", str(lifeline)),
        ]


def worker(
    context: typer.Context,
    app: App,
    concurrency: Annotated[int, typer.Option(min=1, help="Messages at a time, per queue and process.")] = 10,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes; a dead one is replaced.")] = 1,
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds that running handlers have to finish when told to stop.")
    ] = 25.0,
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the handlers and subscribers of a bus until told to stop.

    SIGTERM or Ctrl-C: take no further message, finish what runs, leave; a second one gives back what runs and leaves
    at once. The broker is the one that the bus was made with; without a URL that is $BUSLINE_URL, else
    sqlite:///busline.db in the current folder.
    """
    level = context.obj or Level.INFO
    configure(level)
    options = Options(app, concurrency, processes, drain_timeout, level)
    raise typer.Exit(_supervise(options) if processes > 1 else _serve(options, lifeline))


def _serve(options: Options, lifeline: int | None) -> Exit:
    """Serve in this process; with a lifeline it is one of several, and its parent has announced what is served."""
    leaving = Leaving(options.drain_timeout)
    leaving.watch(lifeline)
    bus = load_bus(options.app)
    plan_of(options.app, bus)
    if lifeline is None:
        _announce(options, bus)
    try:
        return asyncio.run(_consume(options, bus, leaving))
    except asyncio.CancelledError:
        if not leaving.requests:
            raise
        return leaving.left(Exit.OK)  # told to stop before it had begun


async def _consume(options: Options, bus: Bus, leaving: Leaving) -> Exit:
    leaving.connecting()
    try:
        async with bus.worker(concurrency=options.concurrency, drain_timeout=options.drain_timeout) as entered:
            leaving.serving(entered)
            say(f"ready (process {os.getpid()})")
            await entered.wait()
    except Exception as error:
        leaving.left(exit_for(error))
        raise
    return leaving.left(Exit.OK if leaving.requests < 2 else Exit.ABORTED)


def _supervise(options: Options) -> Exit:
    bus = load_bus(options.app)
    plan_of(options.app, bus)
    if bus.url.startswith("memory:"):
        raise Failure(Exit.CONFIGURATION, "memory:// lives within one process: use another broker, or --processes 1")
    _announce(options, bus)
    supervisor = Supervisor(
        options.child_command, processes=options.processes, patience=patience(options.drain_timeout)
    )
    return asyncio.run(supervisor.run())


def _announce(options: Options, bus: Bus) -> None:
    say(f"busline {version('busline')} serves {options.app} at {where(bus)}")
    say(f"{options.concurrency} messages at a time per queue, in {_processes(options.processes)}")
    rows = [(row.queue, row.topic, row.kind, row.function, row.retry) for row in served(plan_of(options.app, bus))]
    show_table(("QUEUE", "TAKES", "KIND", "FUNCTION", "RETRY"), rows)


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"each of {number} processes"
