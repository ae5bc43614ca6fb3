"""What every peer's program shares; it imports nothing that a peer's environment lacks (pydantic alone)."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

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


class Shape(NamedTuple):
    """How a worker consumes."""

    consumers: int
    prefetch: int
    """Of each of them."""


class Client(Protocol):
    """The caller's side of a peer."""

    async def call(self, order: Order) -> Order: ...
    async def send(self, order: Order) -> None: ...


class Peer(Protocol):
    """A module of this package. `serve` calls `ready` when it can be called, and ends when it is cancelled."""

    def connect(self, url: str) -> AbstractAsyncContextManager[Client]: ...
    async def serve(self, url: str, shape: Shape, ready: Callable[[], None]) -> None: ...


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
    """Durable messages, each awaited until the broker has it; `count` of them exactly, for a worker is to find them."""
    async with peer.connect(url) as client:
        began, cpu = time.perf_counter(), cpu_seconds()
        numbers = iter(range(count))

        async def one_after_another() -> None:
            for number in numbers:
                await client.send(Order(number=number))

        await asyncio.gather(*(one_after_another() for _ in range(width)))
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return {"count": count, "rate": count / seconds, "caller_us": cpu / count * 1e6}


async def serving(peer: Peer, url: str, shape: Shape) -> None:
    """Until SIGTERM; a line when ready, and one with the CPU seconds since, or since the first message before that."""
    began = cpu_seconds()

    def ready() -> None:
        nonlocal began
        began = cpu_seconds()
        print("READY", flush=True)

    task = asyncio.ensure_future(peer.serve(url, shape, ready))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.wait([task])
    first = _tally(os.getpid()).cpu
    print(cpu_seconds() - (began if first is None else min(began, first)), flush=True)


class Tally:
    """Counts what this process has handled, in a file of a folder that the measuring process reads."""

    EVERY = 50
    """Messages between two writings, none of which is waited for."""

    def __init__(self, folder: str | None) -> None:
        self._path = Path(folder, str(os.getpid())) if folder else None
        self._number = 0
        self._began = 0.0
        self.cpu: float | None = None
        """What this process had used when it handled the first."""

    def handled(self) -> None:
        """One more."""
        if self._path is None:
            return
        self._number += 1
        if self._number == 1:
            self._began, self.cpu = time.time(), cpu_seconds()
        if self._number % self.EVERY == 0:
            part = self._path.with_suffix(".part")
            part.write_text(f"{self._number} {self._began} {time.time()}")
            part.replace(self._path.with_suffix(".tally"))


@cache
def _tally(process: int) -> Tally:
    """Celery's handlers run in a child of the worker."""
    return Tally(os.environ.get("BENCH_TALLY"))


def handled() -> None:
    """For each message, by its handler."""
    _tally(os.getpid()).handled()


def main(peer: Peer) -> None:
    """`serve URL CONSUMERS PREFETCH`, `call URL COUNT WIDTH` or `send URL COUNT WIDTH`."""
    role, url, *rest = sys.argv[1:]
    numbers = [int(each) for each in rest]
    if role == "serve":
        asyncio.run(serving(peer, url, Shape(*numbers)))
    else:
        print(json.dumps(asyncio.run((calling if role == "call" else sending)(peer, url, *numbers))))
