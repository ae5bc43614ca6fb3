"""Who owns a topic, who gets a copy of an event, and what a queue is after it was attached again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from busline.errors import ConfigurationError, NoHandler, QueueNotFound
from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.testing.harness import Harness
from busline.testing.steps import (
    PROMPT,
    QUIET,
    SERVICE,
    Line,
    client,
    drain,
    join,
    line,
    nothing_comes,
    prompt,
    raises,
    started,
    stats,
    take,
)


def _events(queue: str, *patterns: str) -> QueueSpec:
    return QueueSpec(queue, SERVICE, patterns=frozenset(patterns))


async def _refuses_patterns(one: Line) -> str:
    await raises(ConfigurationError, one.transport.attach(_events(one.queue, "user.*")))
    return "fanout"


async def check_a_topic_leads_to_its_owner(h: Harness) -> None:
    """What is sent to a topic arrives in the queue that owns it, from whichever client."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic, topic + ".other"})) as one, line(h) as other:
        await other.transport.send(ToTopic(topic), Message(topic, b"1"))
        await one.transport.send(ToTopic(topic + ".other"), Message(topic, b"2"))
        assert await drain(h, one.consumer, 2) == [b"1", b"2"]
        await nothing_comes(h, other.consumer)


async def check_every_bound_queue_gets_one_copy(h: Harness) -> str | None:
    """`publish` puts one copy into each queue with a matching pattern, however many of its patterns match."""
    word = h.unique("user")
    async with line(h) as one, line(h) as other:
        if not one.limits.fanout:
            return await _refuses_patterns(one)
        await one.transport.attach(_events(one.queue, f"{word}.*", f"{word}.#", f"{word}.made"))
        await one.transport.attach(_events(other.queue, f"{word}.*"))
        await one.transport.publish(f"{word}.made", Message(f"{word}.made", b"1"), Message(f"{word}.made", b"2"))
        for consumer in (one.consumer, other.consumer):
            assert await drain(h, consumer, 2) == [b"1", b"2"]
        return None


async def check_patterns_are_exact(h: Harness) -> str | None:
    """`*` is one word, `#` any number, everything else itself, and nothing more than that."""
    word = h.unique("w")
    cases = {
        f"{word}.*": {f"{word}.a", f"{word}.b"},
        f"{word}.#": {word, f"{word}.a", f"{word}.b", f"{word}.a.b", f"{word}.x.a.b"},
        f"{word}.a": {f"{word}.a"},
        f"{word}.#.b": {f"{word}.b", f"{word}.a.b", f"{word}.x.a.b"},
        f"{word}.*.b": {f"{word}.a.b"},
        f"{word}.#.*.b": {f"{word}.a.b", f"{word}.x.a.b"},
    }
    topics = [*sorted(set().union(*cases.values())), f"{word}x.a", f"x.{word}.a", f"{word}_a", f"{word}%"]
    async with line(h) as one:
        if not one.limits.fanout:
            return await _refuses_patterns(one)
        for pattern, matching in cases.items():
            await one.transport.attach(_events(one.queue, pattern))
            for topic in topics:
                await one.transport.publish(topic, Message(topic, topic.encode()))
            assert await drain(h, one.consumer, len(matching)) == sorted(topic.encode() for topic in matching), pattern
        return None


async def check_publishing_to_nobody_is_fine(h: Harness) -> None:
    """An event that nobody is bound to is accepted, and gone; `publish` says so, and says when somebody is bound."""
    topic = h.unique("nobody.listens")
    async with line(h) as one, client(h) as transport:
        for _ in range(2):
            assert await prompt(transport.publish(topic, Message(topic, b"1"), Message(topic, b"2"))) is False
        if one.limits.fanout:
            await one.transport.attach(_events(one.queue, topic))
            assert await prompt(transport.publish(topic, Message(topic, b"3"))) is True
            assert await drain(h, one.consumer, 1) == [b"3"]
            await one.transport.attach(_events(one.queue))
            assert await prompt(transport.publish(topic, Message(topic, b"4"))) is False
        await nothing_comes(h, one.consumer)


async def check_a_late_binder_gets_nothing_old(h: Harness) -> str | None:
    """A queue gets the events from its attaching on, and those that came before never."""
    topic = h.unique("user.made")
    async with line(h) as one:
        if not one.limits.fanout:
            return await _refuses_patterns(one)
        await one.transport.publish(topic, Message(topic, b"before"))
        await one.transport.attach(_events(one.queue, topic))
        await one.transport.publish(topic, Message(topic, b"after"))
        assert await drain(h, one.consumer, 1) == [b"after"]
        return None


async def check_consumers_of_one_queue_share_its_events(h: Harness) -> str | None:
    """Two consumers of one bound queue get each event once between them."""
    topic = h.unique("user.made")
    async with line(h, topics=frozenset()) as one, client(h) as other:
        if not one.limits.fanout:
            return await _refuses_patterns(one)
        bound = _events(one.queue, topic)
        await one.transport.attach(bound)
        consumer = await join(other, bound)
        async with started(one.consumer.receive(1)) as first, started(consumer.receive(1)) as second:
            await one.transport.publish(topic, Message(topic, b"1"))
            await asyncio.wait([first, second], timeout=PROMPT, return_when=asyncio.FIRST_COMPLETED)
            await h.pass_time(QUIET)
            assert (first.done(), second.done()) in {(True, False), (False, True)}
        return None


