"""Whoever is cancelled, at whatever moment, leaves RabbitMQ and everybody else as they would be without him."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from busline import Bus
from busline.errors import BuslineError, ConnectionLost, TransportClosed
from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.transports.amqp import AmqpTransport, from_url
from busline.transports.amqp.errands import Errands
from busline.transports.amqp.registry import LOCK
from tests.proxy import Proxy
from tests.servers import Rabbit

LATENCY = 0.004
"""Seconds each way, so that there is a moment in which to be cancelled between any two frames."""
ROUNDS = 30


def name(prefix: str) -> str:
    """Nobody else's."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
async def no_task_is_left_behind() -> AsyncIterator[None]:
    """When everything is closed."""
    yield
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("busline")] == []


@asynccontextmanager
async def opened(rabbit: Rabbit, *, far: bool = False) -> AsyncIterator[AmqpTransport]:
    """A client; `far`: behind a wire that takes its time."""
    proxy = Proxy(rabbit.port, LATENCY)
    await proxy.start()
    url = rabbit.url.replace(f":{rabbit.port}/", f":{proxy.port}/") if far else rabbit.url
    transport = from_url(url)
    try:
        await transport.open()
        yield transport
    finally:
        await transport.aclose()
        await proxy.close()


async def cancelled(work: Coroutine[Any, Any, object], after: float) -> None:
    """Let it run for so many seconds; errors other than ours are a fault."""
    task = asyncio.create_task(work)
    await asyncio.sleep(after)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, BuslineError):
        await task


