"""From `send` to `ack`: what arrives, at whom, how much of it, and never again."""

from __future__ import annotations

import asyncio
import random

from busline.errors import MessageTooLarge, NoHandler, QueueNotFound
from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.testing.harness import Harness
from busline.testing.steps import (
    QUIET,
    SERVICE,
    client,
    drain,
    join,
    line,
    nothing_comes,
    raises,
    started,
    stats,
    take,
    tells,
)


async def check_a_body_arrives_byte_for_byte(h: Harness) -> None:
    """Empty, one byte, not UTF-8, long: a driver never looks into a body."""
    async with line(h) as one:
        noise = random.Random(1)
        sizes = (0, 1, 255, 4096, min(one.limits.max_bytes, 200_000))
        bodies = [noise.randbytes(size) for size in sizes] + [b"\x00", b"\xff\xfe", b"\r\n", "ünï".encode("utf-16")]
        for body in bodies:
            await one.send(body)
            (delivery,) = await one.take()
            assert delivery.message.body == body
            await one.consumer.ack(delivery)


async def check_every_field_arrives(h: Harness) -> None:
    """Topic, meta, headers, correlation_id and reply_to arrive as they were sent; the delivery names its queue."""
    async with line(h) as one:
        headers = {"plain": "yes", "ключ": "значение ☃ 𝄞", "empty": "", "lines": "a\r\nb\tc", "'\";--": "%s{}\\"}
        sent = Message("an.ordinary.topic", b"1", '{"id":"ü"}', headers, "c-1", "an/address?", 0)
        await one.transport.send(ToQueue(one.queue), sent)
        (delivery,) = await one.take()
        got = delivery.message
        assert (got.topic, got.body, got.meta, dict(got.headers)) == (sent.topic, sent.body, sent.meta, headers)
        assert (got.correlation_id, got.reply_to, got.priority) == ("c-1", "an/address?", 0)
        assert (delivery.queue, delivery.deliveries) == (one.queue, 1)


async def check_what_was_not_set_arrives_unset(h: Harness) -> None:
    """A message with topic and body only arrives with the defaults in all else."""
    async with line(h) as one:
        await one.transport.send(ToQueue(one.queue), Message("a.topic", b""))
        (delivery,) = await one.take()
        assert delivery.message == Message("a.topic", b"")


async def check_many_headers_arrive(h: Harness) -> None:
    """64 headers are no special case."""
    async with line(h) as one:
        headers = {f"header-{number}": "x" * number for number in range(64)}
        await one.send(b"1", headers=headers)
        (delivery,) = await one.take()
        assert dict(delivery.message.headers) == headers


async def check_names_may_be_any_text(h: Harness) -> None:
    """Any UTF-8 in queue names and topics survives; two names that look alike stay two."""
    async with client(h) as transport:
        names = [h.unique(text) for text in ("ünï ☃ 𝄞", "a/b?c=d&e", 'it\'s "%s"', "a_b", "a-b", "A_B", ".a..b")]
        for name in names:
            await transport.attach(QueueSpec(name, SERVICE, frozenset({f"topic.{name}"})))
        for name in names:
            await transport.send(ToTopic(f"topic.{name}"), Message(f"topic.{name}", name.encode()))
        for name in names:
            (delivery,) = await take(await transport.consume(name, slots=1))
            assert (delivery.queue, delivery.message.topic) == (name, f"topic.{name}")
            assert delivery.message.body == name.encode()


async def check_a_message_with_a_ttl_is_delivered(h: Harness) -> None:
    """`ttl` is a hint: a job whose time has passed still arrives, for core to dead-letter it."""
    async with line(h) as one:
        await one.send(b"long", ttl=3600.0)
        await one.send(b"short", ttl=0.01)
        await h.pass_time(QUIET)
        assert await drain(h, one.consumer, 2) == [b"long", b"short"]


