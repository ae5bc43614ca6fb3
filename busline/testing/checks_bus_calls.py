"""Calls over one transport: answers, errors, deadlines, and the death of a worker."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from busline.bus import Bus
from busline.context import Context
from busline.errors import (
    CallTimeout,
    NoHandler,
    RemoteError,
    TransportClosed,
)
from busline.testing.harness import Harness
from busline.testing.scenes import (
    Answer,
    Question,
    caller,
    dead_letters,
    eventually,
    raised,
    waiting,
)
from busline.topics import Topic


async def check_a_call_returns_what_the_handler_returned(h: Harness) -> None:
    """Typed by Topic, by `returns`, or plain JSON; None only if the handler returned None."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    topic = Topic(f"{service}.ask", Question, Answer)

    @bus.handler(topic)
    async def ask(question: Question) -> Answer:
        return Answer(number=question.number + 1)

    @bus.handler(f"{service}.none")
    async def none() -> None: ...

    async with bus.worker(), caller(h) as other:
        assert await other.call(topic, Question(number=1)) == Answer(number=2)
        assert await other.call(topic.name, {"number": 2}, returns=Answer) == Answer(number=3)
        assert await other.call(topic.name, {"number": 3}) == {"number": 4}
        assert await other.call(f"{service}.none") is None


async def check_many_calls_in_flight_each_get_their_own_answer(h: Harness) -> None:
    """500 at once through one inbox."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.double")
    async def double(number: int) -> int:
        await asyncio.sleep(0.001 * (number % 7))
        return number * 2

    async with bus.worker(concurrency=20), caller(h) as other:
        answers = await asyncio.gather(*(other.call(f"{service}.double", n) for n in range(500)))
        assert answers == [2 * n for n in range(500)]
        if not h.name.startswith("sqs"):  # whose queues, that of the replies too, may give a message twice
            assert other.stats.late_replies == 0


async def check_a_call_to_nobody_fails_at_once(h: Harness) -> None:
    """NoHandler in a round trip, not a timeout; the error says where was asked."""
    async with caller(h) as bus:
        began = time.monotonic()
        topic = h.unique("nobody")
        error = await raised(NoHandler, bus.call(topic, timeout=30))
        assert time.monotonic() - began < 5
        assert error.topic == topic
        assert bus.transport.where in str(error)
        await raised(NoHandler, bus.send(topic))
        await bus.publish(topic)


async def check_a_call_that_nobody_answers_times_out_as_queued(h: Harness) -> None:
    """The owner is known and away: CallTimeout at the deadline, which says that nobody had started."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)

    @bus.handler(f"{service}.later")
    async def later() -> None: ...

    async with bus.worker():
        pass
    async with caller(h) as other:
        began = time.monotonic()
        error = await raised(CallTimeout, other.call(f"{service}.later", timeout=0.3))
        assert 0.29 <= time.monotonic() - began < 3
        assert (error.state, error.where) == ("queued", other.transport.where)
        assert isinstance(error, TimeoutError)


async def check_a_call_that_takes_too_long_times_out_as_started(h: Harness) -> None:
    """CallTimeout tells a slow handler from a missing worker; the late reply is counted and harms nobody."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    release = asyncio.Event()

    @bus.handler(f"{service}.slow")
    async def slow() -> None:
        await release.wait()

    async with bus.worker(), caller(h) as other:
        error = await raised(CallTimeout, other.call(f"{service}.slow", timeout=2))
        assert error.state == "started"
        release.set()
        await eventually(lambda: other.stats.late_replies == 1)


async def check_a_handlers_exception_arrives_at_once(h: Harness) -> None:
    """As RemoteError with its type and text; never as a timeout, never retried by default."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    runs = []

    @bus.handler(f"{service}.fail")
    async def fail() -> None:
        runs.append(1)
        raise LookupError("no such order")

    async with bus.worker(), caller(h) as other:
        error = await raised(RemoteError, other.call(f"{service}.fail", timeout=30))
        assert (error.type, error.message, runs) == ("LookupError", "no such order", [1])


async def check_a_registered_exception_arrives_as_itself(h: Harness) -> None:
    """With its arguments and attributes; a class that only one side registered arrives as RemoteError."""

    class OutOfStock(Exception):
        def __init__(self, sku: str, left: int) -> None:
            super().__init__(sku, left)
            self.sku = sku

    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    bus.error("order.out_of_stock")(OutOfStock)

    @bus.handler(f"{service}.buy")
    async def buy() -> None:
        raise OutOfStock("A1", 3)

    async with bus.worker(), caller(h) as other:
        assert (await raised(RemoteError, other.call(f"{service}.buy"))).type == "order.out_of_stock"
        other.error("order.out_of_stock")(OutOfStock)
        error = await raised(OutOfStock, other.call(f"{service}.buy"))
        assert (error.sku, error.args) == ("A1", ("A1", 3))


