"""Calls and their replies."""

from __future__ import annotations

import asyncio

from busline.errors import NoHandler, QueueNotFound, TransportClosed
from busline.message import Message, ToQueue, ToTopic
from busline.testing.harness import Harness
from busline.testing.steps import client, eventually, line, nothing_comes, prompt, raises, started
from busline.transports.base import Consumer, Transport


def _never() -> None:
    raise AssertionError("no reply was lost")


async def _echo(consumer: Consumer, transport: Transport, number: int) -> None:
    """Answer so many calls, each with its own body."""
    while number:
        for delivery in await consumer.receive(1):
            call = delivery.message
            assert call.reply_to is not None
            reply = Message("reply", call.body, "{}", {"x": "ü"}, correlation_id=call.correlation_id)
            assert await transport.reply(call.reply_to, reply)
            await consumer.ack(delivery)
            number -= 1


async def check_a_reply_finds_its_caller(h: Harness) -> None:
    """A call leaves through the inbox, which sets `reply_to`; its reply arrives with every field."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as worker, client(h) as caller:
        replies: asyncio.Queue[Message] = asyncio.Queue()
        inbox = await caller.open_inbox(replies.put_nowait, _never)
        call = Message(topic, b"[1]", '{"v":1}', {"h": "1"}, "c-1")
        await inbox.send(ToTopic(topic), call)
        async with started(_echo(worker.consumer, worker.transport, 1)) as answering:
            reply = await prompt(replies.get())
            await prompt(answering)
        assert (reply.body, reply.meta, dict(reply.headers), reply.correlation_id) == (b"[1]", "{}", {"x": "ü"}, "c-1")
        assert call.reply_to is None


async def check_many_calls_in_flight_get_one_reply_each(h: Harness) -> None:
    """100 calls of each of two callers get one reply each, and each caller its own only."""
    async with line(h) as worker, client(h) as one, client(h) as other:
        got: dict[str, list[tuple[str | None, bytes]]] = {"one": [], "other": []}
        inboxes = {
            "one": await one.open_inbox(lambda m: got["one"].append((m.correlation_id, m.body)), _never),
            "other": await other.open_inbox(lambda m: got["other"].append((m.correlation_id, m.body)), _never),
        }
        async with started(_echo(worker.consumer, worker.transport, 200)) as answering:
            calls = [(name, f"{name}-{number}") for number in range(100) for name in inboxes]
            for name, key in calls:
                message = Message("a.topic", key.encode(), correlation_id=key)
                await inboxes[name].send(ToQueue(worker.queue), message)
            await prompt(answering)

        async def complete() -> bool:
            return all(len(replies) >= 100 for replies in got.values())

        await eventually(h, complete)
        for name in inboxes:
            assert sorted(got[name]) == sorted((key, key.encode()) for caller, key in calls if caller == name)


async def check_a_reply_that_leads_nowhere_harms_nobody(h: Harness) -> None:
    """`reply` neither raises nor hangs for the inbox of a closed client; False for an address that never was."""
    async with line(h) as worker, client(h) as caller:
        address = (await caller.open_inbox(lambda _: None, lambda: None)).address
        assert await prompt(worker.transport.reply(address, Message("reply", b"1"))) is True
        await caller.aclose()
        await prompt(worker.transport.reply(address, Message("reply", b"2")))
        for nonsense in ("", "nobody", "../../etc", "a/b?c#d", "ünï ☃", "x" * 300):
            assert await prompt(worker.transport.reply(nonsense, Message("reply", b"1"))) is False


async def check_a_closed_inbox_gets_nothing(h: Harness) -> None:
    """After `Inbox.aclose` no reply is handed over and nothing can be sent; the transport may open another inbox."""
    async with line(h) as worker, client(h) as caller:
        late: list[Message] = []
        inbox = await caller.open_inbox(late.append, lambda: None)
        address = inbox.address
        await inbox.aclose()
        await prompt(worker.transport.reply(address, Message("reply", b"1")))
        await raises(TransportClosed, inbox.send(ToQueue(worker.queue), Message("a.topic", b"1")))
        fresh: asyncio.Queue[Message] = asyncio.Queue()
        again = await caller.open_inbox(fresh.put_nowait, _never)
        assert await worker.transport.reply(again.address, Message("reply", b"2"))
        assert (await prompt(fresh.get())).body == b"2"
        assert late == []


async def check_a_call_to_nobody_is_told(h: Harness) -> None:
    """`Inbox.send` raises as `Transport.send`: `NoHandler` and `QueueNotFound`, at once, and nothing is stored."""
    async with line(h) as one:
        inbox = await one.transport.open_inbox(lambda _: None, _never)
        topic, queue = h.unique("nobody"), h.unique("nowhere")
        assert (await raises(NoHandler, inbox.send(ToTopic(topic), Message(topic, b"1")))).topic == topic
        assert (await raises(QueueNotFound, inbox.send(ToQueue(queue), Message(topic, b"1")))).queue == queue
        await nothing_comes(h, one.consumer)


async def check_a_call_is_leased_like_any_message(h: Harness) -> None:
    """A call that its worker gives back is received again, still with its caller's address."""
    async with line(h) as one:
        inbox = await one.transport.open_inbox(lambda _: None, _never)
        await inbox.send(ToQueue(one.queue), Message("a.topic", b"1", correlation_id="c"))
        await one.consumer.release(*await one.take())
        (again,) = await one.take()
        assert (again.message.reply_to, again.message.correlation_id) == (inbox.address, "c")


async def check_an_address_is_nobody_elses(h: Harness) -> None:
    """Two clients have two addresses, and each reply goes to one of them."""
    async with client(h) as one, client(h) as other:
        mine: asyncio.Queue[Message] = asyncio.Queue()
        theirs: asyncio.Queue[Message] = asyncio.Queue()
        inbox = await one.open_inbox(mine.put_nowait, _never)
        foreign = await other.open_inbox(theirs.put_nowait, _never)
        assert inbox.address != foreign.address
        assert await other.reply(inbox.address, Message("reply", b"mine"))
        assert await other.reply(foreign.address, Message("reply", b"theirs"))
        assert (await prompt(mine.get())).body == b"mine"
        assert (await prompt(theirs.get())).body == b"theirs"
        assert mine.empty()
        assert theirs.empty()
