"""Workers over one transport: leaving, leases, ownership and routes."""

from __future__ import annotations

import asyncio

from busline.bus import Bus
from busline.context import Context
from busline.errors import (
    ConfigurationError,
    NoHandler,
    QueueNotFound,
)
from busline.testing.harness import Harness
from busline.testing.scenes import (
    caller,
    eventually,
    limits_of,
    raised,
    waiting,
)


async def check_a_leaving_worker_finishes_what_it_began_and_gives_back_the_rest(h: Harness) -> None:
    """No message is lost, and none is counted as an attempt or a redelivery."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    started, release = asyncio.Event(), asyncio.Event()
    seen: list[tuple[int, int, bool]] = []

    @bus.handler(f"{service}.work")
    async def work(number: int, ctx: Context) -> None:
        started.set()
        await release.wait()
        seen.append((number, ctx.attempt, ctx.redelivered))

    async with caller(h) as other:
        async with bus.worker(concurrency=1) as worker:
            for number in range(3):
                await other.send(f"{service}.work", number)
            await started.wait()
            worker.stop()
            release.set()
        assert len(seen) == 1
        assert await waiting(other, service) == (2, 0)
        async with bus.worker():
            await eventually(lambda: len(seen) == 3)
        assert sorted(seen) == [(number, 1, False) for number in range(3)]


async def check_a_handler_cancelled_by_leaving_is_given_back(h: Harness) -> None:
    """After the drain timeout: interrupted is not failed, and no redelivery unless the queue counts releases."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    started = asyncio.Event()
    done: list[tuple[int, bool]] = []
    patient = True

    @bus.handler(f"{service}.work")
    async def work(ctx: Context) -> None:
        if patient:
            started.set()
            await asyncio.Event().wait()
        done.append((ctx.attempt, ctx.redelivered))

    async with caller(h) as other:
        async with bus.worker(drain_timeout=0.05):
            await other.send(f"{service}.work")
            await started.wait()
        patient = False
        async with bus.worker():
            await eventually(lambda: done)
        assert done == [(1, (await limits_of(other, service)).counts_releases)]


async def check_a_long_handler_keeps_its_lease(h: Harness) -> None:
    """Work that takes several leases is not given to anybody else."""
    service = h.unique("svc")
    buses = [Bus(h.transport(), service=service) for _ in range(2)]
    runs: list[bool] = []
    for bus in buses:

        @bus.handler(f"{service}.work")
        async def work(ctx: Context) -> str:
            runs.append(ctx.redelivered)
            await asyncio.sleep(2.5)
            return "done"

    async with buses[0].worker(), buses[1].worker(), caller(h) as other:
        assert await other.call(f"{service}.work") == "done"
        assert runs == [False]


async def check_two_services_cannot_own_one_topic(h: Harness) -> None:
    """Refused when the second one starts, naming the first; its own topics move freely."""
    one, two = h.unique("svc"), h.unique("svc")
    first, second = Bus(h.transport(), service=one), Bus(h.transport(), service=two)

    @first.handler(f"{one}.topic")
    async def mine() -> str:
        return "first"

    @second.handler(f"{one}.topic")
    async def yours() -> str:
        return "second"

    async with first.worker(), caller(h) as other:
        error = await raised(ConfigurationError, second.worker().__aenter__())
        assert f"{one}.topic" in str(error)
        assert one in str(error)
        assert await other.call(f"{one}.topic") == "first"


async def check_routes_and_queue_override_the_owner(h: Harness) -> None:
    """`queue=` before `routes=` before the owner; "#" only where there is no owner."""
    service, special = h.unique("svc"), h.unique("special")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.a")
    async def a(ctx: Context) -> str:
        return ctx.queue

    @bus.handler(f"{service}.b", queue=special)
    async def b(ctx: Context) -> str:
        return ctx.queue

    async with bus.worker(), caller(h, routes={f"{service}.b": special, "#": service}) as other:
        assert await other.call(f"{service}.a") == service
        assert await other.call(f"{service}.b") == special
        assert await other.call(f"{service}.a", queue=service) == service
        await raised(QueueNotFound, other.call(f"{service}.a", queue=h.unique("missing")))
        other_error = await raised(NoHandler, other.call(f"{service}.c", timeout=2))
        assert other_error.topic == f"{service}.c"