async def check_too_large_is_refused_before_anything_is_stored(h: Harness) -> None:
    """`MessageTooLarge` counts body and metadata, and refuses the whole batch."""
    async with line(h) as one:
        body = bytes(one.limits.max_bytes)
        error = await raises(MessageTooLarge, one.send(b"small", body + b"1"))
        assert (error.size, error.limit) == (one.limits.max_bytes + 1, one.limits.max_bytes)
        await raises(MessageTooLarge, one.send(body, meta="é"))
        await raises(MessageTooLarge, one.transport.publish("a.topic", Message("a.topic", body, "{}")))
        await nothing_comes(h, one.consumer)


async def check_a_batch_may_be_larger_than_the_brokers(h: Harness) -> None:
    """`max_batch` is the driver's affair: it cuts larger batches, and every message arrives once."""
    async with line(h, slots=64) as one:
        bodies = [b"%d" % number for number in range(min(one.limits.max_batch, 1000) + 1)]
        await one.send(*bodies)
        received: list[bytes] = []
        while len(received) < len(bodies):
            deliveries = await take(one.consumer, min(64, len(bodies) - len(received)))
            received += [delivery.message.body for delivery in deliveries]
            await one.consumer.ack(*deliveries)
        assert sorted(received) == sorted(bodies)


async def check_an_empty_batch_is_nothing(h: Harness) -> None:
    """Sending or publishing no message, and settling none, does nothing."""
    async with line(h) as one:
        await one.send()
        await one.transport.publish("a.topic")
        await one.consumer.ack()
        await one.consumer.release()
        await nothing_comes(h, one.consumer)


async def check_an_unknown_queue_is_told(h: Harness) -> None:
    """`send` to a queue that does not exist raises `QueueNotFound`, at once."""
    async with client(h) as transport:
        name = h.unique("nowhere")
        error = await raises(QueueNotFound, transport.send(ToQueue(name), Message("a.topic", b"1")))
        assert error.queue == name


async def check_an_unknown_topic_is_told(h: Harness) -> None:
    """`send` to a topic that nobody owns raises `NoHandler` at once, and stores nothing for a later owner."""
    async with line(h) as one:
        topic = h.unique("nobody.owns")
        error = await raises(NoHandler, one.transport.send(ToTopic(topic), Message(topic, b"1")))
        assert error.topic == topic
        await one.transport.attach(QueueSpec(one.queue, SERVICE, frozenset({topic})))
        await nothing_comes(h, one.consumer)


async def check_other_queues_are_untouched(h: Harness) -> None:
    """A message is in the queue that it was sent to, and in no other."""
    async with line(h) as one, line(h) as other:
        await one.send(b"1")
        assert await drain(h, one.consumer, 1) == [b"1"]
        await nothing_comes(h, other.consumer)


async def check_competing_consumers_share(h: Harness) -> None:
    """Each message goes to one of the consumers of its queue, and all of them arrive."""
    async with line(h, slots=1) as one, client(h) as other:
        consumers = [one.consumer, await join(other, one.spec, slots=1)]
        received: list[bytes] = []

        async def work(index: int) -> None:
            while len(received) < 60:
                (delivery,) = await take(consumers[index])
                received.append(delivery.message.body)
                await consumers[index].ack(delivery)

        async with started(work(0)) as first, started(work(1)) as second:
            await one.send(*[b"%02d" % number for number in range(60)])
            await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert sorted(received) == [b"%02d" % number for number in range(60)]


async def check_at_most_as_many_as_asked_for(h: Harness) -> None:
    """`receive(n)` waits for one message and returns at most n."""
    async with line(h) as one:
        await one.send(*[b"%d" % number for number in range(6)])
        for most in (1, 2, 3):
            deliveries = await one.consumer.receive(most)
            assert 1 <= len(deliveries) <= most
            await one.consumer.ack(*deliveries)


async def check_no_more_are_out_than_slots(h: Harness) -> None:
    """With all slots filled a further `receive` waits, and a settled message makes room for the next."""
    async with line(h, slots=2) as one:
        await one.send(b"1", b"2", b"3")
        held = await one.hold(2)
        async with started(one.consumer.receive(1)) as third:
            await h.pass_time(QUIET)
            assert not third.done()
            await one.consumer.ack(held[0])
            await asyncio.wait([third], timeout=5)
            assert len(third.result()) == 1


