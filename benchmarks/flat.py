"""What a message costs when there is much of something: queued messages, calls in flight, handlers, processes.

Each figure is a ratio within one run: the cost with much, divided by the cost with little, taken in turn.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.app import Payload, cpu_seconds, make_bus
from benchmarks.measure import calls_between_processes, check_echo, in_flight
from busline import Bus
from busline.message import Message, QueueSpec, ToQueue
from busline.transports.sqlite import SqliteTransport

PAIRS = 3
CLAIMS = 500
FILL = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number})
INSERT INTO message (queue, priority, due, topic, meta, body)
SELECT (SELECT id FROM queue WHERE name = 'full'), 0, {due}, 'full.x', '', zeroblob(200) FROM n
"""


async def _calls_cost(bus: Bus, count: int, width: int) -> float:
    await in_flight(min(count, 500), min(width, 64), lambda n: check_echo(bus, n))
    cpu = cpu_seconds()
    await in_flight(count, width, lambda n: check_echo(bus, n))
    return (cpu_seconds() - cpu) / count * 1e6


async def many_in_flight(count: int) -> float:
    """CPU a call in one process over memory with 64 in flight, or with all of `count` at once."""

    async def cost(width: int) -> float:
        bus = make_bus("memory://")
        async with bus.worker(concurrency=64):
            return await _calls_cost(bus, count, width)

    return await _ratio(lambda: cost(64), lambda: cost(count))


async def many_handlers(count: int) -> float:
    """The same with one handler, or a thousand."""

    async def cost(handlers: int) -> float:
        bus = make_bus("memory://")
        for number in range(handlers - 1):

            async def other(payload: Payload) -> Payload:
                return payload

            bus.handler(f"bench.other{number}")(other)
        async with bus.worker(concurrency=64):
            return await _calls_cost(bus, count, 64)

    return await _ratio(lambda: cost(1), lambda: cost(1000))


async def many_queued(count: int, queued: int) -> float:
    """Calls over SQLite in an empty file, or beside so many messages that wait in another queue of it."""

    async def cost(number: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.db"
            full = Bus(f"sqlite:///{path}", service="full")
            full.handler("full.x")(_nothing)
            async with full.worker():
                pass
            if number:
                await asyncio.to_thread(fill, path, number)
            bus = make_bus(f"sqlite:///{path}")
            async with bus.worker(concurrency=64):
                return await _calls_cost(bus, count, 64)

    return await _ratio(lambda: cost(0), lambda: cost(queued))


async def many_processes(count: int, each: int) -> float:
    """CPU of caller and workers a call over SQLite, one worker process or eight; `each` calls in flight for each
    process, or 64 in all where it is 0."""

    async def cost(processes: int) -> float:
        width = each * processes or 64
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/bench.db"
            figure = await calls_between_processes(url, count * (processes if each else 1), width, processes)
        return figure.caller_us + (figure.worker_us or 0.0)

    return await _ratio(lambda: cost(1), lambda: cost(8))


async def _nothing() -> None:
    return None


async def claims(number: int) -> dict[str, float]:
    """Milliseconds of a claim from a SQLite queue with so many messages ready, and with so many delayed beside a few
    that are ready; medians."""
    return {
        f"a claim beside {number:,} that are {kind}": await _claim_ms(number, due)
        for kind, due in (("ready", "NULL"), ("delayed", "unixepoch() + 3600 + i"))
    }


async def _claim_ms(number: int, due: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        transport = SqliteTransport(str(path))
        await transport.open()
        try:
            await transport.attach(QueueSpec("full"))
            await asyncio.to_thread(fill, path, number, due)
            await transport.send(ToQueue("full"), *[Message("full.x", b"")] * CLAIMS)
            consumer, took = await transport.consume("full", slots=1), list[float]()
            for _ in range(CLAIMS):
                began = time.perf_counter()
                deliveries = await consumer.receive(1)
                took.append(time.perf_counter() - began)
                await consumer.ack(*deliveries, confirm=True)
            return statistics.median(took) * 1e3
        finally:
            await transport.aclose()


def fill(path: Path, number: int, due: str = "NULL") -> None:
    """Put so many messages into the queue `full` of the file."""
    with sqlite3.connect(path) as database:
        database.execute(FILL.format(number=number, due=due))


async def _ratio(little: Callable[[], Awaitable[float]], much: Callable[[], Awaitable[float]]) -> float:
    pairs = [(await little(), await much()) for _ in range(PAIRS)]
    return statistics.median(b / a for a, b in pairs)


async def table(scale: float) -> dict[str, float]:
    """Every ratio, by what there is much of."""
    n = max(500, int(10_000 * scale))
    return {
        f"{n:,} calls in flight, against 64": await many_in_flight(n),
        "1,000 handlers, against 1": await many_handlers(n),
        f"{int(1_000_000 * scale):,} messages queued, against none": await many_queued(n, int(1_000_000 * scale)),
        "8 worker processes with 64 calls each, against 1": await many_processes(n, 64),
        "8 worker processes with 64 calls in all, against 1": await many_processes(n, 0),
    }
