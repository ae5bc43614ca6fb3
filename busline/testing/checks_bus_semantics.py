"""Delivery semantics over one transport: ack modes, settling by hand, failure callbacks, outbox, events, poison."""

from __future__ import annotations

import asyncio
from typing import Any

from busline.bus import Bus
from busline.context import Context
from busline.errors import AlreadySettled, NoHandler, RemoteError, Undeliverable
from busline.options import Queue
from busline.retry import Retry
from busline.testing.harness import Harness
from busline.testing.scenes import SOON, Question, caller, dead_letters, eventually, limits_of, raised, waiting
from busline.transports.base import Inspectable

ONCE = Retry(max_retries=0)


async def check_an_early_ack_comes_before_the_handler(h: Harness) -> None:
    """Nothing is leased while it runs; a failure is sent again by the policy and ends as a dead letter."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    seen: list[tuple[int, tuple[int, int]]] = []

    @bus.handler(f"{service}.work", ack="early", retry=SOON)
    async def work(ctx: Context) -> None:
        seen.append((ctx.attempt, await waiting(bus, service)))
        raise ValueError("always")

    async with bus.worker(), caller(h) as other:
        await other.send(f"{service}.work")
        await dead_letters(other, service)
        assert seen == [(1, (0, 0)), (2, (0, 0)), (3, (0, 0))]
        await eventually(lambda: bus.stats.dead_lettered == 1)
        assert await waiting(other, service) == (0, 0)


async def check_an_early_acked_call_is_answered(h: Harness) -> None:
    """With its result, or with its error."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.work", ack="early")
    async def work(number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return number + 1

    async with bus.worker(), caller(h) as other:
        assert await other.call(f"{service}.work", 1) == 2
        await raised(RemoteError, other.call(f"{service}.work", -1))


async def check_what_the_handler_acked_never_returns(h: Harness) -> None:
    """Acked, then raised: logged and answered, neither retried nor kept."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    runs: list[int] = []

    @bus.handler(f"{service}.work", retry=SOON)
    async def work(ctx: Context) -> None:
        runs.append(ctx.attempt)
        await ctx.ack()
        assert await waiting(bus, service) == (0, 0)
        raise ValueError("after the ack")

    async with bus.worker(), caller(h) as other:
        await other.send(f"{service}.work")
        await raised(RemoteError, other.call(f"{service}.work"))
        await eventually(lambda: bus.stats.failed == 2)
        assert runs == [1, 1]
        assert await waiting(other, f"{service}.dead") == (0, 0)
        assert await waiting(other, service) == (0, 0)


async def check_a_nacked_message_comes_again_uncounted(h: Harness) -> None:
    """At once or after a delay, with the same attempt; its caller gets the later answer."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    seen: list[int] = []
    clock = asyncio.get_running_loop().time
    times: list[float] = []

    @bus.handler(f"{service}.work")
    async def work(ctx: Context) -> str:
        seen.append(ctx.attempt)
        times.append(clock())
        if len(seen) == 1:
            await ctx.nack()
        elif len(seen) == 2:
            await ctx.nack(delay=0.3)
        return f"run {len(seen)}"

    async with bus.worker(), caller(h) as other:
        assert await other.call(f"{service}.work", timeout=20) == "run 3"
        assert seen == [1, 1, 1]
        assert times[2] - times[1] >= 0.29


async def check_a_message_nacked_to_the_dead_letters_stays_there(h: Harness) -> None:
    """`requeue=False`: kept with the reason, and its caller is told."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.work")
    async def work(ctx: Context) -> str:
        await ctx.nack(requeue=False)
        return "ignored"

    async with bus.worker(), caller(h) as other:
        error = await raised(RemoteError, other.call(f"{service}.work", timeout=20))
        assert error.type == "busline.rejected"
        [(_, envelope)] = await dead_letters(other, service)
        assert (envelope.failure or {})["reason"] == "rejected"


async def check_settling_twice_is_an_error_that_names_the_first(h: Harness) -> None:
    """Whoever comes second learns who was first; the message is not disturbed."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.late")
    async def late(ctx: Context) -> str:
        await ctx.ack()
        return str((await raised(AlreadySettled, ctx.nack())).first)

    @bus.handler(f"{service}.early", ack="early")
    async def early(ctx: Context) -> str:
        return str((await raised(AlreadySettled, ctx.ack())).first)

    async with bus.worker(), caller(h) as other:
        assert await other.call(f"{service}.late") == "ctx.ack()"
        assert await other.call(f"{service}.early") == "ack='early'"


