"""Jobs over one transport: retries, dead letters, hostile messages, delay and priority."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar

from busline.bus import Bus
from busline.context import Context
from busline.errors import (
    ConfigurationError,
    MessageTooLarge,
    Reject,
    RemoteError,
    RetryLater,
)
from busline.message import Message, ToQueue
from busline.options import Queue
from busline.retry import Retry
from busline.testing.harness import Harness
from busline.testing.scenes import (
    PATIENCE,
    SOON,
    Question,
    caller,
    dead_letters,
    eventually,
    raised,
    waiting,
)


async def check_a_failing_job_is_retried_and_then_a_dead_letter(h: Harness) -> None:
    """Same id, attempts counted, and the story of its failure beside the untouched body."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    attempts = []

    @bus.handler(f"{service}.work", retry=SOON)
    async def work(question: Question, ctx: Context) -> None:
        attempts.append((ctx.id, ctx.attempt))
        raise ValueError("always")

    async with bus.worker(), caller(h) as other:
        job = await other.send(f"{service}.work", Question(number=7), headers={"tenant": "ä"})
        [(message, envelope)] = await dead_letters(other, service)
        assert attempts == [(job.id, 1), (job.id, 2), (job.id, 3)]
        failure = envelope.failure or {}
        assert (envelope.id, failure["reason"], failure["type"]) == (job.id, "failed", "ValueError")
        assert (failure["attempts"], failure["message"], failure["queue"]) == (3, "always", service)
        assert "ValueError: always" in failure["traceback"]
        assert failure["first_at"] <= failure["last_at"]
        assert Question.model_validate_json(message.body).number == 7
        assert message.headers == {"tenant": "ä"}


async def check_a_job_that_recovers_is_no_dead_letter(h: Harness) -> None:
    """Fails twice, succeeds the third time; RetryLater counts as a failure with a delay of its own."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    done = asyncio.Event()

    @bus.handler(f"{service}.work", retry=SOON)
    async def work(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise OSError("once")
        if ctx.attempt == 2:
            raise RetryLater(0.01)
        done.set()

    async with bus.worker(), caller(h) as other:
        await other.send(f"{service}.work")
        await asyncio.wait_for(done.wait(), PATIENCE)
        await eventually(lambda: bus.stats.handled == 1)
        assert bus.stats.retried == 2
        assert await waiting(other, f"{service}.dead") == (0, 0)


async def check_a_rejected_job_is_a_dead_letter_at_once(h: Harness) -> None:
    """`raise Reject(reason)` overrides the policy."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.work", retry=Retry(max_retries=100))
    async def work() -> None:
        raise Reject("malformed invoice")

    async with bus.worker(), caller(h) as other:
        await other.send(f"{service}.work")
        [(_, envelope)] = await dead_letters(other, service)
        failure = envelope.failure or {}
        assert (failure["reason"], failure["message"]) == ("rejected", "malformed invoice")


async def check_bad_messages_never_wedge_a_worker(h: Harness) -> None:
    """Undecodable, invalid, oversized and foreign-version messages are dead letters with a reason each; the good
    message behind them is handled."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service, max_body_bytes=10_000)
    topic = f"{service}.work"

    @bus.handler(topic)
    async def work(question: Question) -> int:
        return question.number

    bad = [
        Message(topic, b"\xff\xfe not json"),
        Message(topic, b'{"number": "many"}'),
        Message(topic, b"[" * 9_000),
        Message(topic, b'"' + b"x" * 10_001 + b'"'),
        Message(topic, b'{"number": 1}', meta="{broken"),
        Message(topic, b'{"number": 1}', meta='{"v": 99, "id": "a"}'),
        Message(topic, b'{"number": 1}', meta='{"v": 1, "id": 5}'),
        Message(topic, b""),
    ]
    async with bus.worker(concurrency=1), caller(h) as other:
        await other.transport.send(ToQueue(service), *bad)
        assert await other.call(topic, Question(number=5)) == 5
        letters = await dead_letters(other, service, len(bad))
        reasons = sorted((envelope.failure or {})["reason"] for _, envelope in letters)
        assert reasons == ["invalid", "invalid", "too_large", *["undecodable"] * 5]


async def check_a_bad_call_is_answered_with_what_is_wrong(h: Harness) -> None:
    """The caller learns which field; what is too large is refused before it is sent."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.ask")
    async def ask(question: Question) -> object:
        return object()

    async with bus.worker(), caller(h) as other:
        error = await raised(RemoteError, other.call(f"{service}.ask", {"number": "many"}))
        assert error.type == "busline.invalid"
        assert "number" in error.message
        await raised(MessageTooLarge, other.call(f"{service}.ask", "x" * 2_000_000))
        unserialisable = await raised(RemoteError, other.call(f"{service}.ask", {"number": 1}))
        assert "object" in unserialisable.message


