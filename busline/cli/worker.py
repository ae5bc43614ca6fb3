"""`busline worker`: serve a bus in processes that a small parent keeps alive, or in this process."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Annotated, Literal

import typer

from busline.bus import Bus
from busline.catalog import served
from busline.cli.board import Board
from busline.cli.describe import plan_of, where
from busline.cli.exits import Exit, Failure, exit_for
from busline.cli.handlers import App
from busline.cli.leaving import Leaving, patience
from busline.cli.lifeline import READY, RETIRING, Lifeline
from busline.cli.load import load_bus
from busline.cli.logs import Level, chosen, configure
from busline.cli.loops import Loop, factory_of
from busline.cli.probes import Probes
from busline.cli.recycling import MEGABYTE, Recycling
from busline.cli.reloading import python_files
from busline.cli.reporting import Direct, Reporter, metrics_of
from busline.cli.supervisor import Supervisor
from busline.cli.terminal import say, show_table
from busline.process import resident_memory
from busline.registry import Plan


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    app: str
    concurrency: int
    processes: int
    prefetch: int
    queues: tuple[str, ...]
    name: str | None
    control: bool | None
    drain_timeout: float
    block_timeout: float | None
    max_messages: int | None
    max_memory: int | None
    log_level: Level
    verbose: bool
    reports: bool
    """Each process tells how it is."""
    otel: bool
    loop: Loop

    def child_command(self, lifeline: int, first: bool) -> list[str]:
        """The command that runs one of the processes, which ends when the stream `lifeline` does."""
        given = {
            "--concurrency": self.concurrency,
            "--processes": self.processes,
            "--prefetch": self.prefetch,
            "--queues": ",".join(self.queues) or None,
            "--name": self.name,
            "--shutdown-timeout": self.drain_timeout,
            "--block-timeout": self.block_timeout,
            "--max-messages-per-process": self.max_messages,
            "--max-memory-per-process": self.max_memory,
            "--loop": self.loop.value,
            "--lifeline": lifeline,
        }
        words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
        flags = [
            flag
            for flag, wanted in (
                ("--announce", first),
                ("--control", self.control is True),
                ("--no-control", self.control is False),
                ("-v", self.verbose),
                ("--reports", self.reports),
                ("--otel", self.otel),
            )
            if wanted
        ]
        shared = [sys.executable, "-m", "busline", "--log-level", self.log_level.value, "--log-format", chosen().value]
        return [*shared, "worker", self.app, *words, *flags]


Concurrency = Annotated[
    int, typer.Option(min=1, envvar="BUSLINE_CONCURRENCY", help="Messages at a time, per queue and process.")
]
Processes = Annotated[
    int,
    typer.Option(
        min=0,
        envvar="BUSLINE_PROCESSES",
        help="Worker processes; a dead one is replaced. 0: serve in this one, for debuggers.",
    ),
]
Prefetch = Annotated[
    int,
    typer.Option(
        min=1,
        envvar="BUSLINE_PREFETCH",
        help="Messages that the broker may hand out per slot: above 1, some wait in a process that is busy.",
    ),
]
Queues = Annotated[
    list[str] | None,
    typer.Option(
        envvar="BUSLINE_QUEUES",
        metavar="QUEUE,…",
        help="Serve only these, so that others are served elsewhere; * stands for anything.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option(envvar="BUSLINE_NAME", show_default="service@host", help="What busline inspect calls this worker."),
]
Reachable = Annotated[
    bool | None,
    typer.Option(
        "--control/--no-control",
        envvar="BUSLINE_CONTROL",
        show_default="where it costs nothing: not on SQS",
        help="Can busline inspect and the like reach the processes? If they have to, they start only then.",
    ),
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--shutdown-timeout",
        "--drain-timeout",
        min=0.0,
        envvar="BUSLINE_SHUTDOWN_TIMEOUT",
        help="Seconds that running handlers have to finish when told to stop.",
    ),
]
BlockTimeout = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        envvar="BUSLINE_BLOCK_TIMEOUT",
        show_default="half a lease, at most 5",
        help="Seconds without a turn of the event loop after which a process is replaced. 0: never.",
    ),
]
MaxMessages = Annotated[
    int | None,
    typer.Option(
        min=1,
        envvar="BUSLINE_MAX_MESSAGES_PER_PROCESS",
        help="A process that has taken so many finishes them and is replaced.",
    ),
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        min=1,
        envvar="BUSLINE_MAX_MEMORY_PER_PROCESS",
        help="A process that uses more MB finishes its work and is replaced.",
    ),
]
Reload = Annotated[
    bool,
    typer.Option(
        "--reload",
        envvar="BUSLINE_RELOAD",
        help="Replace the processes when Python files below the current folder change; for development.",
    ),
]
HealthPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        envvar="BUSLINE_HEALTH_PORT",
        help="Serve /livez, /readyz and /metrics on this port. 0: any free one.",
    ),
]
HealthHost = Annotated[
    str, typer.Option(envvar="BUSLINE_HEALTH_HOST", help="The address for it, for example 0.0.0.0 in a container.")
]
Otel = Annotated[
    bool,
    typer.Option(
        "--otel",
        envvar="BUSLINE_OTEL",
        help="Trace with OpenTelemetry, set up by the app or else by the OTEL_* variables.",
    ),
]
EventLoop = Annotated[
    Loop,
    typer.Option(
        "--loop", envvar="BUSLINE_LOOP", help="Whose event loop; auto: uvloop's where it is installed, else asyncio's."
    ),
]


def worker(
    context: typer.Context,
    app: App,
    concurrency: Concurrency = 10,
    processes: Processes = 1,
    prefetch: Prefetch = 1,
    queues: Queues = None,
    name: Name = None,
    control: Reachable = None,
    drain_timeout: DrainTimeout = 25.0,
    block_timeout: BlockTimeout = None,
    max_messages_per_process: MaxMessages = None,
    max_memory_per_process: MaxMemory = None,
    health_port: HealthPort = None,
    health_host: HealthHost = "127.0.0.1",
    otel: Otel = False,
    loop: EventLoop = Loop.AUTO,
    reload: Reload = False,
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
    leader: Annotated[int | None, typer.Option(hidden=True)] = None,
    announce: Annotated[bool, typer.Option(hidden=True)] = False,
    reports: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve the handlers and subscribers of a bus until told to stop.

    SIGTERM or Ctrl-C: take no further message, finish what runs, leave; a second one gives back what runs and leaves
    at once. A small parent process starts the worker processes and replaces those that die, block or are stuck; with
    --processes 0 there is none, and a debugger can be attached. Rate limits hold for all processes together. The
    broker is the one that the bus was made with; without a URL that is $BUSLINE_URL, else sqlite:///busline.db in the
    current folder.
    """
    level = context.obj or Level.INFO
    configure(level)
    verbose = bool(context.parent and context.parent.params.get("verbose"))
    recycling = (max_messages_per_process, max_memory_per_process)
    reports = reports or health_port is not None
    where_and_who = (app, concurrency, processes, prefetch, _names(queues), name, control)
    options = Options(*where_and_who, drain_timeout, block_timeout, *recycling, level, verbose, reports, otel, loop)
    factory_of(loop)  # or say what is missing
    if lifeline is not None:  # the health port is its parent's
        raise typer.Exit(_serve(options, Lifeline(lifeline), lifeline, announce=announce))
    board = Board(processes)
    probes = None if health_port is None else Probes(board, health_host, health_port, supervised=processes > 0)
    raise typer.Exit(_lead(options, board, probes, leader, reload=reload))