async def check_a_topic_is_no_pattern(h: Harness) -> None:
    """`publish` does not reach a queue that owns the topic, and `send` does not reach one that is bound to it."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as owner:
        await owner.transport.publish(topic, Message(topic, b"event"))
        await nothing_comes(h, owner.consumer)
        if owner.limits.fanout:
            bound = h.unique("orders.created")
            await owner.transport.attach(_events(owner.queue, bound))
            await raises(NoHandler, owner.transport.send(ToTopic(bound), Message(bound, b"call")))


async def check_attaching_twice_changes_nothing(h: Harness) -> None:
    """`attach` is idempotent: messages, topics and consumers stay."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as one, client(h) as other:
        await one.transport.send(ToTopic(topic), Message(topic, b"1"))
        assert await one.transport.attach(one.spec) == one.limits
        assert await other.attach(one.spec) == one.limits
        await other.send(ToTopic(topic), Message(topic, b"2"))
        assert await drain(h, one.consumer, 2) == [b"1", b"2"]


async def check_attaching_adds_topics_and_replaces_patterns(h: Harness) -> None:
    """An older worker that attaches again cuts no newer topic off; patterns are those of the last."""
    old, new, event = h.unique("old"), h.unique("new"), h.unique("event")
    async with line(h, topics=frozenset({old})) as one:
        patterns = frozenset({event} if one.limits.fanout else ())
        await one.transport.attach(replace(one.spec, topics=frozenset({old, new}), patterns=patterns))
        await one.transport.attach(replace(one.spec, topics=frozenset({old})))
        await one.transport.send(ToTopic(old), Message(old, b"old"))
        await one.transport.send(ToTopic(new), Message(new, b"new"))
        await one.transport.publish(event, Message(event, b"event"))
        assert sorted(await drain(h, one.consumer, 2)) == [b"new", b"old"]


async def check_a_topic_of_another_service_is_refused(h: Harness) -> None:
    """A second owner elsewhere is a `ConfigurationError` that names the first one; and nothing is changed."""
    topic, free = h.unique("orders.create"), h.unique("orders.free")
    async with line(h, topics=frozenset({topic})) as one, client(h) as other:
        thief = QueueSpec(h.unique("thief"), "another-service", frozenset({topic, free}))
        error = await raises(ConfigurationError, other.attach(thief))
        assert one.queue in str(error)
        assert SERVICE in str(error)
        await other.send(ToTopic(topic), Message(topic, b"1"))
        assert await drain(h, one.consumer, 1) == [b"1"]
        await raises(NoHandler, other.send(ToTopic(free), Message(free, b"1")))


async def check_a_topic_moves_within_its_service(h: Harness) -> None:
    """Another queue of the same service takes a topic over; what waits stays where it is."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as old, line(h) as new:
        await old.transport.send(ToTopic(topic), Message(topic, b"before"))
        await new.transport.attach(replace(new.spec, topics=frozenset({topic})))
        await old.transport.send(ToTopic(topic), Message(topic, b"after"))
        assert await drain(h, new.consumer, 1) == [b"after"]
        assert await drain(h, old.consumer, 1) == [b"before"]


async def check_verifying_never_creates(h: Harness) -> None:
    """`attach(create=False)` raises `QueueNotFound` for a missing queue, and never makes one or changes one."""
    topic = h.unique("orders.create")
    async with line(h) as one, client(h) as other:
        missing = QueueSpec(h.unique("missing"), SERVICE, frozenset({topic}))
        for _ in range(2):
            assert (await raises(QueueNotFound, other.attach(missing, create=False))).queue == missing.name
        await raises(QueueNotFound, other.send(ToQueue(missing.name), Message("a.topic", b"1")))
        assert await other.attach(replace(one.spec, topics=frozenset({topic})), create=False) == one.limits
        await raises(NoHandler, other.send(ToTopic(topic), Message(topic, b"1")))


async def check_detaching_forgets_or_deletes(h: Harness) -> None:
    """`detach` leaves the queue at the broker; `delete=True` removes it with messages and topics."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as one, client(h) as other:
        await one.consumer.aclose()
        await one.transport.detach(one.queue)
        await other.send(ToTopic(topic), Message(topic, b"1"))
        await other.detach(one.queue, delete=True)
        await other.detach(one.queue, delete=True)
        await raises(NoHandler, other.send(ToTopic(topic), Message(topic, b"2")))
        await raises(QueueNotFound, other.send(ToQueue(one.queue), Message(topic, b"3")))
        await nothing_comes(h, await join(other, one.spec))


async def check_deleting_tells_who_waits(h: Harness) -> None:
    """A `receive` on a queue that another client deletes raises `QueueNotFound`, and does not hang."""
    async with line(h) as one, client(h) as other, started(one.consumer.receive(1)) as waiting:
        await h.pass_time(0.02)
        await other.detach(one.queue, delete=True)
        assert (await raises(QueueNotFound, waiting)).queue == one.queue


async def check_an_ephemeral_queue_vanishes_with_close(h: Harness) -> None:
    """An ephemeral queue is gone, with its topics, when the transport that attached it closes."""
    topic = h.unique("config.reload")
    async with line(h, ephemeral=True, topics=frozenset({topic})) as one, client(h) as other:
        await other.send(ToTopic(topic), Message(topic, b"1"))
        assert len(await take(one.consumer)) == 1
        await one.transport.aclose()
        await raises(QueueNotFound, other.send(ToQueue(one.queue), Message(topic, b"2")))
        await raises(NoHandler, other.send(ToTopic(topic), Message(topic, b"3")))
        assert await stats(other, one.queue) is None


async def check_a_durable_queue_stays(h: Harness) -> None:
    """A queue that is not ephemeral keeps messages and topics when every client has closed."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as one:
        await one.transport.send(ToTopic(topic), Message(topic, b"1"))
    async with client(h) as later:
        await later.send(ToTopic(topic), Message(topic, b"2"))
        consumer = await join(later, one.spec)
        assert await drain(h, consumer, 2) == [b"1", b"2"]