async def check_prefetch_widens_what_may_be_out(h: Harness) -> None:
    """At most slots × prefetch messages are out at once."""
    async with line(h, slots=2, prefetch=2) as one:
        await one.send(*[b"%d" % number for number in range(6)])
        held = await one.hold(4)
        await nothing_comes(h, one.consumer)
        await one.consumer.ack(*held)
        assert len(await one.take(2)) == 2


async def check_a_busy_worker_holds_only_what_it_works_on(h: Harness) -> None:
    """With S slots busy exactly S messages are leased; an idle second worker takes all others at once."""
    async with line(h, slots=2) as busy, client(h) as other:
        await busy.send(*[b"%d" % number for number in range(7)])
        held = await busy.hold(2)
        await h.pass_time(QUIET)
        seen = await stats(busy.transport, busy.queue)
        assert seen is None or tells(seen, ready=5, delayed=0, leased=2)
        idle = await join(other, busy.spec)
        others = await take(idle, 5)
        assert len({delivery.message.body for delivery in [*held, *others]}) == 7


async def check_acked_never_returns(h: Harness) -> None:
    """An acked message is gone: from its consumer, from later ones, and after the client has closed."""
    async with line(h) as one:
        await one.send(b"1", b"2", b"3")
        deliveries = await one.take(3)
        await one.consumer.ack(deliveries[0])
        await one.consumer.ack(deliveries[1], deliveries[2], confirm=True)
        await nothing_comes(h, one.consumer)
        await one.transport.aclose()
        async with client(h) as later:
            await nothing_comes(h, await join(later, one.spec), 2 * QUIET)


async def check_a_second_ack_is_silent(h: Harness) -> None:
    """Acking twice, or releasing what was acked, does nothing."""
    async with line(h) as one:
        await one.send(b"1")
        (delivery,) = await one.take()
        await one.consumer.ack(delivery)
        await one.consumer.ack(delivery)
        await one.consumer.release(delivery)
        await nothing_comes(h, one.consumer)


async def check_cancelling_receive_loses_nothing(h: Harness) -> None:
    """200 calls of `receive` are cancelled at random moments; each message is received exactly once all the same."""
    dice = random.Random(3)
    received: list[bytes] = []
    async with line(h, slots=200) as one:
        for number in range(200):
            async with started(one.consumer.receive(1)) as task:
                await one.send(b"%03d" % number)
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(dice.choice((0, 0, 0, 0.001)))
            if not task.cancelled():
                received += [delivery.message.body for delivery in task.result()]
                await one.consumer.ack(*task.result())
        received += await drain(h, one.consumer, 200 - len(received))
        assert sorted(received) == [b"%03d" % number for number in range(200)]


async def check_no_slots_pause_and_slots_resume(h: Harness) -> None:
    """`resize(0)` pauses: `receive` waits, and what was fetched is returned; `resize` back resumes that very call."""
    async with line(h, slots=2) as one:
        await one.send(b"first")
        await one.hold()
        await one.consumer.release(*await one.consumer.resize(0))
        async with started(one.consumer.receive(1)) as waiting:
            await one.send(b"second")
            await h.pass_time(QUIET)
            assert not waiting.done()
            await one.consumer.release(*await one.consumer.resize(2))
            await asyncio.wait([waiting], timeout=5)
            assert [delivery.message.body for delivery in waiting.result()] == [b"second"]


async def check_a_paused_worker_leaves_messages_to_others(h: Harness) -> None:
    """What arrives while a consumer is paused goes to another one, though a call of `receive` waits."""
    async with line(h) as paused, client(h) as other:
        await paused.consumer.release(*await paused.consumer.resize(0))
        async with started(paused.consumer.receive(1)) as waiting:
            await paused.send(b"1")
            assert len(await take(await join(other, paused.spec))) == 1
            assert not waiting.done()