async def test_whoever_is_cancelled_while_it_attaches_keeps_nobody_else_from_it(rabbit: Rabbit) -> None:
    chance, service = random.Random(1), name("svc")
    async with opened(rabbit, far=True) as unlucky, opened(rabbit) as other:
        for number in range(ROUNDS // 2):
            spec = QueueSpec(f"{service}.{number % 3}", service, frozenset({f"{service}.{number}"}))
            await cancelled(unlucky.attach(spec), chance.uniform(0, 0.15))
            async with asyncio.timeout(10):
                await other.attach(QueueSpec(service, service, frozenset({service})))
        async with asyncio.timeout(10):
            await unlucky.attach(QueueSpec(f"{service}.0", service))
            stats = {each.name for each in await other.stats()}
        assert {service, f"{service}.0"} <= stats


async def test_a_call_whose_deadline_passes_while_it_looks_around_keeps_nobody_from_attaching(rabbit: Rabbit) -> None:
    service, proxy = name("svc"), Proxy(rabbit.port, LATENCY)
    await proxy.start()
    async with Bus(rabbit.url.replace(f":{rabbit.port}/", f":{proxy.port}/")) as caller, opened(rabbit) as other:
        for number in range(ROUNDS):  # nobody owns the topic, so the caller looks into the register
            with pytest.raises(BuslineError):
                await caller.call(f"{service}.{number}", timeout=0.004 * (1 + number))
            async with asyncio.timeout(10):
                await other.attach(QueueSpec(service, service))
        spec = QueueSpec(service, service, frozenset({f"{service}.here"}))
        await other.attach(spec)
        consumer = await other.consume(service, slots=1)
        call = asyncio.create_task(caller.call(f"{service}.here", timeout=10))
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
        assert delivery.message.reply_to is not None
        reply = Message("", b"1", '{"v":1,"status":"ok"}', correlation_id=delivery.message.correlation_id)
        assert await other.reply(delivery.message.reply_to, reply)
        assert await call == 1
        await consumer.ack(delivery)
    await proxy.close()


async def test_a_lock_that_cannot_be_given_back_goes_with_its_connection(
    rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(rabbit) as broken, opened(rabbit) as other:
        await broken.attach(QueueSpec(name("queue"), "svc"))
        session = broken._in.current()
        assert session is not None
        delete = type(await session.channel(lasting=False)).queue_delete

        async def never(self: Any, queue: str, *rest: Any, **more: Any) -> Any:
            if queue == LOCK:
                raise TimeoutError
            return await delete(self, queue, *rest, **more)

        with monkeypatch.context() as patched:
            patched.setattr("aiormq.channel.Channel.queue_delete", never)
            with pytest.raises(ConnectionLost):
                await broken.attach(QueueSpec(name("queue"), "svc"))
        async with asyncio.timeout(10):
            await other.attach(QueueSpec(name("queue"), "svc"))
            await broken.attach(QueueSpec(name("queue"), "svc"))


async def test_a_cancelled_ack_takes_nobodys_messages_away(rabbit: Rabbit) -> None:
    chance, queue = random.Random(3), name("queue")
    async with opened(rabbit, far=True) as transport:
        await transport.attach(QueueSpec(queue, "svc", frozenset({queue})))
        consumer = await transport.consume(queue, slots=2)
        await transport.send(ToTopic(queue), *[Message(queue, b"%d" % number) for number in range(ROUNDS + 1)])
        (kept,) = await asyncio.wait_for(consumer.receive(1), 10)
        seen = {kept.message.body}
        for _ in range(ROUNDS):
            (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
            assert delivery.deliveries == 1, "it came again, so its channel was closed"
            seen.add(delivery.message.body)
            await cancelled(consumer.ack(delivery, confirm=True), chance.uniform(0, 4 * LATENCY))
        await consumer.ack(kept, confirm=True)
        assert len(seen) == ROUNDS + 1
        assert consumer.stale_settlements == 0
        await consumer.aclose()
        assert await ready(transport, queue) == 0


async def ready(transport: AmqpTransport, queue: str) -> int:
    """Messages that wait in it."""
    return next(each.ready for each in await transport.stats() if each.name == queue)


async def test_a_cancelled_release_gives_the_message_back_all_the_same(rabbit: Rabbit) -> None:
    chance, queue = random.Random(4), name("queue")
    async with opened(rabbit, far=True) as transport:
        await transport.attach(QueueSpec(queue, "svc", frozenset({queue})))
        consumer = await transport.consume(queue, slots=1)
        await transport.send(ToTopic(queue), Message(queue, b"1"))
        for _ in range(ROUNDS):
            (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
            assert delivery.deliveries == 1, "a release is no failure"
            await cancelled(consumer.release(delivery), chance.uniform(0, 4 * LATENCY))
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
        await consumer.ack(delivery, confirm=True)
        await consumer.aclose()
        assert await ready(transport, queue) == 0


async def test_consumers_closed_while_they_begin_cost_neither_channels_nor_the_connection(rabbit: Rabbit) -> None:
    chance, queue = random.Random(5), name("queue")
    async with opened(rabbit, far=True) as transport:
        await transport.attach(QueueSpec(queue, "svc", frozenset({queue})))
        link = transport._in
        session = link.current()
        assert session is not None
        channels = len(session.wire.channels)  # type: ignore[attr-defined]  # of the library's own class
        for _ in range(ROUNDS):
            consumer = await transport.consume(queue, slots=3)
            asking = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(chance.uniform(0, 6 * LATENCY))
            await cancelled(consumer.aclose(), chance.uniform(0, 6 * LATENCY))
            with pytest.raises(TransportClosed):
                await consumer.receive(1)
            await asyncio.wait([asking])
            assert isinstance(asking.exception(), TransportClosed)
            await consumer.aclose()
        async with asyncio.timeout(10):
            while len(session.wire.channels) > channels:  # type: ignore[attr-defined]  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert link.current() is session, "the connection was lost"
        await transport.send(ToTopic(queue), Message(queue, b"1"))
        consumer = await transport.consume(queue, slots=1)
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
        assert delivery.deliveries == 1
        await consumer.ack(delivery)


async def test_any_cancellation_leaves_the_connections_as_they_were(rabbit: Rabbit) -> None:
    chance, queue = random.Random(6), name("queue")
    async with opened(rabbit, far=True) as transport:
        await transport.attach(QueueSpec(queue, "svc", frozenset({queue})))
        sessions = [transport._in.current(), transport._out.current()]
        message = Message(queue, b"1")

        async def inbox() -> None:
            await (await transport.open_inbox(lambda reply: None, lambda: None)).aclose()

        works = [
            lambda: transport.send(ToTopic(queue), message),
            lambda: transport.send(ToQueue(queue), message),
            lambda: transport.send(ToQueue(queue), Message(queue, b"1", delay=0.1 * chance.randrange(1, 9))),
            lambda: transport.publish(queue, message),
            lambda: transport.peek(queue, 3),
            lambda: transport.stats(),
            lambda: transport.move(queue, queue, 2),
            lambda: transport.detach(name("unknown"), delete=True),
            inbox,
        ]
        for _ in range(4 * ROUNDS):
            await cancelled(chance.choice(works)(), chance.uniform(0, 12 * LATENCY))
        async with asyncio.timeout(20):
            while True:  # an inbox whose opener was cancelled does not stand in the way
                with contextlib.suppress(BuslineError):
                    await inbox()
                    break
        assert [transport._in.current(), transport._out.current()] == sessions, "a connection was lost"
        await transport.purge(queue)


async def test_what_the_library_logs_of_an_errand_that_ends_early_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """It warns of each method that is cancelled. A driver is silent."""

    async def work() -> None:
        logging.getLogger("aiormq.channel").warning("a method was cancelled")

    await Errands("somewhere").run(work())
    assert caplog.messages == []
    logging.getLogger("aiormq.channel").warning("the process's own connection")
    assert caplog.messages == ["the process's own connection"]
