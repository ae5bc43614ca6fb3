"""Limits over one transport: time, rate, concurrency, length, health gates, pauses and breakers."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

from busline.bus import Bus
from busline.context import Context
from busline.errors import ConfigurationError, QueueFull, RemoteError, SoftTimeLimitExceeded, Unavailable
from busline.options import Breaker, Check, Queue
from busline.retry import Retry
from busline.testing.harness import Harness
from busline.testing.scenes import caller, dead_letters, eventually, limits_of, raised, waiting
from busline.testing.steps import stats, tells

ONCE = Retry(max_retries=0)


async def check_a_soft_time_limit_lets_the_handler_clean_up(h: Harness) -> None:
    """It may return a result, and what it lets through is its failure."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.work", soft_time_limit=0.1, time_limit=30)
    async def work(cleans_up: bool) -> str:
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            if cleans_up:
                return "cleaned up"
            raise
        return "too late"

    async with bus.worker(concurrency=1), caller(h) as other:
        assert await other.call(f"{service}.work", True) == "cleaned up"
        error = await raised(RemoteError, other.call(f"{service}.work", False))
        assert error.type == "SoftTimeLimitExceeded"
        assert await other.call(f"{service}.work", True) == "cleaned up"


async def check_a_hard_time_limit_ends_the_handler(h: Harness) -> None:
    """It is a failure like any other: answered, or retried and then kept; the slot goes on."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.work", time_limit=0.1, retry=Retry(delays=[0.01], jitter=False))
    async def work(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "in time"

    async with bus.worker(concurrency=1), caller(h) as other:
        await other.send(f"{service}.work", 60)
        [(_, envelope)] = await dead_letters(other, service)
        failure = envelope.failure or {}
        assert (failure["type"], failure["attempts"]) == ("TimeLimitExceeded", 2)
        assert await other.call(f"{service}.work", 0) == "in time"


async def check_a_rate_limit_spaces_the_starts(h: Harness) -> None:
    """By taking less: what may not start yet stays at the broker, ready for others."""
    service, queue = h.unique("svc"), h.unique("limited")
    bus = Bus(h.transport(), service=service)
    starts: list[float] = []

    @bus.handler(f"{service}.work", rate_limit="1/s", queue=queue)
    async def work() -> None:
        starts.append(time.monotonic())

    async with bus.worker(concurrency=5), caller(h) as other:
        for _ in range(4):
            await other.send(f"{service}.work")
        await eventually(lambda: len(starts) >= 1)
        ready, leased = await waiting(other, queue)
        assert leased <= 1
        assert ready >= 1
        await eventually(lambda: len(starts) == 4)
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        assert min(gaps) >= 0.9


async def check_concurrency_bounds_what_runs_at_once(h: Harness) -> None:
    """Of its own queue, whatever the worker's concurrency."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    running, most, gate = 0, 0, asyncio.Event()

    @bus.handler(f"{service}.work", concurrency=2, queue=h.unique("bounded"))
    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with bus.worker(concurrency=10), caller(h) as other:
        for _ in range(8):
            await other.send(f"{service}.work")
        await eventually(lambda: running == 2)
        await asyncio.sleep(0.1)  # a third must not start, which has no sign
        gate.set()
        await eventually(lambda: bus.stats.handled == 8)
        assert most == 2


async def check_a_full_queue_refuses_with_a_typed_error(h: Harness) -> str | None:
    """`max_length`: nothing is stored, and there is room again when something was taken. Where the broker cannot bound
    a queue, its worker does not start."""
    service, queue = h.unique("svc"), h.unique("short")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.work", queue=Queue(queue, max_length=3))
    async def work() -> None: ...

    try:
        async with bus.worker():
            pass
    except ConfigurationError as refused:
        assert "max_length" in str(refused)  # noqa: PT017  # free of pytest
        return "max_length"
    async with caller(h) as other:
        for _ in range(3):
            await other.send(f"{service}.work")
        error = await raised(QueueFull, other.send(f"{service}.work"))
        assert (error.queue, error.max_length) == (queue, 3)
        assert await waiting(other, queue) == (3, 0)
        async with bus.worker():
            await eventually(lambda: bus.stats.handled == 3)
            await other.send(f"{service}.work")
            await eventually(lambda: bus.stats.handled == 4)
    return None