async def check_a_plain_function_runs_in_a_thread(h: Harness) -> None:
    """It may block; the loop does not."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.block")
    def block(seconds: float, times: int = 2) -> float:
        time.sleep(seconds)
        return seconds * times

    @bus.handler(f"{service}.quick")
    async def quick() -> str:
        return "quick"

    async with bus.worker(), caller(h) as other:
        blocked = asyncio.ensure_future(other.call(f"{service}.block", {"seconds": 0.3}))
        assert await other.call(f"{service}.quick") == "quick"
        assert not blocked.done()
        assert await blocked == 0.6


async def check_context_variables_do_not_leak_between_messages(h: Harness) -> None:
    """What one handler sets, the next on the same slot does not see; within one message it stays."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    @bus.handler(f"{service}.who")
    async def who(name: str) -> list[str]:
        before = tenant.get()
        tenant.set(name)
        await asyncio.sleep(0)
        return [before, tenant.get()]

    async with bus.worker(concurrency=1), caller(h) as other:
        for name in ("a", "b"):
            assert await other.call(f"{service}.who", name) == ["nobody", name]


async def check_a_handler_that_raises_beyond_exception_is_only_a_failure(h: Harness) -> None:
    """SystemExit and a CancelledError of its own making neither stop the worker nor lose the slot."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.exit")
    async def leave(kind: str) -> None:
        raise {"exit": SystemExit(3), "cancel": asyncio.CancelledError("own"), "stop": StopAsyncIteration()}[kind]

    async with bus.worker(concurrency=1), caller(h) as other:
        for kind in ("exit", "cancel", "stop", "exit"):
            await raised(RemoteError, other.call(f"{service}.exit", kind, timeout=10))


async def check_an_urgent_job_comes_first(h: Harness) -> str | None:
    """Where the queue that a handler asks for can know priorities; else its worker does not start."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    order: list[str] = []

    @bus.handler(f"{service}.work", queue=Queue(service, max_priority=9))
    async def work(name: str) -> None:
        order.append(name)

    try:
        async with bus.worker():
            pass
    except ConfigurationError as refused:
        assert "priorit" in str(refused)  # noqa: PT017  # free of pytest
        return "priorities"
    async with caller(h) as other:
        for name, priority in (("normal", 0), ("urgent", 9), ("important", 5)):
            await other.send(f"{service}.work", name, priority=priority)
        async with bus.worker(concurrency=1):
            await eventually(lambda: len(order) == 3)
    assert order == ["urgent", "important", "normal"]
    return None


async def check_delay_and_ttl_of_a_job(h: Harness) -> None:
    """Later, and not at all."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service, max_clock_skew=0.0)
    began: dict[str, float] = {}

    @bus.handler(f"{service}.work")
    async def work(name: str) -> None:
        began[name] = time.monotonic()

    async with bus.worker():
        pass
    async with caller(h) as other:
        await other.send(f"{service}.work", "expired", ttl=0.05)
        sent = time.monotonic()
        await other.send(f"{service}.work", "delayed", delay=2.5)
        await other.send(f"{service}.work", "normal")
        await asyncio.sleep(0.1)
        async with bus.worker(concurrency=1):
            await eventually(lambda: len(began) == 2)
            assert began.keys() == {"normal", "delayed"}
            assert began["delayed"] - sent > 2.4
            [(_, envelope)] = await dead_letters(other, service)
            assert (envelope.failure or {})["reason"] == "expired"
