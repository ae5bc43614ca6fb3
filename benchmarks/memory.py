"""What a process needs at most, by what it has to do: `python -m benchmarks.memory calls|in_flight|queued NUMBER`.

Each figure is the peak of a process of its own. More messages that pass, or wait, must not need more; more that are in
flight at once do.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.app import make_bus
from benchmarks.flat import fill
from benchmarks.measure import check_echo, in_flight
from busline import Bus

TAKEN = 5_000
"""Messages that a worker handles of those that wait."""
ROUNDS = 100
LITTLE, ALL_AT_ONCE = 64, 10_000
"""Calls in flight."""


async def _calls(number: int) -> None:
    bus = make_bus("memory://")
    async with bus.worker(concurrency=64):
        for _ in range(ROUNDS):  # each keeps how long its calls took, which is not ours
            await in_flight(number // ROUNDS, LITTLE, lambda n: check_echo(bus, n))


async def _in_flight(number: int) -> None:
    bus = make_bus("memory://")
    async with bus.worker(concurrency=64):
        await in_flight(ALL_AT_ONCE, number, lambda n: check_echo(bus, n))


async def _queued(number: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, taken, enough = Path(folder) / "bench.db", 0, asyncio.Event()
        bus = Bus(f"sqlite:///{path}", service="full")

        @bus.handler("full.x")
        async def take() -> None:
            nonlocal taken
            taken += 1
            if taken == TAKEN:
                enough.set()

        async with bus.worker(concurrency=1):
            pass
        await asyncio.to_thread(fill, path, number)
        async with bus.worker(concurrency=64):
            await enough.wait()


KINDS: dict[str, Callable[[int], Awaitable[None]]] = {"calls": _calls, "in_flight": _in_flight, "queued": _queued}


def peak_mib(kind: str, number: int) -> float:
    """Of a process that does just this."""
    command = [sys.executable, "-m", "benchmarks.memory", kind, str(number)]
    return float(subprocess.check_output(command, text=True))


def ratios(scale: float) -> dict[str, float]:
    """Memory with much that passes or waits, × that with little of it."""
    calls, queued = int(200_000 * scale), int(1_000_000 * scale)
    return {
        f"{calls:,} calls, 64 at a time, against a tenth": peak_mib("calls", calls) / peak_mib("calls", calls // 10),
        f"{queued:,} messages queued, against {TAKEN:,}": peak_mib("queued", queued) / peak_mib("queued", TAKEN),
    }


def kib_in_flight() -> float:
    """What a call that is in flight needs, caller and worker together, KiB."""
    much = peak_mib("in_flight", ALL_AT_ONCE) - peak_mib("in_flight", LITTLE)
    return much * 1024 / (ALL_AT_ONCE - LITTLE)


def main() -> None:
    """Do it, and print the peak, MiB."""
    asyncio.run(_once(KINDS[sys.argv[1]](int(sys.argv[2]))))
    print(_peak_mib())


def _peak_mib() -> float:
    """Of this program: what the system tells of resources counts what the process was before, its parent's copy."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


async def _once(work: Awaitable[None]) -> None:
    await work


if __name__ == "__main__":
    main()
