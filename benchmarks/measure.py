"""One figure at a time: calls or sends against a service in this process or in another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.app import SERVICE, TOPIC, Payload, cpu_seconds, make_bus
from busline import Bus


@dataclass(frozen=True, slots=True)
class Figure:
    """What one run of one scenario gave."""

    scenario: str
    count: int
    seconds: float
    p50_ms: float
    p99_ms: float
    caller_us: float
    """CPU of the measuring process per message, microseconds."""
    worker_us: float | None
    """CPU of the worker processes per message; None where no other process works."""

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.count / self.seconds


async def in_flight(count: int, width: int, work: Callable[[int], Awaitable[object]]) -> list[float]:
    """Do `work` `count` times, `width` at a time; the seconds that each took."""
    numbers = iter(range(count))
    times: list[float] = []

    async def one_after_another() -> None:
        for number in numbers:
            began = time.perf_counter()
            await work(number)
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(one_after_another() for _ in range(width)))
    return times


async def timed(scenario: str, count: int, width: int, work: Callable[[int], Awaitable[object]]) -> Figure:
    """Warm up with a tenth, then measure."""
    await in_flight(max(1, count // 10), width, work)
    cpu, began = cpu_seconds(), time.perf_counter()
    times = sorted(await in_flight(count, width, work))
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return Figure(scenario, count, seconds, p50 * 1e3, p99 * 1e3, cpu / count * 1e6, None)


@asynccontextmanager
async def workers(url: str, processes: int, concurrency: int) -> AsyncIterator[list[float]]:
    """Worker processes while entered; afterwards the list holds the CPU seconds of each."""
    command = [sys.executable, "-m", "benchmarks.app", url, str(concurrency)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    used: list[float] = []
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "READY"
        yield used
    finally:
        for child in children:
            child.terminate()
        for child in children:
            out, _ = child.communicate(timeout=30)
            used.append(float(out))


async def check_echo(bus: Bus, number: int) -> None:
    """One call, its answer compared with its question."""
    answer = await bus.call(TOPIC, Payload(number=number), returns=Payload)
    assert answer.number == number


async def calls_in_process(url: str, count: int, width: int) -> Figure:
    """Caller and worker in this process."""
    bus = make_bus(url)
    async with bus.worker(concurrency=64):
        return await timed(f"calls, {width} in flight, one process", count, width, lambda n: check_echo(bus, n))


async def calls_between_processes(url: str, count: int, width: int, processes: int = 1) -> Figure:
    """Caller here, `processes` workers beside it."""
    name = f"calls, {width} in flight, {processes} worker process{'es' if processes > 1 else ''}"
    async with workers(url, processes, 64) as used, Bus(url) as bus:
        figure = await timed(name, count, width, lambda n: check_echo(bus, n))
    total = count + max(1, count // 10)
    return Figure(*_fields(figure)[:-1], sum(used) / total * 1e6)


async def sends(url: str, count: int, width: int) -> Figure:
    """Durable sends with nobody consuming."""
    async with make_bus(url).worker():
        pass
    async with Bus(url) as bus:
        return await timed(
            f"sends, {width} in flight", count, width, lambda n: bus.send(TOPIC, Payload(number=n), queue=SERVICE)
        )


def _fields(figure: Figure) -> tuple:
    return tuple(getattr(figure, name) for name in Figure.__slots__)
