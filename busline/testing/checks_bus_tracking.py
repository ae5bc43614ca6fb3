"""Jobs that are tracked: their states, progress and results; orphans of early acks."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from busline.bus import Bus
from busline.context import Context
from busline.errors import BuslineError, ConnectionLost, JobCancelled, JobNotFound, JobTimeout, NoHandler, RemoteError
from busline.idempotency import Idempotency
from busline.jobs import Progress
from busline.message import Delivery, Message
from busline.retry import Retry
from busline.testing.harness import Harness
from busline.testing.scenes import PATIENCE, SOON, dead_letters, eventually, raised
from busline.testing.stored import Failing, abandon, keeping, open_store, own_store
from busline.transports.base import Consumer
from busline.wire import Envelope, new_id


async def check_a_job_tells_its_state_progress_and_result(h: Harness) -> None:
    """PENDING, STARTED, RETRY, STARTED, SUCCESS; a later attempt reads what the earlier one said."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    go, resumed = asyncio.Event(), []

    @bus.handler(f"{service}.work", retry=Retry(delays=[0.3], max_retries=1))
    async def work(text: str, ctx: Context) -> str:
        last = await ctx.last_progress()
        resumed.append(last.current if last else None)
        await ctx.progress(len(resumed) * 5, 10, "rows")
        await go.wait()
        go.clear()
        if ctx.attempt == 1:
            raise OSError("halfway")
        return text.upper()

    async with bus.worker():
        pass  # so that the topic has an owner
    async with keeping(h) as other:
        job = await other.send(f"{service}.work", "done", track=True)
        assert await job.status() == "PENDING"
        await raised(JobTimeout, job.result(0.05))
        seen: list[Progress] = []

        async def watch() -> None:
            seen.extend([each async for each in job.progress()])

        async with bus.worker():
            watcher = asyncio.create_task(watch())
            await eventually(lambda: resumed == [None])
            assert await job.status() == "STARTED"
            go.set()
            await eventually(lambda: _is(job, "RETRY"))
            await eventually(lambda: len(resumed) == 2)
            go.set()
            assert await job.result(PATIENCE) == "DONE"
            assert await other.job(job.id).status() == "SUCCESS"
            await asyncio.wait_for(watcher, PATIENCE)
    assert resumed == [None, 5]
    assert (seen[-1].current, seen[-1].fraction, seen[-1].note) == (10, 1.0, "rows")


async def check_a_plain_function_tells_its_progress_too(h: Harness) -> None:
    """Through `ctx.wait`, in order and before it goes on; its next attempt reads it."""
    service = h.unique("svc")
    bus = keeping(h, service=service)

    @bus.handler(f"{service}.rows", retry=SOON)
    def rows(upto: int, ctx: Context) -> list[float]:
        last = ctx.wait(ctx.last_progress)
        if last is not None:
            return [last.current, upto]
        for row in range(upto):
            ctx.wait(ctx.progress, row, total=upto)
        raise OSError("halfway")

    async with bus.worker():
        job = await bus.send(f"{service}.rows", 3, track=True)
        assert await job.result(PATIENCE) == [2, 3]


async def _is(job: Any, state: str) -> bool:
    return bool(await job.status() == state)


