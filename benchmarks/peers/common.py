"""What every peer's program shares; it imports nothing that a peer's environment lacks (pydantic alone)."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

QUEUE = "bench_echo"
SECONDS = 3.0
"""A scenario of a slow peer ends after so long."""


class Order(BaseModel):
    """About 200 bytes as JSON."""

    number: int
    customer: str = "c0ffee00-1234-5678-9abc-def012345678"
    items: tuple[str, ...] = ("first article", "second article", "third article")
    note: str = "deliver to the back door, please"
    paid: bool = True


class Client(Protocol):
    """The caller's side of a peer."""

    async def call(self, order: Order) -> Order: ...
    async def send(self, order: Order) -> None: ...


class Peer(Protocol):
    """A module of this package. `serve` calls `ready` when it can be called, and ends when it is cancelled."""

    def connect(self, url: str) -> AbstractAsyncContextManager[Client]: ...
    async def serve(self, url: str, prefetch: int, ready: Callable[[], None]) -> None: ...


def cpu_seconds() -> float:
    """User and system time of this process and of its ended children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


async def in_flight(count: int, width: int, work: Callable[[int], Awaitable[None]]) -> list[float]:
    """Do `work` up to `count` times, `width` at a time, for at most `SECONDS`; the seconds that each took."""
    numbers, times, until = iter(range(count)), list[float](), time.perf_counter() + SECONDS

    async def one_after_another() -> None:
        for number in numbers:
            began = time.perf_counter()
            if began > until:
                return
            await work(number)
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(one_after_another() for _ in range(width)))
    return times


async def measure(count: int, width: int, work: Callable[[int], Awaitable[None]]) -> dict[str, float]:
    """Warm up with a tenth, then measure."""
    await in_flight(max(width, count // 10), width, work)
    cpu, began = cpu_seconds(), time.perf_counter()
    times = sorted(await in_flight(count, width, work))
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return {
        "count": len(times),
        "rate": len(times) / seconds,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "caller_us": cpu / len(times) * 1e6,
    }


async def calling(peer: Peer, url: str, count: int, width: int) -> dict[str, float]:
    """Calls, each answer compared with its question."""
    async with peer.connect(url) as client:

        async def work(number: int) -> None:
            answer = await client.call(Order(number=number))
            assert answer.number == number

        return await measure(count, width, work)


async def sending(peer: Peer, url: str, count: int, width: int) -> dict[str, float]:
    """Durable messages, each awaited until the broker has it; `count` of them exactly, for `consume` counts them."""
    async with peer.connect(url) as client:
        began, cpu = time.perf_counter(), cpu_seconds()
        numbers = iter(range(count))

        async def one_after_another() -> None:
            for number in numbers:
                await client.send(Order(number=number))

        await asyncio.gather(*(one_after_another() for _ in range(width)))
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return {"count": count, "rate": count / seconds, "caller_us": cpu / count * 1e6}


async def serving(peer: Peer, url: str, prefetch: int) -> None:
    """Until SIGTERM; a line when ready, and one with the CPU seconds since."""
    began = cpu_seconds()

    def ready() -> None:
        nonlocal began
        began = cpu_seconds()
        print("READY", flush=True)

    task = asyncio.ensure_future(peer.serve(url, prefetch, ready))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.wait([task])
    print(cpu_seconds() - began, flush=True)


class Tally:
    """Counts what a worker has handled, in a file that the measuring process reads."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._number = 0

    def handled(self) -> None:
        """One more; written now and then, and never waited for."""
        self._number += 1
        if self._number % 50 == 0:
            self._path.write_text(f"{self._number} {time.time()}")


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """For peers whose clients need no closing."""
    yield


def main(peer: Peer) -> None:
    """`serve URL PREFETCH`, `call URL COUNT WIDTH` or `send URL COUNT WIDTH`."""
    role, url, *rest = sys.argv[1:]
    numbers = [int(each) for each in rest]
    if role == "serve":
        asyncio.run(serving(peer, url, *numbers))
    else:
        print(json.dumps(asyncio.run((calling if role == "call" else sending)(peer, url, *numbers))))
