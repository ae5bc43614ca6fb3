"""What is deleted when its time has passed: messages that are `expendable` and have a `ttl`, and no others."""

from __future__ import annotations

from busline.testing.harness import Harness
from busline.testing.steps import QUIET, drain, eventually, line, nothing_comes, stats, tells
from busline.transports.base import Inspectable

TTL = 0.3
SEEN_TTL = 1.5
"""For what is to be taken or seen before it is gone, at a broker that is slow to show it."""


async def check_an_expendable_message_is_delivered_in_its_time(h: Harness) -> None:
    """It arrives like any other before its `ttl` has passed, and says what it is; without a `ttl` it stays."""
    async with line(h) as one:
        await one.send(b"1", ttl=3600.0, expendable=True)
        (delivery,) = await one.take()
        assert delivery.message.expendable is True
        assert delivery.message.ttl is not None
        await one.consumer.ack(delivery)
        await one.send(b"2", expendable=True)
        await h.pass_time(QUIET)
        (delivery,) = await one.take()
        assert (delivery.message.body, delivery.message.expendable, delivery.message.ttl) == (b"2", True, None)


async def check_an_expendable_message_is_gone_after_its_ttl(h: Harness) -> None:
    """Nobody receives it any more; what is not expendable, or has time left, does arrive."""
    async with line(h) as one:
        await one.send(b"gone", b"gone as well", ttl=TTL, expendable=True)
        await one.send(b"job", ttl=TTL)
        await one.send(b"later", ttl=3600.0, expendable=True)
        await h.pass_time(TTL + QUIET)
        assert await drain(h, one.consumer, 2) == [b"job", b"later"]


async def check_a_delay_does_not_prolong_a_life(h: Harness) -> str | None:
    """One that is still delayed when its `ttl` passes never comes; one whose delay is shorter does."""
    async with line(h) as one:
        if one.limits.max_delay == 0:
            return "max_delay"
        await one.send(b"never", delay=2 * TTL, ttl=TTL, expendable=True)
        await one.send(b"in time", delay=TTL, ttl=3600.0, expendable=True)
        await h.pass_time(2 * TTL + QUIET)
        assert await drain(h, one.consumer, 1) == [b"in time"]
        return None


async def check_what_expired_in_a_lease_does_not_come_back(h: Harness) -> None:
    """Whoever holds it when its `ttl` passes keeps it; given back, it is deleted."""
    async with line(h) as one:
        await one.send(b"1", b"2", ttl=SEEN_TTL, expendable=True)
        first, second = await one.hold(2)
        await h.pass_time(SEEN_TTL + QUIET)
        await one.consumer.ack(first, confirm=True)
        await one.consumer.release(second)
        await nothing_comes(h, one.consumer)


async def check_expired_messages_are_not_seen(h: Harness) -> str | None:
    """Neither `peek` nor `stats` show them, `purge` does not count them, and `move` leaves them.

    A broker may go on counting those that have others before them, or at which nobody has looked; here they are the
    first, and somebody has.
    """
    async with line(h) as one, line(h) as other:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        await one.send(b"1", b"2", ttl=SEEN_TTL, expendable=True)
        if one.limits.max_delay:
            await one.send(b"late", delay=min(60.0, one.limits.max_delay), ttl=SEEN_TTL, expendable=True)
        await one.send(b"job", ttl=SEEN_TTL)
        peeked = await one.transport.peek(one.queue, 10)
        assert [m.expendable for m in sorted(peeked, key=lambda m: m.body)][:2] == [True, True]
        await h.pass_time(SEEN_TTL + QUIET)

        async def uncounted() -> bool:
            seen = await stats(one.transport, one.queue)
            return seen is not None and tells(seen, ready=1, delayed=0, leased=0)

        assert [m.body for m in await one.transport.peek(one.queue, 10)] == [b"job"]
        await eventually(h, uncounted)
        assert await one.transport.move(one.queue, other.queue, 10) == 1
        assert await one.transport.purge(one.queue) == 0
        return None


async def check_a_move_does_not_prolong_a_life(h: Harness) -> str | None:
    """`move` does not prolong a life."""
    async with line(h) as one, line(h) as other:
        if not isinstance(one.transport, Inspectable):
            return "inspectable"
        await one.send(b"1", ttl=SEEN_TTL, expendable=True)
        assert await one.transport.move(one.queue, other.queue, 10) == 1
        await h.pass_time(SEEN_TTL + QUIET)
        await nothing_comes(h, other.consumer)
        return None