async def check_nested_calls_inherit_what_is_left_of_the_deadline(h: Harness) -> None:
    """And the conversation: correlation and causation follow the chain."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    seen: dict[str, Context] = {}

    @bus.handler(f"{service}.outer")
    async def outer(ctx: Context) -> Any:
        seen["outer"] = ctx
        return await bus.call(f"{service}.inner", timeout=1000)

    @bus.handler(f"{service}.inner")
    async def inner(ctx: Context) -> str:
        seen["inner"] = ctx
        return "ok"

    async with bus.worker(), caller(h) as other:
        assert await other.call(f"{service}.outer", timeout=5) == "ok"
        one, two = seen["outer"], seen["inner"]
        assert one.deadline is not None
        assert two.deadline is not None
        assert two.deadline <= one.deadline + 0.001
        assert (two.causation_id, two.correlation_id) == (one.id, one.id)
        assert one.causation_id is None


async def check_an_expired_call_is_not_run(h: Harness) -> None:
    """It is dropped and counted, and is no dead letter."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service, max_clock_skew=0)
    runs = []

    @bus.handler(f"{service}.work")
    async def work(number: int) -> None:
        runs.append(number)

    async with bus.worker():
        pass
    async with caller(h) as other:
        await raised(CallTimeout, other.call(f"{service}.work", 1, timeout=0.05))
        async with bus.worker():
            await other.call(f"{service}.work", 2)
            assert runs == [2]
            assert await waiting(other, f"{service}.dead") == (0, 0)


async def check_a_cancelled_caller_leaves_nothing_behind(h: Harness) -> None:
    """Its entry is gone at once, the reply that comes later is counted."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service)
    started, release = asyncio.Event(), asyncio.Event()

    @bus.handler(f"{service}.wait")
    async def wait() -> None:
        started.set()
        await release.wait()

    async with bus.worker(), caller(h) as other:
        call = asyncio.ensure_future(other.call(f"{service}.wait"))
        await started.wait()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert other.calls_in_flight == 0
        release.set()
        await eventually(lambda: other.stats.late_replies == 1)


async def check_a_call_survives_the_death_of_its_worker(h: Harness) -> None:
    """The first holder vanishes without a word; another worker answers the same call."""
    service = h.unique("svc")
    started = asyncio.Event()
    doomed_transport = h.transport()
    doomed, heir = Bus(doomed_transport, service=service), Bus(h.transport(), service=service)

    @doomed.handler(f"{service}.work")
    async def hang() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    @heir.handler(f"{service}.work")
    async def work(ctx: Context) -> list[Any]:
        return [ctx.attempt, ctx.redelivered]

    async with caller(h) as other:
        attached = asyncio.Event()
        serving = asyncio.ensure_future(_serve(doomed, attached))
        await attached.wait()
        call = asyncio.ensure_future(other.call(f"{service}.work", timeout=60))
        await started.wait()
        await h.kill(doomed_transport)
        async with heir.worker():
            await h.pass_time(h.takeover)
            assert await call == [1, True]
        await raised(TransportClosed, serving)


async def _serve(bus: Bus, attached: asyncio.Event) -> None:
    async with bus.worker(drain_timeout=0) as worker:
        attached.set()
        await worker.wait()


async def check_a_sibling_that_lacks_the_topic_does_no_harm(h: Harness) -> None:
    """In a rolling deploy the old worker gives the new topic's messages back until the new one takes them."""
    service = h.unique("svc")
    # Where delays are whole seconds each is a toss-up, and of 50 messages one loses the first ten in a run of twenty.
    old, new = (Bus(h.transport(), service=service, unknown_grace=18.0) for _ in range(2))

    @old.handler(f"{service}.old")
    async def known() -> None: ...

    @new.handler(f"{service}.old")
    async def also() -> None: ...

    @new.handler(f"{service}.new")
    async def fresh(number: int) -> int:
        return number

    async with old.worker(), new.worker(), caller(h) as other:
        answers = await asyncio.gather(*(other.call(f"{service}.new", n, timeout=60) for n in range(50)))
        assert answers == list(range(50))


async def check_a_topic_that_no_worker_knows_ends_as_no_handler(h: Harness) -> None:
    """Sent straight to a queue: a call gets NoHandler after the grace, a job becomes a dead letter."""
    service = h.unique("svc")
    bus = Bus(h.transport(), service=service, unknown_grace=0.1)

    @bus.handler(f"{service}.known")
    async def known() -> None: ...

    async with bus.worker(), caller(h) as other:
        await raised(NoHandler, other.call(f"{service}.unknown", queue=service, timeout=20))
        await other.send(f"{service}.unknown", queue=service)
        [(_, envelope)] = await dead_letters(other, service)
        assert envelope.failure is not None
        assert envelope.failure["reason"] == "unknown_topic"
