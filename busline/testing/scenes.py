"""What the bus checks are made of: payloads, callers in processes of their own, and looking at queues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel

from busline.bus import Bus
from busline.message import Limits, Message, QueueSpec
from busline.retry import Retry
from busline.testing.harness import Harness
from busline.transports.base import Inspectable
from busline.wire import Envelope, decode_envelope

PATIENCE = 30.0
"""Seconds after which a check that waits for something has failed."""
SOON = Retry(max_retries=2, first=0.01, factor=1.0, jitter=False)


class Question(BaseModel):
    """What checks ask."""

    number: int
    text: str = "ünïcode ✓"


class Answer(BaseModel):
    """What they are answered."""

    number: int


async def eventually(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Wait until `condition()`, or what it awaits, is true; returns it."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < end, f"still not true after {patience} s: {condition}"
        await asyncio.sleep(0.005)


async def raised(kind: type[Exception] | tuple[type[Exception], ...], awaitable: Awaitable[Any]) -> Any:
    """The error of this kind that awaiting raises."""
    try:
        value = await awaitable
    except kind as error:
        return error
    raise AssertionError(f"{kind} was not raised, but {value!r} returned")


@asynccontextmanager
async def caller(h: Harness, **options: Any) -> AsyncIterator[Bus]:
    """A bus in a process of its own that only calls."""
    async with Bus(h.transport(), **options) as bus:
        yield bus


async def dead_letters(bus: Bus, queue: str, count: int = 1) -> list[tuple[Message, Envelope]]:
    """The first `count` dead letters of `queue`, once they are there."""
    transport = bus.transport
    assert isinstance(transport, Inspectable)

    async def enough() -> list[Message]:
        found = list(await transport.peek(f"{queue}.dead", count + 1))
        return found if len(found) >= count else []

    letters = await eventually(enough)
    assert len(letters) == count
    return [(message, decode_envelope(message, 0.0)) for message in letters]


async def limits_of(bus: Bus, queue: str) -> Limits:
    """What a queue that is there can do."""
    return await bus.transport.attach(QueueSpec(queue, queue), create=False)


async def waiting(bus: Bus, queue: str) -> tuple[int, int]:
    """How many messages of `queue` are not leased, and how many are, as far as the broker tells."""
    assert isinstance(bus.transport, Inspectable)
    for stats in await bus.transport.stats():
        if stats.name == queue:
            return stats.ready + (stats.delayed or 0), stats.leased or 0
    return 0, 0
