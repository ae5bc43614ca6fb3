"""One effect per key, whatever is sent, delivered and repeated."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from busline.codec import decode
from busline.context import Context
from busline.dead_letters import DeadLetters, Selection
from busline.errors import ClaimLost, IdempotencyConflict, IdempotencyMismatch, RemoteError
from busline.idempotency import Idempotency
from busline.message import Message, ToQueue
from busline.retry import Retry
from busline.testing.harness import Harness
from busline.testing.scenes import PATIENCE, SOON, caller, dead_letters, eventually, raised, waiting
from busline.testing.stored import Failing, keeping, own_store
from busline.transports.base import Inspectable
from busline.wire import new_id

ONCE = Idempotency(key="n", lease=2.0)


async def check_a_repeat_is_answered_from_the_store(h: Harness) -> None:
    """The same result, byte for byte, and what the handler sent is sent again with the same ids; nothing runs twice."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    ran: list[int] = []
    followed: list[tuple[str, Any]] = []

    @bus.handler(f"{service}.work", idempotency=ONCE)
    async def work(order: dict[str, int], ctx: Context) -> dict[str, Any]:
        n = order["n"]
        ran.append(n)
        await ctx.send(f"{service}.follow", n)
        await ctx.publish(f"{service}.done", n)
        return {"n": n, "run": len(ran)}

    @bus.handler(f"{service}.follow")
    async def follow(n: int, ctx: Context) -> None:
        followed.append((ctx.id, n))

    async with bus.worker(), caller(h) as other:
        first = await other.call(f"{service}.work", {"n": 1}, timeout=PATIENCE)
        assert first == await other.call(f"{service}.work", {"n": 1}, timeout=PATIENCE) == {"n": 1, "run": 1}
        await eventually(lambda: len(followed) == 2)
        assert followed[0] == followed[1]
        assert followed[0][0].endswith("/1")
        assert bus.stats.repeats == 1


async def check_a_repeat_gets_the_same_bytes(h: Harness) -> None:
    """As the broker carries them; nothing is read and written anew."""
    service = h.unique("svc")
    bus = keeping(h, service=service)

    @bus.handler(f"{service}.work", idempotency=ONCE)
    async def work(order: dict[str, int]) -> dict[str, Any]:
        return {"run": new_id(), "n": order["n"], "a": 1e16, "ü": None}

    replies: asyncio.Queue[Message] = asyncio.Queue()
    async with bus.worker(), caller(h) as other:
        raw = h.transport()
        await raw.open()
        inbox = await raw.open_inbox(replies.put_nowait, lambda: None)
        bodies = []
        for number in range(2):
            await inbox.send(ToQueue(service), Message(f"{service}.work", b'{"n": 1}', correlation_id=str(number)))
            bodies.append((await asyncio.wait_for(replies.get(), PATIENCE)).body)
        await raw.aclose()
        assert bodies[0] == bodies[1]
        assert await other.call(f"{service}.work", {"n": 1}, timeout=PATIENCE) == decode(bodies[0])


async def check_a_claim_is_renewed_while_its_handler_runs(h: Harness) -> None:
    """For longer than its lease: who asks meanwhile waits, and gets the one result."""
    service = h.unique("svc")
    store: Any = Failing(own_store(h))
    bus = keeping(h, service=service, store=store)
    ran: list[str] = []

    @bus.handler(f"{service}.work", idempotency=Idempotency(lease=1.5))
    async def work(text: str) -> str:
        ran.append(text)
        await eventually(lambda: store.did.count("extend") >= 4)  # one each third of the lease
        return text

    async with bus.worker(concurrency=2), caller(h) as other:
        ask = partial(other.call, f"{service}.work", "x", idempotency_key="k", timeout=PATIENCE)
        assert [await each for each in (asyncio.create_task(ask()), asyncio.create_task(ask()))] == ["x", "x"]
    assert ran == ["x"]