async def check_on_failure_is_told_of_the_final_failure_only(h: Harness) -> None:
    """With error, payload and context, before the message is a dead letter; its own failure loses nothing."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    told: list[tuple[str, int, int]] = []

    def tell(question: Question, error: Exception, ctx: Context) -> None:
        told.append((str(error), question.number, ctx.attempt))
        raise RuntimeError("the telling fails, too")

    @bus.handler(f"{service}.work", retry=SOON, on_failure=tell)
    async def work(question: Question) -> None:
        raise ValueError("always")

    async with bus.worker(), caller(h) as other:
        await other.send(f"{service}.work", Question(number=7))
        await dead_letters(other, service)
        assert told == [("always", 7, 3)]


async def check_on_failure_is_told_of_a_message_that_never_ran(h: Harness) -> None:
    """Expired before it could start: the error says so."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service, max_clock_skew=0)
    told: list[BaseException] = []

    async def tell(error: Undeliverable) -> None:
        told.append(error)

    @bus.handler(f"{service}.work", on_failure=tell, queue=Queue(service, message_ttl=0.05))
    async def work() -> None: ...

    async with bus.worker():
        pass
    async with caller(h) as other:
        await other.send(f"{service}.work")
        await asyncio.sleep(0.2)
        async with bus.worker():
            [(_, envelope)] = await dead_letters(other, service)
            assert (envelope.failure or {})["reason"] == "expired"
            assert [error.reason for error in told if isinstance(error, Undeliverable)] == ["expired"]