def _lead(options: Options, board: Board, probes: Probes | None, leader: int | None, *, reload: bool) -> int:
    """Be the parent of the processes, or, without any, serve in this one."""
    if reload and options.processes == 0:
        raise Failure(Exit.USAGE, "--reload replaces processes: use --processes 1 or more")
    if options.processes == 0:
        if probes is not None:
            probes.serve_in_thread()
        return _serve(options, Direct(board), None, announce=True)
    supervisor = Supervisor(
        options.child_command,
        processes=options.processes,
        patience=patience(options.drain_timeout),
        board=board,
        changes=python_files() if reload else None,
        leader=leader,
    )
    return asyncio.run(_supervise(supervisor, probes))


async def _supervise(supervisor: Supervisor, probes: Probes | None) -> int:
    if probes is not None:
        await probes.start()
    try:
        return await supervisor.run()
    finally:
        if probes is not None:
            probes.close()


def _serve(options: Options, news: Lifeline | Direct, lifeline: int | None, *, announce: bool) -> Exit:
    """Serve in this process; with a lifeline it has a parent."""
    leaving = Leaving(options.drain_timeout, options.block_timeout)
    leaving.watch(lifeline)
    bus = load_bus(options.app)
    if options.otel:
        _trace(bus)
    plan = plan_of(options.app, bus)
    if options.queues:
        plan = plan.only(options.queues)
    _check(options, bus)
    if announce:
        _announce(options, bus, plan)
    try:
        with asyncio.Runner(loop_factory=factory_of(options.loop)) as runner:
            return runner.run(_consume(options, bus, leaving, news))
    except asyncio.CancelledError:
        if not leaving.requests:
            raise
        return leaving.left(Exit.OK)  # told to stop before it had begun


