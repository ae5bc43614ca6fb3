"""`busline queues --watch`: the queues again every second, with what flows through them and how old it gets."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from busline.bus import Bus
from busline.cli.terminal import make_table, show_json, show_plain
from busline.control import Control
from busline.errors import CodecError, ConfigurationError, QueueNotFound, StoreUnavailable, TransportError
from busline.message import QueueStats
from busline.transports.base import Inspectable
from busline.wire import decode_envelope

EVERY = 1.0
"""Seconds between two looks."""
ANSWERS_WITHIN = 0.4
"""Seconds that workers have to tell how many messages they have taken."""
HEADER = ("QUEUE", "READY", "DELAYED", "LEASED", "CONSUMERS", "DEAD", "OLDEST", "IN/S", "OUT/S")
UNKNOWN = "–"

Place = tuple[str, str]
"""A process, and a queue of it."""


class Tell(Protocol):
    """What a look is told as, for one queue among all."""

    def __call__(self, stats: QueueStats, others: Sequence[QueueStats], /) -> dict[str, Any]: ...


@dataclass(slots=True)
class Sample:
    """What one look has seen."""

    at: float
    stats: Sequence[QueueStats]
    taken: Mapping[Place, int]
    """Messages since the process began."""
    oldest: Mapping[str, float] = field(default_factory=dict)
    """Age of the message that is delivered next, seconds, by queue; where that can be known without touching it."""
    waited: Mapping[Place, float] = field(default_factory=dict)
    """Seconds that the message taken last had waited."""


def rates(queue: str, before: Sample | None, now: Sample) -> tuple[float, float] | None:
    """Messages per second that came into the queue, and that workers took from it; None while nobody tells.

    What came is what more waits now, and what was taken meanwhile. A message that is tried again comes again.
    """
    took = _took(queue, before, now)
    if before is None or took is None or now.at <= before.at:
        return None
    came = _waiting(queue, now) - _waiting(queue, before) + took
    return max(0.0, came / (now.at - before.at)), took / (now.at - before.at)


def _took(queue: str, before: Sample | None, now: Sample) -> int | None:
    counts = [
        count - (before.taken.get(key, 0) if before is not None else 0)
        for key, count in now.taken.items()
        if key[1] == queue
    ]
    return sum(counts) if counts else None


def _waiting(queue: str, sample: Sample) -> int:
    return next((each.ready + (each.delayed or 0) for each in sample.stats if each.name == queue), 0)


def ages(known: Mapping[str, float], before: Sample | None, now: Sample) -> dict[str, float]:
    """About how old the message is that is delivered next, seconds, by queue; `known` are those of the look before.

    Where it cannot be looked at: as old as what was taken since, or else as what waited then; and if nothing did, it
    has come since. Queues of which nothing of all that is known are left out.
    """
    found = dict(now.oldest)
    for each in now.stats:
        age = found.get(each.name)
        if age is None and each.ready and before is not None:
            age = _age(each.name, known.get(each.name), before, now)
        if age is not None:
            found[each.name] = age
    return found


def _age(queue: str, known: float | None, before: Sample, now: Sample) -> float | None:
    fresh = [
        waited
        for place, waited in now.waited.items()
        if place[1] == queue and now.taken[place] > before.taken.get(place, 0)
    ]
    if fresh:
        return max(0.0, *fresh)
    passed = now.at - before.at
    if not any(each.ready for each in before.stats if each.name == queue):
        return passed
    return None if known is None else known + passed


async def samples(bus: Bus) -> AsyncIterator[Sample | str]:
    """What there is to see, every second; or in words why there is nothing to see now."""
    transport = bus.transport
    if not isinstance(transport, Inspectable):
        raise ConfigurationError(f"{transport.where} does not let anybody look into its queues")
    async with AsyncExitStack() as stack:
        try:
            control: Control | None = await stack.enter_async_context(bus.control())
        except ConfigurationError:  # no way to ask the workers; then there are no rates
            control = None
        while True:
            began = time.monotonic()
            try:
                yield await _look(bus, transport, control)
            except (TransportError, StoreUnavailable) as error:
                yield f"{transport.where}: {error}"
            await asyncio.sleep(max(0.05, began + EVERY - time.monotonic()))


async def _look(bus: Bus, broker: Inspectable, control: Control | None) -> Sample:
    stats = await broker.stats()
    answers = await control.stats(timeout=ANSWERS_WITHIN) if control is not None else ()
    told = {(answer.instance, queue): each for answer in answers for queue, each in answer.data["queues"].items()}
    return Sample(
        time.monotonic(),
        stats,
        {place: int(each["taken"]) for place, each in told.items()},
        await _looked_at(bus, broker, stats),
        {place: float(each["waited"]) for place, each in told.items() if each.get("waited") is not None},
    )


async def _looked_at(bus: Bus, broker: Inspectable, stats: Sequence[QueueStats]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    if not bus.transport.shared_clock:  # brokers elsewhere hand a message out to show it, which some of them count
        return found
    now = time.time()
    for each in stats:
        if each.ready:
            try:
                messages = await broker.peek(each.name, 1)
                envelopes = [decode_envelope(message, now) for message in messages]
            except (QueueNotFound, CodecError):  # gone meanwhile, or from elsewhere: its age is not known
                continue
            for envelope in envelopes:
                found[each.name] = max(0.0, now - (envelope.due_at or envelope.sent_at))
    return found


async def watch(url: str | None, tell: Tell, shown: Sequence[str], *, as_json: bool) -> None:
    """Until cancelled. `tell` says what is told of a queue; `shown` are the queues to show, by default all of ours."""
    async with Bus(url) as bus:
        before: Sample | None = None
        known: dict[str, float] = {}
        with _screen(as_json=as_json) as show:
            async for sample in samples(bus):
                if isinstance(sample, str):
                    show([], sample)
                    continue
                known = ages(known, before, sample)
                mine = [each for each in sample.stats if _is_shown(each.name, shown)]
                show([_told(each, before, sample, known, tell) for each in mine], "")
                before = sample


def _is_shown(name: str, names: Sequence[str]) -> bool:
    return name in names if names else not name.startswith("busline.")


def _told(
    stats: QueueStats, before: Sample | None, now: Sample, known: Mapping[str, float], tell: Tell
) -> dict[str, Any]:
    flow = rates(stats.name, before, now)
    come, gone = (None, None) if flow is None else (round(flow[0], 1), round(flow[1], 1))
    age = known.get(stats.name)
    return {
        **tell(stats, now.stats),
        "oldest_seconds": None if age is None else round(age, 1),
        "in_per_second": come,
        "out_per_second": gone,
    }


class Show(Protocol):
    """Shows the queues of one look, or why there are none."""

    def __call__(self, told: Sequence[dict[str, Any]], trouble: str, /) -> None: ...


@contextmanager
def _screen(*, as_json: bool) -> Iterator[Show]:
    """A table that is redrawn on a terminal; elsewhere one after the other, or one line of JSON each."""
    if as_json:
        yield lambda told, trouble: show_json(trouble or list(told))
    elif not sys.stdout.isatty():
        yield lambda told, trouble: show_plain([(trouble,)] if trouble else [HEADER, *map(_row, told)])
    else:
        from rich.live import Live  # only where somebody watches

        with Live(auto_refresh=False, transient=False) as live:

            def draw(told: Sequence[dict[str, Any]], trouble: str) -> None:
                live.update(trouble or make_table(HEADER, list(map(_row, told))), refresh=True)

            yield draw


def _row(told: Mapping[str, Any]) -> list[str]:
    names = ("ready", "delayed", "leased", "consumers", "dead", "oldest_seconds", "in_per_second", "out_per_second")
    name = f"{told['queue']} (paused)" if told["paused"] else told["queue"]
    return [name, *(UNKNOWN if told[each] is None else str(told[each]) for each in names)]