async def check_what_a_handler_sends_leaves_when_it_succeeds(h: Harness) -> None:
    """A failed attempt sends nothing, unless it said `immediate`; a topic of nobody's is the handler's failure."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    got: list[str] = []

    @bus.handler(f"{service}.note")
    async def note(text: str) -> None:
        got.append(text)

    @bus.subscriber(f"{service}.happened")
    async def happened(text: str) -> None:
        got.append(text)

    @bus.handler(f"{service}.work", retry=SOON)
    async def work(ctx: Context) -> None:
        await ctx.send(f"{service}.note", f"job {ctx.attempt}")
        await ctx.publish(f"{service}.happened", f"event {ctx.attempt}")
        await ctx.send(f"{service}.note", f"now {ctx.attempt}", immediate=True)
        if ctx.attempt == 1:
            raise OSError("once")

    @bus.handler(f"{service}.lost")
    async def lost(ctx: Context) -> None:
        await ctx.send(f"{service}.nobody")

    async with bus.worker(), caller(h) as other:
        await other.send(f"{service}.work")
        await eventually(lambda: len(got) >= 4)
        assert sorted(got) == ["event 2", "job 2", "now 1", "now 2"]
        error = await raised((RemoteError, NoHandler), other.call(f"{service}.lost"))
        assert f"{service}.nobody" in str(error) or f"{service}.lost" in str(error)


async def check_faults_and_lifecycle_are_events_for_those_who_subscribe(h: Harness) -> None:
    """One of each kind, by topic; a fault tells the reason and where the dead letter is."""
    service = h.unique("svc")
    bus, watcher = Bus(h.transport(), service=service), Bus(h.transport(), service=f"{service}-watch")
    seen: list[tuple[str, dict[str, Any]]] = []

    @watcher.subscriber(f"busline.*.*.{service}.#")
    async def lifecycle(event: dict[str, Any], ctx: Context) -> None:
        seen.append((ctx.topic, event))

    @watcher.subscriber(f"busline.fault.{service}.#")
    async def faults(event: dict[str, Any], ctx: Context) -> None:
        seen.append((ctx.topic, event))

    @bus.handler(f"{service}.work", retry=Retry(delays=[0.01], jitter=False))
    async def work() -> None:
        raise ValueError("always")

    @bus.handler(f"{service}.fine")
    async def fine() -> None: ...

    async with watcher.worker(), bus.worker(), caller(h) as other:
        job = await other.send(f"{service}.work")
        await other.call(f"{service}.fine")
        await eventually(lambda: any(topic.startswith("busline.fault") for topic, _ in seen))
        await eventually(lambda: any(topic == f"busline.event.succeeded.{service}.fine" for topic, _ in seen))
        wanted = {"sent", "received", "started", "retried", "failed", "succeeded"}
        await eventually(lambda: wanted <= {topic.split(".")[2] for topic, _ in seen if ".event." in topic})
        [fault] = [event for topic, event in seen if topic == f"busline.fault.{service}.work"]
        assert (fault["id"], fault["reason"], fault["attempt"]) == (job.id, "failed", 2)
        assert fault["dead_letter"] == f"{service}.dead"


async def _is_poison(other: Bus, queue: str, runs: list[int], hit: asyncio.Event) -> None:
    limits = await limits_of(other, queue)
    if limits.counts_deliveries:
        [(_, envelope)] = await dead_letters(other, queue)
        assert (envelope.failure or {})["reason"] == "poison"
    else:
        await hit.wait()
    assert len(runs) == (2 if limits.counts_deliveries else 3)


async def check_a_message_that_kills_its_workers_is_poison(h: Harness) -> None:
    """Counted by starts: after `max_deliveries` it is a dead letter without running again.

    Where the broker does not count, it is delivered again.
    """
    service = h.unique("svc")
    doomed_topic = f"{service}.work"
    runs: list[int] = []

    async def serve(transport: Any, attached: asyncio.Event, hit: asyncio.Event) -> None:
        bus = Bus(transport, service=service, max_deliveries=2)

        @bus.handler(doomed_topic)
        async def work() -> None:
            runs.append(1)
            hit.set()
            await asyncio.Event().wait()

        async with bus.worker(drain_timeout=0) as worker:
            attached.set()
            await worker.wait()

    async def start() -> tuple[Any, asyncio.Event, asyncio.Future[None]]:
        transport, attached, hit = h.transport(), asyncio.Event(), asyncio.Event()
        serving = asyncio.ensure_future(serve(transport, attached, hit))
        await attached.wait()
        return transport, hit, serving

    async with caller(h) as other:
        for number in range(2):
            transport, hit, serving = await start()
            if number == 0:
                await other.send(doomed_topic)
            await hit.wait()
            await h.kill(transport)
            await h.pass_time(h.takeover)
            await asyncio.wait([serving])
            serving.exception()
        _, hit, heir = await start()
        await _is_poison(other, service, runs, hit)
        heir.cancel()
        await asyncio.wait([heir])


async def check_dead_letters_have_their_own_queue_and_life(h: Harness) -> None:
    """`dead_letter=` names a queue that several share; `dead_letter_ttl=` ends their life."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    shared = h.unique("failed")

    @bus.handler(
        f"{service}.short", retry=ONCE, queue=Queue(h.unique("short"), dead_letter=shared, dead_letter_ttl=0.3)
    )
    async def short() -> None:
        raise ValueError("short-lived")

    @bus.handler(f"{service}.long", retry=ONCE, queue=Queue(h.unique("long"), dead_letter=shared))
    async def long() -> None:
        raise ValueError("long-lived")

    async with bus.worker(), caller(h) as other:
        await other.send(f"{service}.long")
        await other.send(f"{service}.short")
        await eventually(lambda: bus.stats.dead_lettered == 2)

        async def only_the_long_one() -> bool:
            assert isinstance(other.transport, Inspectable)
            return [message.topic for message in await other.transport.peek(shared, 9)] == [f"{service}.long"]

        await eventually(only_the_long_one)
