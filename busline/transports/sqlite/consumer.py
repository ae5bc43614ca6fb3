"""This process's share of a queue: who asks for messages, and what is out."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from busline.errors import BuslineError, LeaseLost, QueueNotFound, TransportClosed
from busline.message import Delivery
from busline.transports.sqlite import statements as sql

if TYPE_CHECKING:
    from busline.transports.sqlite.session import Session

Row = tuple[Any, ...]
"""id, deliveries, priority, topic, meta, headers, correlation_id, reply_to, ttl, expendable, expires, body."""


class Feed:
    """All consumers that this transport has on one queue; the ledger claims for them together."""

    def __init__(self, queue: int, name: str, session: Session) -> None:
        self.queue = queue
        self.name = name
        self.consumers: list[SqliteConsumer] = []
        self.waiting = False
        """Marked in the file as wanting a wake-up: there is nothing to claim before one arrives."""
        self.woken = False
        """Got a wake-up, and has not yet made use of it."""
        self.ripe = False
        """Some delay or lease has ended."""
        self._session = session
        self._due = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def wanted(self) -> int:
        """How many messages could be handed out now."""
        return sum(consumer.wanted() for consumer in self.consumers)

    def is_restless(self) -> bool:
        """Would a transaction change anything for it?"""
        return self.ripe or self.woken or (not self.waiting and self.wanted() > 0)

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Hand out what was claimed; what nobody wants any more goes back."""
        for consumer in self.consumers:
            if not deliveries:
                return
            deliveries = consumer.take(deliveries)
        if deliveries:
            self._session.give_back(self, deliveries)

    def wake(self) -> None:
        """Something may be there to claim."""
        self.waiting = False
        self.woken = True
        self._session.engine.schedule()

    def arm(self, due: float) -> None:
        """Something will be ready at `due`, unless that is known of something earlier."""
        if due < self._due:
            self._set_timer(due)

    def promoted(self, due: float) -> None:
        """What was due is ready now; the next is at `due`."""
        self.ripe = False
        self._set_timer(due)

    def stop(self) -> None:
        """No more timers."""
        self._set_timer(float("inf"))

    def gone(self) -> None:
        """The queue has been deleted."""
        self.stop()
        self._session.ledger.feeds.pop(self.queue, None)
        for consumer in self.consumers:
            consumer.end(QueueNotFound(self.name, self._session.where))

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = due
        if due != float("inf"):
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - time.time()), self._on_time)

    def _on_time(self) -> None:
        # Every consuming process has this timer; whoever is not the first sees that here, without the write lock.
        self._timer = None
        self._due = float("inf")
        due = self._session.next_due(self.queue)
        if due > time.time():
            self.arm(due)
        else:
            self.ripe = True
            self._session.engine.schedule()


class SqliteConsumer:
    """See `Consumer`. It claims what is asked for and never more, so it holds nothing that nobody has received."""

    def __init__(
        self, feed: Feed, session: Session, slots: int, prefetch: int, leave: Callable[[SqliteConsumer], None]
    ):
        self._feed = feed
        self._session = session
        self._slots = slots
        self._prefetch = prefetch
        self._leave = leave
        self._demands: deque[tuple[int, asyncio.Future[list[Delivery]]]] = deque()
        self._out: set[Delivery] = set()
        self._ended: BuslineError | None = None

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        if self._ended is not None:
            raise self._ended
        future: asyncio.Future[list[Delivery]] = self._session.loop.create_future()
        self._demands.append((max_messages, future))
        if not self._feed.waiting:
            self._session.engine.schedule()
        try:
            return await future
        except asyncio.CancelledError:
            self._called_off(max_messages, future)
            raise

    async def resize(self, slots: int) -> Sequence[Delivery]:
        self._slots = slots
        self._session.engine.schedule()
        return ()

    async def ack(self, *deliveries: Delivery, confirm: bool = False) -> None:
        self._session.check_open()
        if confirm:
            await self._ack_confirmed(deliveries)
            return
        hurry = False
        for delivery in deliveries:
            if delivery in self._out:
                self._out.discard(delivery)
                self._session.ledger.acks.append(delivery)
                hurry = hurry or delivery.message.reply_to is None
        if hurry:
            self._session.engine.schedule()
        else:  # calls that were answered: most are followed by others, whose claim takes these acks along
            self._session.engine.linger()

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        self._session.check_open()
        ours = self._settle(deliveries)
        if ours:
            await self._session.release(self._feed.queue, ours, delay)

    async def extend(self, *deliveries: Delivery, lease: float) -> Sequence[Delivery]:
        self._session.check_open()

        def extend() -> tuple[float, list[Delivery]]:
            until = time.time() + lease
            execute = self._session.db.execute
            return until, [d for d in deliveries if not execute(sql.EXTEND, (until, *d.receipt)).rowcount]

        until, lost = await self._session.engine.run(extend)
        for delivery in deliveries:
            if delivery not in lost:
                delivery.leased_until = until
        return lost

    async def aclose(self) -> None:
        if self._ended is not None:
            return
        self.end(TransportClosed(f"the consumer of {self._feed.name!r} is closed"))
        unsettled, self._out = list(self._out), set()
        self._leave(self)
        if not self._session.engine.closed:
            await self._session.leave(self._feed, unsettled)

    def wanted(self) -> int:
        """How many messages could be handed out now."""
        free = self._free()
        if free <= 0 or not self._demands:
            return 0
        return min(free, sum(number for number, future in self._demands if not future.done()))

    def take(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Hand them to those that wait; return what is left."""
        taken, free = 0, min(self._free(), len(deliveries))
        while self._demands and taken < free:
            number, future = self._demands.popleft()
            if not future.done():
                share = deliveries[taken : min(free, taken + number)]
                taken += len(share)
                self._out.update(share)
                future.set_result(share)
        return deliveries[taken:]

    def end(self, error: BuslineError) -> None:
        """Whoever waits, and whoever asks from now on, gets `error`."""
        self._ended = error
        while self._demands:
            _, future = self._demands.popleft()
            if not future.done():
                future.set_exception(error)

    def _free(self) -> int:
        return self._slots * self._prefetch - len(self._out)

    async def _ack_confirmed(self, deliveries: Sequence[Delivery]) -> None:
        ours = self._settle(deliveries)

        def ack() -> int:
            execute = self._session.db.execute
            return sum(1 - execute(sql.ACK, delivery.receipt).rowcount for delivery in ours)

        if lost := await self._session.engine.run(ack):
            raise LeaseLost(f"{lost} of {len(deliveries)} messages of {self._feed.name!r} were no longer ours")

    def _settle(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        ours = [delivery for delivery in deliveries if delivery in self._out]
        self._out.difference_update(ours)
        return ours

    def _called_off(self, number: int, future: asyncio.Future[list[Delivery]]) -> None:
        if future.cancelled() or not future.done():
            self._demands = deque(entry for entry in self._demands if entry[1] is not future)
        elif future.exception() is None:  # it was served in the very tick in which it was cancelled
            self._feed.deliver(self._settle(future.result()))