async def check_a_failing_health_check_pauses_the_queue(h: Harness) -> None:
    """Nothing is fetched and no attempt is burnt; it resumes by itself."""
    service, queue = h.unique("svc"), h.unique("gated")
    bus = Bus(h.transport(), service=service)
    healthy = False
    attempts: list[int] = []

    async def model_server_is_up() -> bool:
        return healthy

    check = Check(model_server_is_up, period=0.05)

    @bus.handler(f"{service}.work", requires=[check], queue=queue)
    async def work(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        return "up"

    async with bus.worker() as worker, caller(h) as other:
        call = asyncio.ensure_future(other.call(f"{service}.work", timeout=20))
        await eventually(lambda: worker.paused)
        await asyncio.sleep(0.2)
        assert await waiting(other, queue) == (1, 0)
        assert "model_server_is_up" in worker.paused[queue][0]
        healthy = True
        assert await call == "up"
        assert attempts == [1]
        assert not worker.paused


async def check_a_queue_that_answers_tells_callers_at_once(h: Harness) -> None:
    """Callers get Unavailable; a job waits as a delayed copy without an attempt."""
    service, queue = h.unique("svc"), h.unique("gated")
    bus = Bus(h.transport(), service=service)

    async def down() -> None:
        raise ConnectionError("refused")

    @bus.handler(f"{service}.work", requires=[Check(down, period=0.05)], on_down="answer", queue=queue)
    async def work() -> None: ...

    async with bus.worker(), caller(h) as other:
        error = await raised(Unavailable, other.call(f"{service}.work", timeout=20))
        assert "refused" in str(error)
        await other.send(f"{service}.work")

        async def parked() -> bool:
            seen = await stats(other.transport, queue)
            return seen is not None and tells(seen, ready=0, delayed=1, leased=hidden)

        hidden = int((await limits_of(other, queue)).counts_releases)  # there a delay is a release, and a long one
        await eventually(parked)
        assert bus.stats.handled == 0
        assert await waiting(other, f"{queue}.dead") == (0, 0)


async def check_a_retry_rule_pauses_the_queue(h: Harness) -> None:
    """The message waits uncounted at the broker until the pause has ended."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    attempts: list[tuple[int, float]] = []
    policy = Retry(max_retries=1).on(ConnectionError, pause=0.4)

    @bus.handler(f"{service}.work", retry=policy, queue=h.unique("vendor"), concurrency=1)
    async def work(ctx: Context) -> None:
        attempts.append((ctx.attempt, time.monotonic()))
        if len(attempts) < 3:
            raise ConnectionError("vendor is down")

    async with bus.worker() as worker, caller(h) as other:
        await other.send(f"{service}.work")
        await eventually(lambda: worker.paused)
        await eventually(lambda: bus.stats.handled == 1)
        assert [attempt for attempt, _ in attempts] == [1, 1, 1]
        assert attempts[1][1] - attempts[0][1] >= 0.39


async def check_a_breaker_stops_a_queue_that_mostly_fails(h: Harness) -> None:
    """And lets it go on after its pause."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    breaker = Breaker(share=0.5, window=60, minimum=4, pause=0.4)
    runs: list[float] = []

    @bus.handler(f"{service}.work", retry=ONCE, breaker=breaker, concurrency=1, queue=h.unique("failing"))
    async def work() -> None:
        runs.append(time.monotonic())
        raise ValueError("mostly")

    async with bus.worker() as worker, caller(h) as other:
        for _ in range(5):
            await other.send(f"{service}.work")
        await eventually(lambda: worker.paused)
        assert len(runs) == 4
        await eventually(lambda: len(runs) == 5)
        assert runs[4] - runs[3] >= 0.35
