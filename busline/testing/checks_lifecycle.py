"""Opening and closing, in any order and at any time."""

from __future__ import annotations

import asyncio

from busline.errors import TransportClosed
from busline.message import Message, QueueSpec, ToQueue
from busline.testing.harness import Harness
from busline.testing.steps import client, eventually, join, line, prompt, raises, started
from busline.transports.base import Transport


async def check_opening_twice_is_opening_once(h: Harness) -> None:
    """`open` is idempotent: the second one leaves what the first one made."""
    async with line(h) as one:
        await one.transport.open()
        await one.send(b"1")
        assert len(await one.take()) == 1


async def check_closing_twice_is_closing_once(h: Harness) -> None:
    """`aclose` is idempotent, for consumers, inboxes and transports, inner ones first or last."""
    async with line(h) as one:
        inbox = await one.transport.open_inbox(lambda _: None, lambda: None)
        for closing in (one.consumer, one.consumer, inbox, inbox, one.transport, one.transport, one.consumer, inbox):
            await prompt(closing.aclose())


async def check_closing_what_was_never_opened_is_harmless(h: Harness) -> None:
    """`aclose` before `open` does nothing, and raises nothing."""
    transport = h.transport()
    await prompt(transport.aclose())
    await prompt(transport.aclose())


async def check_use_before_open_is_refused(h: Harness) -> None:
    """Every method that needs the broker raises `TransportClosed` before `open`."""
    await _refuses_everything(h.transport())


async def check_use_after_close_is_refused(h: Harness) -> None:
    """Every method that needs the broker raises `TransportClosed` after `aclose`."""
    async with client(h) as transport:
        await transport.aclose()
        await _refuses_everything(transport)


async def _refuses_everything(transport: Transport) -> None:
    message = Message("a.topic", b"1")
    await raises(TransportClosed, transport.attach(QueueSpec("queue")))
    await raises(TransportClosed, transport.detach("queue"))
    await raises(TransportClosed, transport.send(ToQueue("queue"), message))
    await raises(TransportClosed, transport.publish("a.topic", message))
    await raises(TransportClosed, transport.consume("queue", slots=1))
    await raises(TransportClosed, transport.open_inbox(lambda _: None, lambda: None))
    await raises(TransportClosed, transport.reply("address", message))


async def check_closing_the_transport_wakes_those_who_wait(h: Harness) -> None:
    """`aclose` works while tasks wait in `receive`; they get `TransportClosed`."""
    async with line(h) as one, started(one.consumer.receive(1)) as first, started(one.consumer.receive(1)) as second:
        await h.pass_time(0.02)
        await prompt(one.transport.aclose())
        await raises(TransportClosed, first)
        await raises(TransportClosed, second)


async def check_closing_a_consumer_wakes_those_who_wait(h: Harness) -> None:
    """A closed consumer raises `TransportClosed` to who waits in `receive`, and to who comes later."""
    async with line(h) as one, started(one.consumer.receive(1)) as waiting:
        await h.pass_time(0.02)
        await prompt(one.consumer.aclose())
        await raises(TransportClosed, waiting)
        await raises(TransportClosed, one.consumer.receive(1))


async def check_nothing_runs_after_close(h: Harness) -> None:
    """What a transport starts is named, and has ended when `aclose` returns."""
    before = asyncio.all_tasks()
    async with line(h) as one:
        await one.transport.open_inbox(lambda _: None, lambda: None)
        await one.send(b"1", b"2")
        await one.take()

        async def named() -> bool:
            return not [task for task in asyncio.all_tasks() - before if task.get_name().startswith("Task-")]

        await eventually(h, named)  # a client library may have one of its own for the moment of a request
    assert asyncio.all_tasks() == before


async def check_two_transports_see_one_broker(h: Harness) -> None:
    """What one client sends, another receives."""
    async with line(h) as one, client(h) as other:
        consumer = await join(other, one.spec)
        await one.consumer.aclose()
        await one.send(b"hello")
        (delivery,) = await prompt(consumer.receive(1))
        assert delivery.message.body == b"hello"


async def check_health_tells_whether_consumers_exist(h: Harness) -> None:
    """`health` is "healthy" while a consumer is at the broker, and is not once the transport is closed."""
    async with line(h) as one:

        async def healthy() -> bool:
            return one.transport.health().status == "healthy"

        await eventually(h, healthy)
        await one.transport.aclose()
        assert not await healthy()


async def check_where_is_for_people(h: Harness) -> None:
    """`where` names the broker, and two clients of one broker name it alike."""
    async with client(h) as one, client(h) as other:
        assert one.where
        assert one.where == other.where
