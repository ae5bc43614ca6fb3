"""The retry schedule of each policy, on a virtual clock, to the exact second."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from busline import Bus, Context, Retry, RetryLater
from busline.testing.clock import VirtualClock
from busline.transports.memory import MemoryBroker, MemoryTransport

SCHEDULES = {
    "the default, without its jitter": (Retry(jitter=False), [0, 2, 6, 14]),
    "exponential": (Retry(max_retries=4, first=1, factor=3, jitter=False), [0, 1, 4, 13, 40]),
    "exponential up to its cap": (
        Retry(max_retries=4, first=100, factor=10, cap=500, jitter=False),
        [0, 100, 600, 1100, 1600],
    ),
    "linear": (Retry.linear(10, 5, jitter=False), [0, 10, 25, 45]),
    "fixed": (Retry.fixed(30, max_retries=2, jitter=False), [0, 30, 60]),
    "progressive": (Retry(delays=[5, 15, 30], jitter=False), [0, 5, 20, 50]),
    "progressive, its last repeated": (Retry(delays=[5, 15], max_retries=4, jitter=False), [0, 5, 20, 35, 50]),
    "immediate ones before each delay": (Retry(delays=[60], immediate=2, jitter=False), [0, 0, 0, 60, 60, 60]),
    "none": (Retry(max_retries=0), [0]),
    "a rule for the error": (Retry(jitter=False).on(OSError, delays=[7, 7]), [0, 7, 14]),
    "a rule that ends it": (Retry(jitter=False).on(OSError, dead_letter=True), [0]),
    "a type that is not retried": (Retry(unless=OSError, jitter=False), [0]),
}


class Scene:
    """A service on a virtual clock whose handler always fails, and when it was tried."""

    def __init__(self, retry: Retry, error: Exception | None = None) -> None:
        self.error = error or OSError("always")
        self.clock = VirtualClock()
        self.bus = Bus(MemoryTransport(MemoryBroker(self.clock, seed=1)), service="svc", clock=self.clock)
        self.tried: list[float] = []
        self.attempts: list[int] = []
        self.bus.handler("svc.work", retry=retry)(self.work)

    async def work(self, ctx: Context) -> None:
        self.tried.append(self.clock.time())
        self.attempts.append(ctx.attempt)
        raise self.error

    async def seconds(self) -> list[float]:
        """When each attempt began, counted from the sending, after an hour has passed."""
        async with self.bus.worker(concurrency=2):
            began = self.clock.time()
            await self.bus.send("svc.work")
            for _ in range(3600):
                await self.clock.advance(1)
            return [round(at - began, 6) for at in self.tried]


@pytest.mark.parametrize("name", SCHEDULES)
async def test_the_schedule_is_exact_to_the_second(name: str) -> None:
    retry, expected = SCHEDULES[name]
    scene = Scene(retry)
    assert await scene.seconds() == expected
    assert scene.attempts == list(range(1, len(expected) + 1))


async def test_jitter_only_extends() -> None:
    seconds = await Scene(Retry(delays=[100, 100])).seconds()
    gaps = [later - earlier for earlier, later in pairwise(seconds)]
    assert all(100 <= gap <= 125 for gap in gaps)
    assert len(gaps) == 2


async def test_retry_later_has_a_delay_of_its_own_and_counts() -> None:
    assert await Scene(Retry(max_retries=2, jitter=False), RetryLater(40)).seconds() == [0, 40, 80]


async def test_a_retry_that_its_caller_would_not_live_to_see_is_not_made() -> None:
    scene = Scene(Retry(delays=[5, 15, 30], jitter=False))
    async with scene.bus.worker():
        began = scene.clock.time()
        call = asyncio.ensure_future(scene.bus.call("svc.work", timeout=12))
        for _ in range(13):
            await scene.clock.advance(1)
        assert call.done()
        assert type(call.exception()).__name__ == "RemoteError"
        assert [at - began for at in scene.tried] == [0, 5]
