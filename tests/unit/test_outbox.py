"""What a handler sends leaves when it has succeeded, in order, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest

from busline import Bus, Context, Reject, RemoteError, Retry
from busline.clock import SystemClock
from busline.codec import decode
from busline.errors import CodecError, ConfigurationError, ConnectionLost, MessageTooLarge, NoHandler, QueueNotFound
from busline.jobs import Job, Jobs
from busline.message import Destination, Message, ToQueue, ToTopic
from busline.outbox import Departure, Outbox
from busline.transports.base import Inspectable

numbers = count()
JOBS = Jobs(None, None, lambda body, topic: Exception(), SystemClock())  # type: ignore[arg-type]  # none is asked for


class Broker:
    """Keeps what is sent; refuses what it was told to."""

    def __init__(self, **refused: Exception) -> None:
        self.refused = refused
        self.sent: list[tuple[Destination | None, str]] = []

    async def send(self, to: Destination, message: Message) -> None:
        if isinstance(to, ToTopic) and message.topic in self.refused:
            raise self.refused[message.topic]
        self.sent.append((to, message.topic))

    async def publish(self, topic: str, message: Message) -> bool:
        if topic in self.refused:
            raise self.refused[topic]
        self.sent.append((None, topic))
        return True


def departure(topic: str, to: Destination | None = None, fallback: str | None = None) -> Departure:
    return Departure(Message(topic, b""), to, Job("i", topic, JOBS), fallback)


async def leave(broker: Broker, *departures: Departure) -> Outbox:
    outbox = Outbox()
    for each in departures:
        outbox.add(each)
    await outbox.flush(broker)  # type: ignore[arg-type]  # all that it uses of a transport
    return outbox


async def test_everything_leaves_in_order_and_once() -> None:
    broker = Broker()
    outbox = await leave(broker, departure("a", ToTopic("a")), departure("b"), departure("c", ToQueue("q")))
    assert broker.sent == [(ToTopic("a"), "a"), (None, "b"), (ToQueue("q"), "c")]
    assert len(outbox) == 0
    await outbox.flush(broker)  # type: ignore[arg-type]  # as above
    assert len(broker.sent) == 3


async def test_what_nobody_owns_goes_to_the_fallback() -> None:
    broker = Broker(a=NoHandler("a", "here"))
    await leave(broker, departure("a", ToTopic("a"), "default"))
    assert broker.sent == [(ToQueue("default"), "a")]


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (NoHandler("a", "here"), departure("a", ToTopic("a"))),
        (ConnectionLost("away"), departure("a", ToTopic("a"), "default")),
        (ConnectionLost("away"), departure("a")),
    ],
)
async def test_the_first_that_cannot_leave_keeps_the_rest(error: Exception, given: Departure) -> None:
    broker, outbox = Broker(a=error), Outbox()
    for each in (departure("before"), given, departure("behind")):
        outbox.add(each)
    with pytest.raises(type(error)):
        await outbox.flush(broker)  # type: ignore[arg-type]  # all that it uses of a transport
    assert [topic for _, topic in broker.sent] == ["before"]
    assert len(outbox) == 3


# -- through a worker -------------------------------------------------------------------------------------------------


@pytest.fixture
def bus() -> Bus:
    return Bus(f"memory://outbox-{next(numbers)}", service="svc", retry=Retry(max_retries=0))


@asynccontextmanager
async def serving(bus: Bus) -> AsyncIterator[None]:
    """A worker, and a queue `sink` of which nothing is taken."""
    sink = Bus(bus.url, service="sink")
    sink.handler("note", queue="sink")(lambda text: None)
    async with bus.worker(concurrency=1):
        async with sink.worker():
            pass
        yield


async def notes(bus: Bus) -> list[str]:
    assert isinstance(bus.transport, Inspectable)
    return [decode(message.body) for message in await bus.transport.peek("sink", 100)]


async def test_a_handler_that_fails_has_sent_nothing(bus: Bus) -> None:
    errors: list[Exception | None] = [KeyError("x"), Reject("y"), None]

    @bus.handler("work")
    async def work(number: int, ctx: Context) -> None:
        await ctx.send("note", f"kept {number}")
        await ctx.publish("happened")
        await ctx.send("note", f"immediate {number}", immediate=True)
        if error := errors[number]:
            raise error

    async with serving(bus):
        for number, error in enumerate(errors):
            if error is None:
                await bus.call("work", number, timeout=5)
            else:
                with pytest.raises(RemoteError):
                    await bus.call("work", number, timeout=5)
        assert await notes(bus) == ["immediate 0", "immediate 1", "immediate 2", "kept 2"]


async def test_each_immediate_retry_begins_with_an_empty_outbox(bus: Bus) -> None:
    @bus.handler("work", retry=Retry(max_retries=0, immediate=2))
    async def work(ctx: Context) -> None:
        await ctx.send("note", f"of attempt {ctx.attempt}")
        if ctx.attempt < 3:
            raise KeyError

    async with serving(bus):
        await bus.call("work", timeout=5)
        assert await notes(bus) == ["of attempt 3"]


async def test_what_was_nacked_sends_nothing(bus: Bus) -> None:
    done = asyncio.Event()

    @bus.handler("work")
    async def work(ctx: Context) -> None:
        await ctx.send("note", "kept")
        await ctx.nack(requeue=False)

    @bus.handler("work.done")
    async def after() -> None:
        done.set()

    async with serving(bus):
        await bus.send("work")
        await bus.send("work.done")
        await asyncio.wait_for(done.wait(), 5)
        assert await notes(bus) == []


async def test_what_cannot_leave_is_the_handlers_failure(bus: Bus) -> None:
    @bus.handler("work")
    async def work(options: dict[str, Any], ctx: Context) -> str:
        await ctx.send(options.pop("topic"), "x", **options)
        return "sent"

    async with serving(bus):
        for options, kind in (
            ({"topic": "nobody.owns"}, NoHandler),
            ({"topic": "note", "queue": "gone"}, QueueNotFound),
        ):
            with pytest.raises(RemoteError) as caught:
                await bus.call("work", options, timeout=5)
            assert caught.value.type == kind.__name__
        assert await bus.call("work", {"topic": "note"}, timeout=5) == "sent"


async def test_what_cannot_be_sent_is_an_error_where_it_is_written(bus: Bus) -> None:
    seen: list[type[Exception]] = []

    @bus.handler("work")
    async def work(ctx: Context) -> None:
        for payload, options in (
            (object(), {}),
            ("x" * 2_000_000, {}),
            ("x", {"ttl": -1}),
            ("x", {"delay": float("inf")}),
        ):
            try:
                await ctx.send("note", payload, **options)
            except (CodecError, MessageTooLarge, ConfigurationError) as error:
                seen.append(type(error))

    async with serving(bus):
        await bus.call("work", timeout=5)
        assert seen == [CodecError, MessageTooLarge, ConfigurationError, ConfigurationError]
        assert await notes(bus) == []
