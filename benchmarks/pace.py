"""How long this machine's Python takes for small steps, × that of the machine for which the goals were set.

The goals are microseconds and calls a second of one machine. What depends on the processor alone is held against them
a second time at that machine's pace, so that a slower one, or a build of Python without optimization, can tell as well.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.app import Payload

REFERENCE = {
    "json.dumps": 8.10,
    "json.loads": 5.34,
    "uuid4": 3.32,
    "a dataclass with slots": 0.22,
    "a coroutine that never waits": 0.21,
    "a turn of the loop": 5.66,
    "a task": 8.17,
    "a future": 6.47,
    "asyncio.timeout": 2.94,
    "asyncio.wait_for": 18.97,
    "a lock": 0.66,
    "validate_json": 2.75,
    "dump_json": 1.86,
}
"""Microseconds: EPYC, Python 3.11.7, best of several repeats."""
REPEATS = 7
SECONDS = 0.02
"""Of one repeat, about."""


@dataclass(slots=True)
class _Five:
    a: int
    b: int
    c: int
    d: int
    e: int


async def _nothing() -> None:
    return None


async def _future() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, None)
    await future


async def _timeout() -> None:
    async with asyncio.timeout(None):
        await _nothing()


async def _task() -> None:
    await asyncio.create_task(_nothing())


async def _best(step: Callable[[], Awaitable[object]]) -> float:
    """Microseconds a step."""
    once, times = 10, list[float]()
    while len(times) < REPEATS:
        began = time.perf_counter()
        for _ in range(once):
            await step()
        took = time.perf_counter() - began
        if took < SECONDS / 2:
            once *= 2
        else:
            times.append(took / once * 1e6)
    return min(times)


def _plain(step: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def awaited() -> object:
        return step()

    return awaited


async def _steps() -> dict[str, float]:
    payload, lock = Payload(number=1), asyncio.Lock()
    data = payload.model_dump(mode="json")
    text = json.dumps(data)

    async def locked() -> None:
        async with lock:
            pass

    steps = {
        "json.dumps": _plain(lambda: json.dumps(data).encode()),
        "json.loads": _plain(lambda: json.loads(text)),
        "uuid4": _plain(lambda: str(uuid.uuid4())),
        "a dataclass with slots": _plain(lambda: _Five(1, 2, 3, 4, 5)),
        "a coroutine that never waits": _nothing,
        "a turn of the loop": lambda: asyncio.sleep(0),
        "a task": _task,
        "a future": _future,
        "asyncio.timeout": _timeout,
        "asyncio.wait_for": lambda: asyncio.wait_for(_nothing(), 5),
        "a lock": locked,
        "validate_json": _plain(lambda: Payload.model_validate_json(text)),
        "dump_json": _plain(lambda: payload.model_dump_json().encode()),
    }
    empty = await _best(_plain(lambda: None))
    return {name: await _best(step) - (empty if step.__name__ == "awaited" else 0.0) for name, step in steps.items()}


def pace() -> float:
    """Geometric mean over the steps; 2.0 = this machine takes twice as long."""
    taken = asyncio.run(_steps())
    return statistics.geometric_mean(taken[name] / reference for name, reference in REFERENCE.items())


if __name__ == "__main__":
    for name, took in asyncio.run(_steps()).items():
        print(f"{name}: {took:.2f} µs, {took / REFERENCE[name]:.2f} × the reference")