def _trace(bus: Bus) -> None:
    from busline.integrations.otel import OpenTelemetryTraces, set_up_provider

    set_up_provider()
    if not any(isinstance(observer, OpenTelemetryTraces) for observer in bus.observers):
        bus.instrument(OpenTelemetryTraces())


def _check(options: Options, bus: Bus) -> None:
    if options.processes > 1 and bus.url.startswith("memory:"):
        raise Failure(Exit.CONFIGURATION, "memory:// lives within one process: use another broker, or --processes 1")
    used = resident_memory() / MEGABYTE
    if options.max_memory is not None and used >= options.max_memory:
        raise Failure(
            Exit.CONFIGURATION,
            f"--max-memory-per-process {options.max_memory} is less than the {used:.0f} MB that {options.app} takes "
            "before its first message",
        )


async def _consume(options: Options, bus: Bus, leaving: Leaving, news: Lifeline | Direct) -> Exit:
    leaving.connecting()
    recycling = Recycling(options.max_messages, options.max_memory, partial(_retire, leaving, news))
    reporter = Reporter(metrics_of(bus), news) if options.reports else None
    try:
        async with (
            _beside(recycling.run(), "recycling"),
            bus.worker(
                concurrency=options.concurrency,
                prefetch=options.prefetch,
                queues=options.queues or None,
                name=options.name,
                control=_reach(options, bus),
                drain_timeout=options.drain_timeout,
                rate_share=1 / max(1, options.processes),
                on_stuck=leaving.stuck,
                on_message=recycling.on_message,
            ) as entered,
            _beside(reporter.run(entered) if reporter is not None else _nothing(), "reports"),
        ):
            leaving.serving(entered)
            _settle_in()
            news.tell(READY)
            say(f"ready (process {os.getpid()})")
            await entered.wait()
    except Exception as error:
        leaving.left(exit_for(error))
        raise
    return leaving.left(leaving.code)


def _settle_in() -> None:
    """What the app has imported and made lives as long as the process does: no garbage collection between two messages
    has to look at all of it again."""
    gc.collect()
    gc.freeze()


def _reach(options: Options, bus: Bus) -> bool | Literal["offered", "heeding"]:
    """On SQS a process that can be asked takes a queue, which is polled, and one of the 200 subscriptions with a filter
    that SNS allows its topic, which subscribers need; so there somebody has to want it."""
    if options.control is not None:
        return options.control
    return "heeding" if bus.url.startswith("sqs:") else "offered"


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None], what: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=f"busline {what}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _nothing() -> None:
    """Beside a worker whose health nobody asks for."""


def _retire(leaving: Leaving, news: Lifeline | Direct, why: str) -> None:
    news.tell(READY)  # the first message may be taken before this process has said that it is ready
    news.tell(RETIRING)
    leaving.retire(why)


def _names(given: Sequence[str] | None) -> tuple[str, ...]:
    """Queues, said by repeating the option or with commas."""
    return tuple(name.strip() for each in given or () for name in each.split(",") if name.strip())


def _announce(options: Options, bus: Bus, plan: Plan) -> None:
    say(f"busline {version('busline')} serves {options.app} at {where(bus)}")
    say(f"{options.concurrency} messages at a time per queue, in {_processes(options.processes)}")
    rows = [(row.queue, row.topic, row.kind, row.function, row.retry) for row in served(plan)]
    show_table(("QUEUE", "TAKES", "KIND", "FUNCTION", "RETRY"), rows)


def _processes(number: int) -> str:
    return f"each of {number} processes" if number > 1 else "one process" if number else "this process"