async def check_one_key_runs_once_among_many(h: Harness) -> None:
    """Sent many times at once to two workers with many slots: one effect each key."""
    service = h.unique("svc")
    buses = [keeping(h, service=service) for _ in range(2)]
    ran: list[int] = []

    async def work(order: dict[str, int]) -> None:
        ran.append(order["n"])
        await asyncio.sleep(0.01)

    for bus in buses:
        bus.handler(f"{service}.work", idempotency=Idempotency(key="n", lease=1.0))(work)
    async with buses[0].worker(concurrency=4), buses[1].worker(concurrency=4), caller(h) as other:
        await asyncio.gather(*(other.send(f"{service}.work", {"n": n % 8}) for n in range(24)))
        await eventually(lambda: sum(bus.stats.repeats for bus in buses) == 16, patience=3 * PATIENCE)
        assert sorted(ran) == list(range(8))


async def check_a_key_with_another_payload_is_refused(h: Harness) -> None:
    """The caller gets IdempotencyMismatch, a job is a dead letter and a tracked one has failed; the record stays."""
    service = h.unique("svc")
    bus = keeping(h, service=service)

    @bus.handler(f"{service}.work")
    async def work(text: str) -> str:
        return text

    topic = f"{service}.work"
    async with bus.worker(), keeping(h) as other:
        assert await other.call(topic, "one", idempotency_key="k", timeout=PATIENCE) == "one"
        error = await raised(IdempotencyMismatch, other.call(topic, "two", idempotency_key="k", timeout=PATIENCE))
        assert error.key.endswith("/k")
        job = await other.send(topic, "three", idempotency_key="k")
        [(_, envelope)] = await dead_letters(other, service)
        assert (envelope.failure or {})["reason"] == "mismatch"
        await raised(IdempotencyMismatch, job.result(PATIENCE))
        assert await other.call(topic, "one", idempotency_key="k", timeout=PATIENCE) == "one"


async def check_a_key_that_is_at_work_waits_or_does_not(h: Harness) -> None:
    """`on_conflict`: given back until it is done, acked unrun, or refused."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    begun, go = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    def declare(name: str, on_conflict: Any) -> str:
        topic = f"{service}.{name}"

        @bus.handler(topic, idempotency=Idempotency(lease=1.0, on_conflict=on_conflict))
        async def work(text: str) -> str:
            ran.append(name)
            begun.set()
            await go.wait()
            return text

        return topic

    async with caller(h) as other:
        for name in ("wait", "skip", "raise"):
            declare(name, name)
        async with bus.worker(concurrency=4):
            for name in ("wait", "skip", "raise"):
                begun.clear()
                go.clear()
                ask = partial(other.call, f"{service}.{name}", "x", idempotency_key=name, timeout=PATIENCE)
                first = asyncio.create_task(ask())
                await asyncio.wait_for(begun.wait(), PATIENCE)
                second = asyncio.create_task(ask())
                if name != "wait":
                    await raised(IdempotencyConflict, second)
                go.set()
                assert await first == "x"
                assert name != "wait" or await second == "x"
        assert ran == ["wait", "skip", "raise"]


async def check_a_retry_keeps_its_key(h: Harness) -> None:
    """A failed attempt gives the key up for the next one, and its attempts are counted; what it sent has not left."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    sent: list[int] = []

    @bus.handler(f"{service}.work", retry=SOON, idempotency=Idempotency())
    async def work(ctx: Context) -> int:
        await ctx.send(f"{service}.other", ctx.attempt)
        if ctx.attempt < 3:
            raise OSError("not yet")
        return ctx.attempt

    @bus.handler(f"{service}.other")
    async def other_work(n: int) -> None:
        sent.append(n)

    async with bus.worker(), keeping(h) as other:
        job = await other.send(f"{service}.work", track=True)
        assert await job.result(PATIENCE) == 3
        assert (await job.info()).attempts == 3
        await eventually(lambda: sent == [3])