async def check_a_cancelled_job_does_not_run_or_no_further(h: Harness) -> None:
    """Queued: it is dropped by whoever takes it. Running: it is cancelled in its worker."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    ran: list[str] = []

    @bus.handler(f"{service}.work", idempotency=Idempotency(lease=0.6))
    async def work(text: str) -> None:
        ran.append(text)
        if text == "long":
            await asyncio.sleep(60)

    async with bus.worker():
        pass
    async with keeping(h) as other:
        queued = await other.send(f"{service}.work", "queued", track=True)
        assert await queued.cancel()
        assert await queued.status() == "CANCELLED"
        long = await other.send(f"{service}.work", "long", track=True)
        async with bus.worker():
            await eventually(lambda: ran == ["long"])
            assert await long.cancel()
            await raised(JobCancelled, long.result(PATIENCE))
            await raised(JobCancelled, queued.result(PATIENCE))
            await eventually(lambda: _claimed(other, queued.id))
            assert not await long.cancel()
            await queued.retry()
            assert await queued.result(PATIENCE) is None
    assert ran == ["long", "queued"]


async def _claimed(bus: Bus, id: str) -> bool:
    return bool((await bus.job(id).info()).key)


async def check_a_failed_job_is_retried_under_its_key(h: Harness) -> None:
    """The same id and key, a first attempt; `on_failure` was told of the first end."""
    service = h.unique("svc")
    told: list[str] = []

    async def tell(error: Exception) -> None:
        told.append(str(error))

    bus, runs = keeping(h, service=service), 0

    @bus.handler(f"{service}.work", retry=Retry(max_retries=0), on_failure=tell)
    async def work(text: str, ctx: Context) -> str:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError("no")
        return f"{text} {ctx.attempt} {ctx.idempotency_key}"

    async with bus.worker(), keeping(h) as other:
        job = await other.send(f"{service}.work", "x", idempotency_key="k")
        assert (await raised(RemoteError, job.result(PATIENCE))).type == "ValueError"
        await job.retry()
        assert await job.result(PATIENCE) == "x 1 k"
        await raised(BuslineError, job.retry())
        assert told == ["no"]
        assert [info.state for info in await other.jobs(topic=f"{service}.work")] == ["SUCCESS"]


async def check_a_job_that_never_runs_has_failed(h: Harness) -> None:
    """Expired, invalid, and of a topic that nobody knows any more: each job tells of it."""
    service = h.unique("svc")
    bus = keeping(h, service=service, max_clock_skew=0.0, unknown_grace=0.05)

    @bus.handler(f"{service}.work")
    async def work(number: int) -> None:
        """Nothing to do."""

    async with bus.worker():
        pass
    async with keeping(h) as other:
        expired = await other.send(f"{service}.work", 1, track=True, ttl=0.05)
        invalid = await other.send(f"{service}.work", "no number", track=True)
        unknown = await other.send(f"{service}.gone", 1, track=True, queue=service)
        await asyncio.sleep(0.1)
        async with bus.worker():
            for job, kind in ((expired, "expired"), (invalid, "invalid"), (unknown, "no_handler")):
                error = await raised((RemoteError, NoHandler), job.result(PATIENCE))
                assert isinstance(error, NoHandler) or error.type == f"busline.{kind}"


async def check_a_unique_job_is_sent_once(h: Harness) -> None:
    """The job that was sent before is returned; one that could not be sent is in nobody's way."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    ran: list[str] = []

    @bus.handler(f"{service}.work")
    async def work(text: str) -> None:
        ran.append(text)

    async with bus.worker(), keeping(h) as other:
        await raised(NoHandler, other.send(f"{service}.nobody", "x", unique_for=60))
        await raised(NoHandler, other.send(f"{service}.nobody", "x", unique_for=60))
        first = await other.send(f"{service}.work", "x", unique_for=60)
        again = await other.send(f"{service}.work", "x", unique_for=60)
        other_key = await other.send(f"{service}.work", "x", unique_for=60, unique_key="another")
        assert first == again != other_key
        await first.result(PATIENCE)
        await other_key.result(PATIENCE)
        assert ran == ["x", "x"]


async def check_results_expire(h: Harness) -> None:
    """After `result_ttl`, and a job that was never tracked is not found."""
    service = h.unique("svc")
    bus = keeping(h, service=service, result_ttl=0.3)

    @bus.handler(f"{service}.work")
    async def work(text: str) -> str:
        return text

    async with bus.worker(), keeping(h) as other:
        job = await other.send(f"{service}.work", "x", track=True)
        assert await job.result(PATIENCE) == "x"
        await eventually(lambda: _is_gone(job))
        untracked = await other.send(f"{service}.work", "y")
        await raised(JobNotFound, untracked.status())


async def _is_gone(job: Any) -> bool:
    try:
        await job.status()
    except JobNotFound:
        return True
    return False


# -- orphans ----------------------------------------------------------------------------------------------------------


def _orphan(service: str, id: str, text: bytes, attempt: int = 1) -> Message:
    return Message(f"{service}.work", text, Envelope(id, 1_000_000_000.0, attempt, key="").encode())


