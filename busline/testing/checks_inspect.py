"""What people who look after a broker see and do: `Inspectable`, where the transport offers it."""

from __future__ import annotations

from busline.errors import QueueNotFound
from busline.message import Message
from busline.testing.harness import Harness
from busline.testing.steps import Line, drain, eventually, line, nothing_comes, prompt, raises, started, stats, tells
from busline.transports.base import Inspectable


async def _knows_delayed(one: Line) -> bool:
    """Are delayed messages to be seen in their queue?"""
    seen = await stats(one.transport, one.queue)
    return one.limits.max_delay > 0 and seen is not None and seen.delayed is not None


async def check_stats_tell_what_is_where(h: Harness) -> str | None:
    """`stats` counts messages and consumers as far as the broker tells, and names topics and patterns."""
    topic = h.unique("orders.create")
    async with line(h, topics=frozenset({topic})) as one:
        seen = await stats(one.transport, one.queue)
        if seen is None:
            return "inspectable"
        assert tells(seen, ready=0, delayed=0, leased=0)
        assert (seen.topics, seen.patterns, seen.ephemeral) == (frozenset({topic}), frozenset(), False)
        await one.send(b"1", b"2", b"3")
        await one.hold()

        async def counted() -> bool:
            now = await stats(one.transport, one.queue)
            if now is None or not tells(now, ready=2, delayed=0, leased=1):
                return False
            return now.consumers is None or now.consumers >= 1

        await eventually(h, counted)
        return None


async def check_stats_are_by_name(h: Harness) -> str | None:
    """`stats` lists every queue once, by name."""
    async with line(h) as one, line(h) as other:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        names = [found.name for found in await one.transport.stats()]
        assert {one.queue, other.queue} <= set(names)
        assert names == sorted(set(names))
        return None


async def check_peeking_changes_nothing(h: Harness) -> str | None:
    """`peek` shows what waits, delayed messages last if `stats` tells of them, and leases nothing; a limit is kept."""
    async with line(h) as one:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        delayed = await _knows_delayed(one)
        if one.limits.max_delay:
            await one.send(b"late", delay=min(60.0, one.limits.max_delay))
        await one.send(b"1", b"2", headers={"h": "1"})
        for _ in range(2):
            peeked = await one.transport.peek(one.queue, 10)
            assert sorted(message.body for message in peeked[:2]) == [b"1", b"2"]
            assert [message.body for message in peeked[2:]] == ([b"late"] if delayed else [])
            assert dict(peeked[0].headers) == {"h": "1"}
        assert len(await one.transport.peek(one.queue, 1)) == 1
        assert await drain(h, one.consumer, 2) == [b"1", b"2"]
        return None


async def check_what_is_leased_is_not_peeked(h: Harness) -> str | None:
    """`peek` shows what waits, and not what somebody works on."""
    async with line(h) as one:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        await one.send(b"1")
        await one.hold()
        assert list(await one.transport.peek(one.queue, 10)) == []
        return None


async def check_purging_deletes_what_waits(h: Harness) -> str | None:
    """`purge` deletes ready messages, and delayed ones if `stats` tells of them, and leaves leased ones."""
    async with line(h) as one:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        await one.send(b"held")
        (held,) = await one.hold()
        await one.send(b"1", b"2")
        if delayed := await _knows_delayed(one):
            await one.send(b"late", delay=0.2)
        assert await one.transport.purge(one.queue) == (3 if delayed else 2)
        await nothing_comes(h, one.consumer, 0.25)
        await one.consumer.release(held)
        assert await drain(h, one.consumer, 1) == [b"held"]
        return None


async def check_moving_keeps_the_messages(h: Harness) -> str | None:
    """`move` takes up to so many messages to another queue, unchanged, and wakes who waits there."""
    async with line(h) as one, line(h) as other:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        await one.send(b"1", b"2", b"3", headers={"h": "1"}, meta="{}")
        async with started(other.consumer.receive(1)) as waiting:
            assert await one.transport.move(one.queue, other.queue, 2) == 2
            moved = [*await prompt(waiting)]
        moved += await other.take(2 - len(moved))
        assert all(delivery.message.meta == "{}" and delivery.message.headers == {"h": "1"} for delivery in moved)
        left = await drain(h, one.consumer, 1)
        assert sorted([*left, *(delivery.message.body for delivery in moved)]) == [b"1", b"2", b"3"]
        assert await one.transport.move(one.queue, other.queue, 2) == 0
        return None


async def check_inspecting_a_missing_queue_is_told(h: Harness) -> str | None:
    """`peek`, `purge` and `move` raise `QueueNotFound`; a move to a missing queue moves nothing."""
    async with line(h) as one:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        missing = h.unique("missing")
        await one.transport.publish("a.topic", Message("a.topic", b"1"))
        await one.send(b"1")
        await raises(QueueNotFound, one.transport.peek(missing, 1))
        await raises(QueueNotFound, one.transport.purge(missing))
        await raises(QueueNotFound, one.transport.move(missing, one.queue, 1))
        await raises(QueueNotFound, one.transport.move(one.queue, missing, 1))
        assert await drain(h, one.consumer, 1) == [b"1"]
        return None