async def check_a_final_failure_is_answered_to_repeats(h: Harness) -> None:
    """Until its dead letter is sent back, which opens the key again."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    broken, ran = True, 0

    @bus.handler(f"{service}.work", retry=Retry(max_retries=0), idempotency=Idempotency())
    async def work(text: str) -> str:
        nonlocal ran
        ran += 1
        if broken:
            raise ValueError("out of paper")
        return text

    topic = f"{service}.work"
    async with bus.worker(), keeping(h) as other:
        job = await other.send(topic, "x", idempotency_key="k")
        assert "out of paper" in str(await raised(RemoteError, job.result(PATIENCE)))
        error = await raised(RemoteError, other.call(topic, "x", idempotency_key="k", timeout=PATIENCE))
        assert (error.message, ran) == ("out of paper", 1)
        broken = False
        await dead_letters(other, service)
        letters = await DeadLetters.find(other.transport, service)
        assert (await letters.replay(Selection())).done == 1
        await eventually(lambda: ran == 2)
        assert await job.result(PATIENCE) == "x"
        assert await other.call(topic, "x", idempotency_key="k", timeout=PATIENCE) == "x"
        assert ran == 2


async def check_nothing_runs_while_the_store_is_down(h: Harness) -> None:
    """Its message comes again when the store is back; handlers that need no store, on other queues, work on."""
    service = h.unique("svc")
    store: Any = Failing(own_store(h))
    bus = keeping(h, service=service, store=store)
    ran: list[str] = []

    @bus.handler(f"{service}.work", idempotency=Idempotency(), queue=h.unique("stored"))
    async def work(text: str) -> None:
        ran.append(text)

    @bus.handler(f"{service}.other")
    async def other_work(text: str) -> str:
        return text

    async with bus.worker(concurrency=2), caller(h) as other:
        store.fail("claim")
        await other.send(f"{service}.work", "kept")
        await eventually(lambda: store.did.count("claim") >= 2)
        assert await other.call(f"{service}.other", "works on", timeout=PATIENCE) == "works on"
        assert not ran
        store.down.clear()
        await eventually(lambda: ran == ["kept"])
        await eventually(lambda: bus.stats.handled == 2)
    assert ran == ["kept"]


async def check_a_result_that_cannot_be_recorded_is_not_told(h: Harness) -> None:
    """Complete, then send, then reply, then ack: the first that fails stops the rest, and the message comes again."""
    service = h.unique("svc")
    store: Any = Failing(own_store(h))
    bus = keeping(h, service=service, store=store)
    runs = 0

    @bus.handler(f"{service}.work", idempotency=Idempotency(lease=0.3))
    async def work(text: str) -> int:
        nonlocal runs
        runs += 1
        return runs

    async with bus.worker(concurrency=2), caller(h) as other:
        store.fail("complete", "extend")
        call = asyncio.create_task(other.call(f"{service}.work", "x", idempotency_key="k", timeout=3 * PATIENCE))
        await eventually(lambda: runs == 1)
        await eventually(lambda: store.did.count("complete") >= 2)
        assert not call.done()
        store.down.clear()
        assert await call >= 1


async def check_a_lost_claim_cancels_its_handler(h: Harness) -> None:
    """And its outcome is refused: somebody else may be at it."""
    service = h.unique("svc")
    store: Any = Failing(own_store(h))
    bus = keeping(h, service=service, store=store)
    ends: list[str] = []

    @bus.handler(f"{service}.work", idempotency=Idempotency(lease=0.3))
    async def work(text: str) -> str:
        if not ends:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append("cancelled")
                store.down.clear()
                raise
        ends.append("done")
        return text

    async with bus.worker(concurrency=1), keeping(h, store=own_store(h)) as other:
        store.down["extend"] = ClaimLost("the key")
        job = await other.send(f"{service}.work", "x", track=True)
        assert await job.result(3 * PATIENCE) == "x"
        assert ends == ["cancelled", "done"]
        assert bus.stats.claims_lost == 1


async def check_a_bare_message_has_a_key_as_well(h: Harness) -> None:
    """From elsewhere, without metadata, delivered twice: the key in its payload makes it one."""
    service = h.unique("svc")
    bus = keeping(h, service=service)
    ran: list[int] = []

    @bus.handler(f"{service}.work", idempotency=Idempotency(key=lambda order: order["id"], lease=1.0))
    async def work(order: dict[str, int]) -> None:
        ran.append(order["id"])

    async with bus.worker(), caller(h) as other:
        assert isinstance(other.transport, Inspectable)

        for body in (b'{"id": 7, "a": 1}', b'{"a":1,"id":7}'):
            await other.transport.send(ToQueue(service), Message(f"{service}.work", body))
        await eventually(lambda: bus.stats.repeats == 1)
        assert ran == [7]

        async def is_empty() -> bool:  # a repeat is counted before its message is acked
            return await waiting(other, service) == (0, 0)

        await eventually(is_empty)
