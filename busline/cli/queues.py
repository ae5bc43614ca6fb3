"""`busline queues` and `busline purge`: how full the queues are, and one of them emptied."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.cli.terminal import say, show_json, show_table
from busline.cli.verbs import Url
from busline.cli.watching import watch
from busline.control import PAUSED
from busline.errors import ConfigurationError
from busline.message import QueueSpec, QueueStats
from busline.registry import DEAD_SUFFIX
from busline.topics import RESERVED
from busline.transports.base import Inspectable, Transport

HEADER = ("QUEUE", "READY", "DELAYED", "LEASED", "CONSUMERS", "DEAD", "TAKES")
UNKNOWN = "–"


def queues(
    names: Annotated[list[str] | None, typer.Argument(metavar="QUEUE", help="Only these.")] = None,
    url: Url = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As a JSON list; null where the broker does not tell.")
    ] = False,
    every_second: Annotated[
        bool, typer.Option("--watch", help="Again every second, with ages and rates, until Ctrl-C.")
    ] = False,
) -> None:
    """Show what waits in each queue, what is worked on, who consumes it, and how many dead letters it has.

    A – stands for what the broker does not tell, and for a queue that has no queue of dead letters named after it.
    With --watch: about how old the message is that comes next, and how many came and were taken in a second, as the
    workers tell that can be inspected.
    """
    if every_second:
        _watch(url, names or (), as_json=as_json)
        return

    async def look(transport: Transport, broker: Inspectable) -> None:
        stats = await broker.stats()
        await _check_known(transport, stats, names or ())
        told = [_told(each, stats) for each in stats if _is_shown(each.name, names or ())]
        if as_json:
            show_json(told)
        elif told:
            show_table(HEADER, [_row(each) for each in told])
        else:
            say(f"no queues at {transport.where}")

    _inspect(url, look)


def _watch(url: str | None, names: Sequence[str], *, as_json: bool) -> None:
    try:
        asyncio.run(watch(url, _told, names, as_json=as_json))
    except KeyboardInterrupt:  # which is how one stops watching
        return


def purge(
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="For dead letters there is busline dlq purge, too.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    url: Url = None,
) -> None:
    """Delete the messages that wait in a queue, for good. Those that are being worked on stay.

    At RabbitMQ delayed messages stay, too: until their time has come they wait elsewhere.
    """

    async def delete(transport: Transport, broker: Inspectable) -> None:
        if not yes:
            await transport.attach(QueueSpec(queue), create=False)
            _confirm(_waiting(queue, await broker.stats()), queue)
        say(f"deleted {_count(await broker.purge(queue))} of {queue}")

    _inspect(url, delete)


def _inspect(url: str | None, act: Callable[[Transport, Inspectable], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Bus(url) as bus:
            transport = bus.transport
            if not isinstance(transport, Inspectable):
                raise ConfigurationError(f"{transport.where} does not let anybody look into its queues")
            await act(transport, transport)

    asyncio.run(run())


def _is_shown(name: str, names: Sequence[str]) -> bool:
    """Busline's own queues are shown only when they are named."""
    return name in names if names else not name.startswith(RESERVED)


async def _check_known(transport: Transport, stats: Sequence[QueueStats], names: Sequence[str]) -> None:
    """Raises QueueNotFound, and Failure for a queue that is there and that nobody of us has declared."""
    for name in sorted({*names} - {each.name for each in stats}):
        await transport.attach(QueueSpec(name), create=False)
        raise Failure(Exit.FAILED, f"queue {name!r} exists, but no worker has declared it, so it is not counted here")


def _told(stats: QueueStats, others: Sequence[QueueStats]) -> dict[str, Any]:
    """What a line tells, in its order."""
    dead = next((each.ready for each in others if each.name == stats.name + DEAD_SUFFIX), None)
    return {
        "queue": stats.name,
        "ready": stats.ready,
        "delayed": stats.delayed,
        "leased": stats.leased,
        "consumers": stats.consumers,
        "dead": dead,
        "topics": sorted(stats.topics),
        "patterns": sorted(stats.patterns),
        "ephemeral": stats.ephemeral,
        "paused": any(each.name == PAUSED + stats.name for each in others),
    }


def _row(told: dict[str, Any]) -> list[str]:
    numbers = (told[name] for name in ("ready", "delayed", "leased", "consumers", "dead"))
    taken = ", ".join([*told["topics"], *told["patterns"]])
    name = f"{told['queue']} (paused)" if told["paused"] else told["queue"]
    return [name, *(UNKNOWN if number is None else str(number) for number in numbers), taken]


def _waiting(queue: str, stats: Sequence[QueueStats]) -> str:
    """How many messages, in words."""
    waiting = (each.ready + (each.delayed or 0) for each in stats if each.name == queue)
    return next(map(_count, waiting), "whatever waits")


def _confirm(what: str, queue: str) -> None:
    if not sys.stdin.isatty():
        raise Failure(Exit.USAGE, f"this would delete {what} of {queue} for good: say --yes")
    typer.confirm(f"Delete {what} of {queue} for good?", abort=True)


def _count(number: int) -> str:
    return f"{number} message{'' if number == 1 else 's'}"
