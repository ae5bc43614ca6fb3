"""Giving back, losing and keeping: what happens to a message that was received and not acked."""

from __future__ import annotations

import time

from busline.errors import ConfigurationError, LeaseLost
from busline.message import Delivery
from busline.testing.harness import Harness
from busline.testing.steps import Line, arrives, client, join, line, nothing_comes, prompt, raises, take

DELAY = 0.4


async def _refuses_to_wait(one: Line, delivery: Delivery) -> str:
    await raises(ConfigurationError, one.consumer.release(delivery, delay=DELAY))
    return "max_release_delay"


async def _has_no_lease(h: Harness, one: Line) -> str:
    """A holder that lives keeps its message, and the delivery says that there is no end to it."""
    await one.send(b"1")
    (delivery,) = await one.take()
    assert delivery.leased_until == 0.0
    await nothing_comes(h, one.consumer)
    await one.consumer.ack(delivery, confirm=True)
    return "lease"


async def check_closing_a_consumer_gives_back_at_once(h: Harness) -> None:
    """What a closed consumer held unsettled is delivered to another one at once."""
    async with line(h) as one, client(h) as other:
        await one.send(b"1", b"2")
        await one.take(2)
        await prompt(one.consumer.aclose())
        assert len(await take(await join(other, one.spec), 2)) == 2


async def check_closing_a_transport_gives_back_at_once(h: Harness) -> None:
    """What a closed transport held unsettled is delivered to another one at once, and was no crash."""
    async with line(h) as one, client(h) as other:
        await one.send(b"1")
        await one.take()
        await prompt(one.transport.aclose())
        (again,) = await take(await join(other, one.spec))
        assert again.deliveries == 1 or not one.limits.counts_deliveries or one.limits.counts_releases


async def check_a_released_message_comes_again_at_once(h: Harness) -> None:
    """`release` without a delay makes it deliverable at once, to anybody."""
    async with line(h) as one, client(h) as other:
        await one.send(b"1")
        await one.consumer.release(*await one.take())
        (again,) = await one.take()
        await one.consumer.resize(0)
        await one.consumer.release(again)
        (elsewhere,) = await take(await join(other, one.spec))
        assert elsewhere.message.body == b"1"


async def check_a_message_released_with_a_delay_waits(h: Harness) -> str | None:
    """`release(delay=)` keeps it back for so long, and no longer; a queue that cannot refuses at the call."""
    async with line(h) as one:
        await one.send(b"1")
        (delivery,) = await one.take()
        if one.limits.max_release_delay == 0:
            return await _refuses_to_wait(one, delivery)
        began = time.monotonic()
        await one.consumer.release(delivery, delay=DELAY)
        again = await arrives(h, one.consumer, after=DELAY, within=DELAY + 2.0, since=began)
        assert again.message.body == b"1"
        return None


async def check_releasing_frees_the_slot_and_the_others_run(h: Harness) -> str | None:
    """A message that waits out its release delay blocks neither its slot nor the messages behind it."""
    async with line(h, slots=1) as one:
        await one.send(b"1")
        (delivery,) = await one.take()
        if one.limits.max_release_delay == 0:
            return await _refuses_to_wait(one, delivery)
        await one.consumer.release(delivery, delay=min(60.0, one.limits.max_release_delay))
        await one.send(b"2")
        (other,) = await one.take()
        assert other.message.body == b"2"
        return None


async def check_releases_are_not_counted_as_deliveries(h: Harness) -> str | None:
    """`deliveries` stays as it is when a message is given back, unless `counts_releases` says otherwise; where it is no
    count, it is never more than 2."""
    async with line(h) as one:
        await one.send(b"1")
        counted = []
        for delay in (0.0, 0.0, min(0.05, one.limits.max_release_delay)):
            delivery = await arrives(h, one.consumer, within=2.0)
            counted.append(delivery.deliveries)
            await one.consumer.release(delivery, delay=delay)
        if not one.limits.counts_deliveries:
            assert counted[0] == 1
            assert set(counted) <= {1, 2}
            return "counts_deliveries"
        if one.limits.counts_releases:
            assert counted == [1, 2, 3]
            return "counts_releases"
        assert counted == [1, 1, 1]
        return None


async def check_an_expired_lease_delivers_again(h: Harness) -> str | None:
    """A message that is neither settled nor extended comes again when its lease ends, counted once more.

    Without a lease it stays with its holder as long as that one lives.
    """
    async with line(h) as one, client(h) as other:
        began = time.monotonic()
        lease = one.limits.lease
        if lease is None:
            return await _has_no_lease(h, one)
        await one.send(b"1")
        (delivery,) = await one.take()
        consumer = await join(other, one.spec)
        again = await arrives(h, consumer, after=lease, within=lease + h.takeover, since=began)
        assert again.deliveries == (delivery.deliveries + 1 if one.limits.counts_deliveries else 2)
        return None


async def check_an_extended_lease_is_kept(h: Harness) -> str | None:
    """`extend` keeps a message for so long from now, whatever the lease was, and moves `leased_until`."""
    async with line(h) as one, client(h) as other:
        lease = one.limits.lease
        if lease is None:
            return await _has_no_lease(h, one)
        await one.send(b"1")
        (delivery,) = await one.take()
        until, began = delivery.leased_until, time.monotonic()
        assert list(await one.consumer.extend(delivery, lease=3 * lease)) == []
        assert delivery.leased_until > until + lease
        consumer = await join(other, one.spec)
        await arrives(h, consumer, after=3 * lease, within=3 * lease + h.takeover, since=began)
        return None


async def check_extending_a_lost_lease_returns_it(h: Harness) -> str | None:
    """`extend` returns the deliveries that are no longer ours, and extends the others."""
    async with line(h) as one, client(h) as other:
        lease = one.limits.lease
        if lease is None:
            return await _has_no_lease(h, one)
        await one.send(b"1")
        (lost,) = await one.take()
        await arrives(h, await join(other, one.spec), after=lease, within=lease + h.takeover)
        await one.send(b"2")
        kept = await arrives(h, one.consumer, within=2.0)
        assert list(await one.consumer.extend(lost, kept, lease=lease)) == [lost]
        return None


async def check_a_confirmed_ack_tells_of_a_lost_lease(h: Harness) -> str | None:
    """`ack(confirm=True)` raises `LeaseLost` once the message is somebody else's, and settles the others."""
    async with line(h) as one, client(h) as other:
        lease = one.limits.lease
        if lease is None:
            return await _has_no_lease(h, one)
        await one.send(b"1")
        (lost,) = await one.take()
        consumer = await join(other, one.spec)
        again = await arrives(h, consumer, after=lease, within=lease + h.takeover)
        await raises(LeaseLost, one.consumer.ack(lost, confirm=True))
        await consumer.ack(again, confirm=True)
        await nothing_comes(h, one.consumer)
        return None


async def check_settling_a_lost_lease_disturbs_nobody(h: Harness) -> str | None:
    """A late `ack` or `release` is silent and does nothing to the message, which its new holder keeps."""
    async with line(h) as one, client(h) as other:
        lease = one.limits.lease
        if lease is None:
            return await _has_no_lease(h, one)
        await one.send(b"1")
        (lost,) = await one.take()
        consumer = await join(other, one.spec)
        again = await arrives(h, consumer, after=lease, within=lease + h.takeover)
        assert list(await consumer.extend(again, lease=10 * lease)) == []
        await one.consumer.release(lost)
        await one.consumer.ack(lost)
        await nothing_comes(h, one.consumer)
        await consumer.release(again)
        assert (await arrives(h, one.consumer, within=2.0)).message.body == b"1"
        return None
