"""What the checks are made of: clients that get closed, a queue of one's own, and waiting that ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from busline.errors import BuslineError
from busline.message import Delivery, Limits, Message, QueueSpec, QueueStats, ToQueue
from busline.testing.harness import Harness
from busline.transports.base import Consumer, Inspectable, Transport

PROMPT = 20.0
"""Seconds in which what needs no time to pass has happened, on a busy machine too."""
GRACE = 1.0
"""Seconds by which a busy machine may be late with what was due."""
QUIET = 0.1
"""Seconds in which what must not happen would have happened."""
SERVICE = "checks"

T = TypeVar("T")
E = TypeVar("E", bound=BuslineError)


@dataclass(slots=True)
class Line:
    """One new queue, and a client that sends to it and consumes it."""

    transport: Transport
    spec: QueueSpec
    limits: Limits
    consumer: Consumer

    @property
    def queue(self) -> str:
        return self.spec.name

    async def send(self, *bodies: bytes, **fields: Any) -> None:
        """One message for each body, all with these other fields, in one batch."""
        await self.transport.send(ToQueue(self.queue), *(Message("a.topic", body, **fields) for body in bodies))

    async def take(self, number: int = 1) -> list[Delivery]:
        """As many messages, which are there already."""
        return await take(self.consumer, number)

    async def hold(self, number: int = 1) -> list[Delivery]:
        """Take them and keep them for longer than any check lasts."""
        held = await self.take(number)
        if self.limits.lease is not None:
            assert list(await self.consumer.extend(*held, lease=60.0)) == []
        return held


@asynccontextmanager
async def client(h: Harness) -> AsyncIterator[Transport]:
    """An open client, closed at the end."""
    transport = h.transport()
    await transport.open()
    try:
        yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def line(h: Harness, *, slots: int = 8, prefetch: int = 1, **spec: Any) -> AsyncIterator[Line]:
    """A client with a new queue, attached as `spec` says, and a consumer of it."""
    async with client(h) as transport:
        declared = QueueSpec(h.unique("queue"), SERVICE, **spec)
        limits = await transport.attach(declared)
        yield Line(transport, declared, limits, await transport.consume(declared.name, slots=slots, prefetch=prefetch))


async def join(transport: Transport, spec: QueueSpec, *, slots: int = 8) -> Consumer:
    """One more consumer of a queue, in another client."""
    await transport.attach(spec)
    return await transport.consume(spec.name, slots=slots)


async def victim(h: Harness, spec: QueueSpec) -> tuple[Transport, Consumer]:
    """A client that consumes the queue and that the check is going to kill."""
    transport = h.transport()
    await transport.open()
    return transport, await join(transport, spec)


async def prompt(awaitable: Awaitable[T]) -> T:
    """Its result, which needs no time to pass; a hang is a failure."""
    async with asyncio.timeout(PROMPT):
        return await awaitable


async def take(consumer: Consumer, number: int = 1) -> list[Delivery]:
    """As many messages, which are there already."""
    taken: list[Delivery] = []
    async with asyncio.timeout(PROMPT):
        while len(taken) < number:
            taken += await consumer.receive(number - len(taken))
    return taken


async def drain(h: Harness, consumer: Consumer, number: int) -> list[bytes]:
    """Take and ack as many messages and find nothing behind them; their bodies, sorted."""
    bodies: list[bytes] = []
    while len(bodies) < number:
        (delivery,) = await take(consumer)
        bodies.append(delivery.message.body)
        await consumer.ack(delivery)
    await nothing_comes(h, consumer)
    return sorted(bodies)


@asynccontextmanager
async def started(coroutine: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that is cancelled at the end, if it has not ended by then."""
    task = asyncio.create_task(coroutine, name="busline.testing")
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def nothing_comes(h: Harness, consumer: Consumer, seconds: float = QUIET) -> None:
    """No message arrives while `seconds` of the broker's time pass."""
    async with started(consumer.receive(1)) as task:
        await h.pass_time(seconds)
        assert not task.done(), f"nothing was to come, and this came: {task.result()}"


async def arrives(h: Harness, consumer: Consumer, *, within: float, after: float = 0.0, since: float = 0.0) -> Delivery:
    """The next message, `after` at least and `within` at most so many seconds of the broker's time.

    `since` is the `time.monotonic()` before the time began to count: a machine that stalls excuses an early arrival.
    """
    async with started(consumer.receive(1)) as task:
        passed, step = 0.0, (within - after) / 20
        while passed < after * 0.9:
            assert not task.done() or time.monotonic() - since >= after * 0.9, f"came before {after:g} s"
            await h.pass_time(after / 10)
            passed += after / 10
        while passed < within and not task.done():
            await h.pass_time(step)
            passed += step
        async with asyncio.timeout(GRACE):
            (delivery,) = await task
        return delivery


async def eventually(h: Harness, holds: Callable[[], Awaitable[bool]], within: float = PROMPT) -> None:
    """It becomes true before `within` seconds of the broker's time have passed."""
    for _ in range(200):
        if await holds():
            return
        await h.pass_time(within / 200)
    assert await holds(), f"did not become true within {within:g} s"


async def raises(kind: type[E], awaitable: Awaitable[object]) -> E:
    """The error of this kind that it promptly raises."""
    try:
        result = await prompt(awaitable)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was to be raised, and this came: {result!r}")


def tells(seen: QueueStats, *, ready: int, delayed: int, leased: int) -> bool:
    """Are these the numbers, as far as the broker tells them?"""
    return seen.ready == ready and seen.delayed in (delayed, None) and seen.leased in (leased, None)


async def stats(transport: Transport, queue: str) -> QueueStats | None:
    """What the broker says of the queue; None if it says nothing."""
    if not isinstance(transport, Inspectable):
        return None
    return next((found for found in await transport.stats() if found.name == queue), None)
