"""What is left of a client that was killed."""

from __future__ import annotations

from busline.errors import NoHandler, QueueNotFound
from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.testing.harness import Harness
from busline.testing.steps import (
    SERVICE,
    arrives,
    client,
    drain,
    eventually,
    line,
    nothing_comes,
    prompt,
    raises,
    started,
    stats,
    take,
    victim,
)


async def check_a_killed_clients_message_comes_again(h: Harness) -> None:
    """What a killed client held unsettled is delivered to another one within the takeover time, marked as such."""
    async with line(h) as one:
        dying, held = await victim(h, one.spec)
        await one.send(b"1")
        (delivery,) = await take(held)
        assert delivery.deliveries == 1
        await h.kill(dying)
        again = await arrives(h, one.consumer, within=h.takeover)
        assert again.message.body == b"1"
        assert again.deliveries == 2


async def check_deliveries_count_the_crashes(h: Harness) -> str | None:
    """`deliveries` grows by one with each holder that died, and by none with a release unless `counts_releases`."""
    async with line(h) as one:
        await one.send(b"1")
        for crashes in range(3):
            dying, held = await victim(h, one.spec)
            again = await arrives(h, held, within=h.takeover if crashes else 2.0)
            counted = crashes * (2 if one.limits.counts_releases else 1)
            assert again.deliveries == (1 + counted if one.limits.counts_deliveries else min(2, 1 + crashes))
            await held.release(again)
            await take(held)
            await h.kill(dying)
        return None if one.limits.counts_deliveries else "counts_deliveries"


async def check_what_a_killed_client_acked_stays_acked(h: Harness) -> None:
    """A confirmed ack holds though its client dies in the next instant."""
    async with line(h) as one:
        dying, held = await victim(h, one.spec)
        await one.send(b"1")
        await held.ack(*await take(held), confirm=True)
        await h.kill(dying)
        await nothing_comes(h, one.consumer, h.takeover * 1.2)


async def check_what_a_killed_client_sent_is_there(h: Harness) -> None:
    """`send` returned, so the broker is responsible: the message comes though its sender died at once."""
    async with line(h) as one:
        dying = h.transport()
        await dying.open()
        await dying.send(ToQueue(one.queue), Message("a.topic", b"1"), Message("a.topic", b"2"))
        await h.kill(dying)
        assert await drain(h, one.consumer, 2) == [b"1", b"2"]


async def check_a_killed_client_that_waits_takes_nothing(h: Harness) -> None:
    """A message that is sent after a client was killed while it waited goes to one that lives, in takeover time."""
    async with line(h) as one:
        dying, waiting = await victim(h, one.spec)
        async with started(waiting.receive(1)):
            await h.pass_time(0.02)
            await h.kill(dying)
            await one.send(b"1")
            assert (await arrives(h, one.consumer, within=h.takeover)).message.body == b"1"


async def check_topics_outlive_a_killed_owner(h: Harness) -> None:
    """A durable queue keeps its topics when its worker dies: what is sent to them waits for the next one."""
    topic = h.unique("orders.create")
    async with client(h) as other:
        spec = QueueSpec(h.unique("queue"), SERVICE, frozenset({topic}))
        dying, _ = await victim(h, spec)
        await h.kill(dying)
        await h.pass_time(h.takeover)
        await other.send(ToTopic(topic), Message(topic, b"1"))
        await other.attach(spec)
        assert len(await take(await other.consume(spec.name, slots=1))) == 1


async def check_an_ephemeral_queue_vanishes_with_kill(h: Harness) -> None:
    """An ephemeral queue, its messages and its topics are gone within the takeover time after its owner was killed."""
    topic = h.unique("config.reload")
    async with client(h) as other:
        spec = QueueSpec(h.unique("broadcast"), SERVICE, frozenset({topic}), ephemeral=True)
        dying, _ = await victim(h, spec)
        await h.kill(dying)

        async def gone() -> bool:
            try:
                await other.send(ToTopic(topic), Message(topic, b"1"))
            except NoHandler:
                return True
            return False

        await eventually(h, gone, h.takeover)
        await raises(QueueNotFound, other.send(ToQueue(spec.name), Message(topic, b"1")))
        assert await stats(other, spec.name) is None


async def check_a_reply_to_a_killed_caller_harms_nobody(h: Harness) -> None:
    """A reply to a caller that was killed neither raises nor hangs, before and after the death is known."""
    async with client(h) as worker:
        dying = h.transport()
        await dying.open()
        address = (await dying.open_inbox(lambda _: None, lambda: None)).address
        await h.kill(dying)
        await prompt(worker.reply(address, Message("reply", b"1")))
        await h.pass_time(h.takeover)
        await prompt(worker.reply(address, Message("reply", b"2")))


async def check_the_living_are_untouched_by_a_death(h: Harness) -> None:
    """What another client holds stays with it when one client of the queue is killed."""
    async with line(h) as one:
        dying, held = await victim(h, one.spec)
        await one.send(b"1", b"2")
        (mine,) = await one.take()
        await take(held)
        await h.kill(dying)
        if one.limits.lease is not None:
            assert list(await one.consumer.extend(mine, lease=one.limits.lease + 4 * h.takeover)) == []
        again = await arrives(h, one.consumer, within=h.takeover)
        assert again.message.body != mine.message.body
        await one.consumer.ack(mine, again, confirm=True)
