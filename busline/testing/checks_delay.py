"""What decides when a message is delivered: its delay, its priority, its place."""

from __future__ import annotations

import time
from dataclasses import replace
from math import isfinite

from busline.errors import ConfigurationError
from busline.message import Message, ToQueue
from busline.testing.harness import Harness
from busline.testing.steps import Line, arrives, client, join, line, nothing_comes, raises, stats, tells

DELAY = 0.4


async def _refuses_delays(one: Line) -> str:
    await raises(ConfigurationError, one.send(b"1", delay=DELAY))
    return "max_delay"


async def check_a_delayed_message_is_not_early(h: Harness) -> str | None:
    """`Message.delay` keeps it back for so long, and no longer; a queue that cannot refuses at `send`."""
    async with line(h) as one:
        if one.limits.max_delay == 0:
            return await _refuses_delays(one)
        began = time.monotonic()
        await one.send(b"1", delay=DELAY)
        delivery = await arrives(h, one.consumer, after=DELAY, within=DELAY + 2.0, since=began)
        assert (delivery.message.body, delivery.deliveries) == (b"1", 1)
        return None


async def check_a_longer_delay_than_the_longest_is_refused(h: Harness) -> str | None:
    """What exceeds `Limits.max_delay` is a `ConfigurationError`, never a shorter delay; nothing is stored."""
    async with line(h) as one:
        if not isfinite(one.limits.max_delay):
            await one.send(b"1", delay=10 * 365 * 86400.0)
        else:
            await raises(ConfigurationError, one.send(b"1", delay=one.limits.max_delay + 1))
        await nothing_comes(h, one.consumer)
        return "max_delay" if isfinite(one.limits.max_delay) else None


async def check_a_delayed_message_blocks_nobody(h: Harness) -> str | None:
    """Messages behind a delayed one, and shorter delays behind longer ones, are delivered in their own time."""
    async with line(h) as one:
        if one.limits.max_delay == 0:
            return await _refuses_delays(one)
        await one.send(b"late", delay=min(60.0, one.limits.max_delay))
        await one.send(b"soon", delay=4 * DELAY)
        await one.send(b"now")
        (first,) = await one.hold()
        assert first.message.body == b"now"
        assert (await arrives(h, one.consumer, within=4 * DELAY + 2.0)).message.body == b"soon"
        return None


async def check_a_delayed_message_outlives_its_sender(h: Harness) -> str | None:
    """The broker waits, not the sender: a delayed message comes though its sender has closed."""
    async with line(h) as one:
        if one.limits.max_delay == 0:
            return await _refuses_delays(one)
        async with client(h) as sender:
            await sender.send(ToQueue(one.queue), Message("a.topic", b"1", delay=DELAY))
        assert (await arrives(h, one.consumer, within=DELAY + 2.0)).message.body == b"1"
        return None


async def check_a_delayed_message_is_seen_as_delayed(h: Harness) -> str | None:
    """`stats` does not count it as ready, and as delayed where it tells that."""
    async with line(h) as one:
        if one.limits.max_delay == 0:
            return await _refuses_delays(one)
        if one.limits.counts_releases:
            return "counts_releases"  # its delay is a release of what had been handed out, and is counted as that
        await one.send(b"1", delay=min(60.0, one.limits.max_delay))
        seen = await stats(one.transport, one.queue)
        if seen is None:
            return "inspectable"
        assert tells(seen, ready=0, delayed=1, leased=0)
        return None


async def check_higher_priorities_are_delivered_first(h: Harness) -> str | None:
    """Of what waits, the highest priority comes first; a queue that knows none refuses at `send`."""
    async with line(h) as one:
        highest = one.limits.priorities
        if highest == 0:
            await raises(ConfigurationError, one.send(b"1", priority=1))
            return "priorities"
        for priority in (0, highest, 1, 0, highest):
            await one.send(b"%d" % priority, priority=priority)
        got = [(await one.hold())[0].message.priority for _ in range(5)]
        assert got == sorted([0, highest, 1, 0, highest], reverse=True)
        return None


async def check_a_higher_priority_than_the_highest_is_refused(h: Harness) -> None:
    """What exceeds `Limits.priorities` is a `ConfigurationError`, and its batch is not stored."""
    async with line(h) as one:
        good = Message("a.topic", b"1")
        bad = replace(good, priority=one.limits.priorities + 1)
        await raises(ConfigurationError, one.transport.send(ToQueue(one.queue), good, bad))
        await raises(ConfigurationError, one.transport.send(ToQueue(one.queue), replace(good, priority=-1)))
        await nothing_comes(h, one.consumer)


async def check_equals_come_in_order_where_that_is_promised(h: Harness) -> str | None:
    """Where `Limits.ordered`, messages of equal priority arrive as they were accepted, also after a release.

    Elsewhere they arrive all the same.
    """
    async with line(h, slots=20) as one:
        bodies = [b"%02d" % number for number in range(20)]
        await one.send(*bodies[:10])
        for body in bodies[10:]:
            await one.send(body)
        await one.consumer.release(*await one.take())
        got = [(await one.hold())[0].message.body for _ in bodies]
        if not one.limits.ordered:
            assert sorted(got) == bodies
            return "ordered"
        assert got == bodies
        return None


async def check_a_batch_goes_to_idle_workers_together(h: Harness) -> None:
    """A batch does not wait for the first of it to be settled: two workers get one each."""
    async with line(h, slots=1) as one, client(h) as other:
        consumer = await join(other, one.spec, slots=1)
        await one.send(b"1", b"2")
        first = await arrives(h, one.consumer, within=2.0)
        second = await arrives(h, consumer, within=2.0)
        assert {first.message.body, second.message.body} == {b"1", b"2"}