async def check_an_orphan_has_failed(h: Harness) -> None:
    """It is a dead letter, its `on_failure` is told, and one that meets a duplicate is ended by that."""
    service, told = h.unique("svc"), []
    ids = [new_id(), new_id()]

    async def tell(error: Exception) -> None:
        told.append(str(error))

    bus = keeping(h, service=service)

    @bus.handler(f"{service}.work", ack="early", on_failure=tell)
    async def work(text: str) -> None:
        raise AssertionError("an orphan does not run")

    async with bus.worker():
        pass
    async with keeping(h) as other:
        store = await open_store(other)
        for id in ids:
            await abandon(store, service, _orphan(service, id, b'"x"'), id)
        async with bus.worker():
            letters = await dead_letters(other, service, 2)
            assert {(envelope.failure or {})["reason"] for _, envelope in letters} == {"orphaned"}
            await eventually(lambda: len(told) == 2)
            await eventually(lambda: bus.stats.orphans == 2)
            assert not await store.orphans(10)


async def check_an_orphan_is_sent_again_once(h: Harness) -> None:
    """By option, and by one of two workers; it runs as it was."""
    service, ran = h.unique("svc"), []
    buses = [keeping(h, service=service) for _ in range(2)]

    async def work(text: str, ctx: Context) -> None:
        ran.append((text, ctx.id))

    for bus in buses:
        bus.handler(f"{service}.work", ack="early", idempotency=Idempotency(lease=1.0, orphans="resend"))(work)
    async with buses[0].worker():
        pass
    async with keeping(h) as other:
        store = await open_store(other)
        ids = [new_id() for _ in range(3)]
        for id in ids:
            await abandon(store, service, _orphan(service, id, b'"x"'), id)
        async with buses[0].worker(), buses[1].worker():
            await eventually(lambda: len(ran) == 3, patience=2 * PATIENCE)
            await eventually(lambda: sum(bus.stats.handled for bus in buses) == 3)
            assert not await store.orphans(10)
    assert sorted(ran) == sorted(("x", id) for id in ids)


async def check_an_early_job_is_claimed_before_it_is_acked(h: Harness) -> None:
    """A retry is sent before the claim lets go of the message; a result is kept."""
    service = h.unique("svc")
    store: Any = Failing(own_store(h))
    bus = keeping(h, service=service, store=store)

    @bus.handler(f"{service}.work", ack="early", retry=SOON)
    async def work(text: str, ctx: Context) -> str:
        if ctx.attempt == 1:
            raise OSError("once")
        return text

    async with bus.worker(concurrency=1):
        job = await bus.send(f"{service}.work", "x", track=True)
        assert await job.result(PATIENCE) == "x"
        assert [each for each in store.did if each in ("claim", "release", "complete")] == [
            *("claim", "release", "claim", "complete")
        ]


async def check_an_early_ack_that_fails_runs_once(h: Harness) -> None:
    """It is tried again when the handler has run; if that fails too, what the broker delivers again is answered from
    the store, because the key is ours."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    ran: list[str] = []

    @bus.handler(f"{service}.work", ack="early", idempotency=Idempotency(lease=1.0))
    async def work(text: str) -> None:
        ran.append(text)

    async with bus.worker(concurrency=1) as worker:
        queue: Any = worker._queues[0]
        spoiled = queue._consumer = _Spoiled(queue._consumer)
        await bus.send(f"{service}.work", "before")  # by whoever has asked for a message already
        job = await bus.send(f"{service}.work", "x", track=True)
        await job.result(PATIENCE)
        await eventually(lambda: len(spoiled.acks[b'"x"']) == 3)
        assert spoiled.acks[b'"x"'] == [True, False, False]
    assert ran == ["before", "x"]
    assert bus.stats.repeats >= 1


class _Spoiled:
    """A consumer whose first two acks of each message fail, as on a broken connection; `acks` tells by body which were
    to be confirmed."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.acks: defaultdict[bytes, list[bool]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def ack(self, delivery: Delivery, *, confirm: bool = False) -> None:
        asked = self.acks[delivery.message.body]
        asked.append(confirm)
        if len(asked) <= 2:
            raise ConnectionLost("it was told to fail")
        await self._consumer.ack(delivery, confirm=confirm)
