"""Keeping running deliveries leased, with a lease so short that every turn is a matter of milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from busline.errors import ConnectionLost, TransportClosed
from busline.lease import RENEWALS_PER_LEASE, LeaseKeeper
from busline.message import Delivery, Message
from busline.transports.base import Consumer

LEASE = 0.003


def delivery() -> Delivery:
    return Delivery(Message("a.topic", b"1"), "q", None)


class Extending:
    """A consumer that notes each call of `extend`, and answers as a test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[Delivery, ...], float]] = []
        self.lost: list[Delivery] = []
        self.error: Exception | None = None
        self.before: Callable[[], None] = lambda: None
        self.turned = asyncio.Event()

    async def extend(self, *deliveries: Delivery, lease: float) -> Sequence[Delivery]:
        self.asked.append((deliveries, lease))
        self.turned.set()
        self.before()
        if self.error is not None:
            raise self.error
        return [found for found in deliveries if found in self.lost]

    async def turns(self, number: int) -> None:
        """Until it was asked so many times more."""
        target = len(self.asked) + number
        async with asyncio.timeout(10):
            while len(self.asked) < target:
                self.turned.clear()
                await self.turned.wait()


class Kept:
    def __init__(self) -> None:
        self.lost: list[Delivery] = []
        self.keeper = LeaseKeeper(LEASE, self.lost.append)

    def work_on(self, found: Delivery, consumer: Extending) -> Delivery:
        self.keeper.running[found] = cast("Consumer", consumer)
        return found


@asynccontextmanager
async def keeping(kept: Kept) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(kept.keeper.run(), name="keeper")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_two_renewals_may_fail_before_a_lease_ends() -> None:
    assert RENEWALS_PER_LEASE == 3


async def test_what_runs_is_extended_again_and_again_each_consumers_together() -> None:
    kept, one, other = Kept(), Extending(), Extending()
    first, second, third = delivery(), delivery(), delivery()
    for found, consumer in ((first, one), (second, one), (third, other)):
        kept.work_on(found, consumer)
    async with keeping(kept):
        await one.turns(3)
        await other.turns(1)
    assert all(asked == ((first, second), LEASE) for asked in one.asked)
    assert all(asked == ((third,), LEASE) for asked in other.asked)
    assert kept.lost == []


async def test_a_lost_delivery_is_told_once_and_no_longer_extended() -> None:
    kept, consumer = Kept(), Extending()
    lost, held = kept.work_on(delivery(), consumer), kept.work_on(delivery(), consumer)
    consumer.lost = [lost]
    async with keeping(kept):
        await consumer.turns(3)
    assert kept.lost == [lost]
    assert list(kept.keeper.running) == [held]
    assert consumer.asked[-1][0] == (held,)


async def test_what_ends_while_it_is_extended_is_not_reported() -> None:
    kept, consumer = Kept(), Extending()
    ended, held = kept.work_on(delivery(), consumer), kept.work_on(delivery(), consumer)
    consumer.lost = [ended]
    consumer.before = lambda: cast("None", kept.keeper.running.pop(ended, None))
    async with keeping(kept):
        await consumer.turns(2)
    assert kept.lost == []
    assert list(kept.keeper.running) == [held]


async def test_what_has_ended_meanwhile_is_not_extended_at_all() -> None:
    """Two consumers; while the first is asked, all that the second one had ends."""
    kept, one, other = Kept(), Extending(), Extending()
    mine = {consumer: kept.work_on(delivery(), consumer) for consumer in (one, other)}
    one.before = lambda: cast("None", kept.keeper.running.pop(mine[other], None))
    other.before = lambda: cast("None", kept.keeper.running.pop(mine[one], None))
    async with keeping(kept):
        other.turned = one.turned  # whichever comes first
        await one.turned.wait()
        await (one if one.asked else other).turns(2)
    assert not (one.asked and other.asked)


async def test_a_broker_that_is_away_is_asked_again() -> None:
    kept, consumer = Kept(), Extending()
    held = kept.work_on(delivery(), consumer)
    consumer.error = ConnectionLost("away")
    async with keeping(kept):
        await consumer.turns(2)
        assert kept.lost == []
        consumer.error = None
        consumer.lost = [held]
        await consumer.turns(1)
        await asyncio.sleep(0)
    assert kept.lost == [held]


async def test_a_closed_consumer_has_lost_all_of_its_own() -> None:
    kept, closed, other = Kept(), Extending(), Extending()
    mine = [kept.work_on(delivery(), closed), kept.work_on(delivery(), closed)]
    held = kept.work_on(delivery(), other)
    closed.error = TransportClosed("closed")
    async with keeping(kept):
        await other.turns(3)
    assert kept.lost == mine
    assert list(kept.keeper.running) == [held]
    assert len(closed.asked) == 1


async def test_it_runs_until_it_is_cancelled() -> None:
    kept = Kept()
    async with keeping(kept) as task:
        await asyncio.sleep(0)
        assert not task.done()
    assert task.cancelled()
