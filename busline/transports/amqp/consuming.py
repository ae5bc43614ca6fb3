"""This process's share of one queue: the broker pushes, core pulls, and nothing is fetched that nobody asked for.

A waiting call of `receive` is a demand. There are as many consumers at the broker, each with a prefetch of its own, as
demands and messages out need, and no more: while every slot works or waits, none comes or goes. A consumer for which
nothing asks any more is cancelled a moment later, and what it had brought is given back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from time import monotonic

from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource, ChannelNotFoundEntity
from pamqp import commands
from pamqp.common import FieldValue

from busline.errors import BuslineError, ConnectionLost, LeaseLost, QueueNotFound, TransportClosed
from busline.message import Delivery
from busline.transports.amqp.errands import Errands
from busline.transports.amqp.faults import LIBRARY, reason, was_cancelled
from busline.transports.amqp.ladder import check
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.properties import delivery_count, has_expired, is_readable, message_of
from busline.transports.amqp.silence import silence
from busline.transports.amqp.subscribing import Subscriptions
from busline.transports.amqp.topology import exists
from busline.transports.amqp.wire import Delivered, Lane

SURPLUS_FOR = 0.02
"""Seconds that a consumer may be idle with nobody asking; between an ack and the next `receive` it always is."""
IN_TRANSIT = 0.03
"""Seconds after an ack in which the consumer may be given its next message. A quorum queue takes back what it assigns
to a consumer that is cancelled in that moment, and counts a delivery that never was; so the cancel waits."""
SHORT_FOR = 3.0
"""Seconds for which consumers may be missing at the broker before that counts: they come and go with the demand."""
PAUSE = 0.2
"""Seconds between attempts to consume again when the broker took the consumer away and the queue is still there."""

GIVE_BACK_TIMEOUT = 2.0
"""Seconds for giving everything back when closing; then the broker takes it back itself, and counts that."""

Again = Callable[[str, Delivered, int, float], Awaitable[None]]
"""Send a copy to this queue, with this count of deliveries, after so many seconds; returns when it is confirmed."""

Arguments = Callable[[str, tuple[int, ...]], dict[str, FieldValue]]
"""Of consumers of a queue at a broker of a version."""


class Verb(Enum):
    """What the broker is told of a message."""

    ACK = 1
    GIVE_BACK = 2
    REJECT = 3
    """To the queue's dead letters."""


ACK, GIVE_BACK, REJECT = Verb


class AmqpConsumer:
    """See `Consumer`."""

    def __init__(
        self,
        link: Link,
        queue: str,
        topic: str,
        slots: int,
        prefetch: int,
        arguments: Arguments,
        again: Again,
        leave: Callable[[AmqpConsumer], None],
    ) -> None:
        self.queue = queue
        self.stale_settlements = 0
        """Acks and releases of messages whose connection had ended: the broker gives those again."""
        self._link = link
        self._topic = topic
        self._slots = slots
        self._prefetch = prefetch
        self._arguments = arguments
        self._again = again
        self._leave = leave
        self._demands: deque[tuple[int, asyncio.Future[list[Delivery]]]] = deque()
        self._demanded = 0
        self._ready: deque[Delivery] = deque()
        self._out: set[Delivery] = set()
        self._lost: set[Delivery] = set()
        """Received, and not settled before their connection ended."""
        self._at_broker = Subscriptions(queue, prefetch, self._arrived)
        self._taken_away = False
        self._settled_at = 0.0
        self._short_since: float | None = None
        self._lane: Lane | None = None
        self._wake = asyncio.Event()
        self._surplus: asyncio.TimerHandle | None = None
        self._trim = False
        self._resized: list[asyncio.Future[None]] = []
        self._ended: BuslineError | None = None
        self._errands = Errands(link.where)
        self._closing: asyncio.Task[None] | None = None
        with silence():
            self._task = asyncio.create_task(self._tend(), name=f"busline amqp consumer {queue}")

    @property
    def is_at_the_broker(self) -> bool:
        """Are there as many consumers at the broker as are asked for, or were just now?"""
        if self._lane is not None and len(self._at_broker) >= self._wanted():
            self._short_since = None
            return True
        if self._short_since is None:
            self._short_since = monotonic()
        return monotonic() - self._short_since < SHORT_FOR

    # -- the contract -------------------------------------------------------------------------------------------

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        if self._ended is not None:
            raise self._ended
        if self._ready and self._slots:
            return [self._ready.popleft() for _ in range(min(max_messages, len(self._ready)))]
        future: asyncio.Future[list[Delivery]] = asyncio.get_running_loop().create_future()
        self._demands.append((max_messages, future))
        self._demanded += max_messages
        if len(self._at_broker) < self._slots and len(self._at_broker) < self._wanted():
            self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            self._called_off(max_messages, future)
            raise

    async def resize(self, slots: int) -> Sequence[Delivery]:
        self._check()
        self._slots = slots
        if slots == 0 or len(self._at_broker) > slots:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._resized.append(done)
            self._wake.set()
            await done
        else:
            self._wake.set()
        unreceived = [] if slots else list(self._ready)
        if unreceived:
            self._ready.clear()
        return unreceived

    async def ack(self, *deliveries: Delivery, confirm: bool = False) -> None:
        self._check()
        known = True
        for delivery in deliveries:
            if delivery in self._out:
                self._out.discard(delivery)
                self._settled_at = monotonic()
                known &= self._tell(delivery.receipt, ACK)
            elif delivery in self._lost:
                known = self._forget(delivery)
        self._look_for_surplus()
        if confirm and deliveries and not (known and await self._errands.run(self._is_settled())):
            raise LeaseLost(f"the connection on which a message of {self.queue!r} came has ended before its ack")

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        """A confirmed copy, then the ack: the broker counts what is merely given back as if its holder had died.

        Where no copy can be sent the message is given back and counted, or comes again because its connection ended.
        """
        self._check()
        check(delay, self.queue)
        for delivery in deliveries:
            if delivery in self._out:
                self._out.discard(delivery)
                await self._errands.run(self._release(delivery, delay))
            elif delivery in self._lost:
                self._forget(delivery)
        self._look_for_surplus()

    async def _release(self, delivery: Delivery, delay: float) -> None:
        try:
            if not has_expired(delivery.receipt):
                await self._again(self.queue, delivery.receipt, delivery.deliveries, delay)
        except BuslineError:
            self._tell(delivery.receipt, GIVE_BACK)
        else:
            self._tell(delivery.receipt, ACK)

    async def extend(self, *deliveries: Delivery, lease: float) -> Sequence[Delivery]:
        """Never called: a message is ours as long as the connection lives."""
        self._check()
        return [delivery for delivery in deliveries if delivery not in self._out]

    async def aclose(self) -> None:
        """Whoever is cancelled here does not keep it from closing."""
        if self._closing is None:
            self._end(TransportClosed(f"the consumer of {self.queue!r} is closed"))
            self._closing = asyncio.create_task(self._close(), name=f"busline amqp close {self.queue}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._give_back_everything()
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._errands.end(0.0)
        if self._surplus is not None:
            self._surplus.cancel()
        self._leave(self)

    async def _give_back_everything(self) -> None:
        lane = self._lane
        if lane is None or not lane.is_open:
            return
        try:
            async with asyncio.timeout(GIVE_BACK_TIMEOUT):
                await asyncio.sleep(self._settled_at + IN_TRANSIT - monotonic())
                await self._at_broker.remove(lane, list(self._at_broker.tags))
                await asyncio.gather(*(self._release(delivery, 0.0) for delivery in self._take_back()))
                await self._errands.end(GIVE_BACK_TIMEOUT)
        except LIBRARY as error:  # its channel closes next, which gives back the rest
            if was_cancelled(error):
                raise

    def _take_back(self) -> list[Delivery]:
        left = list(self._out)
        self._out.clear()
        return left

    # -- the messages -------------------------------------------------------------------------------------------

    def _arrived(self, delivered: Delivered) -> None:
        if not is_readable(delivered):
            self._tell(delivered, REJECT)
            return
        if has_expired(delivered):  # on its way through the delay queues, say
            self._tell(delivered, ACK)
            return
        delivery = Delivery(message_of(delivered, self._topic), self.queue, delivered, delivery_count(delivered))
        self._out.add(delivery)
        self._ready.append(delivery)
        if self._slots and self._ended is None:
            self._hand_out()
        else:
            self._look_for_surplus()

    def _hand_out(self) -> None:
        while self._demands and self._ready:
            number, future = self._demands.popleft()
            if not future.done():
                self._demanded -= number
                future.set_result([self._ready.popleft() for _ in range(min(number, len(self._ready)))])
        if self._ready:
            self._look_for_surplus()

    def _called_off(self, number: int, future: asyncio.Future[list[Delivery]]) -> None:
        if future.cancelled() or not future.done():
            self._demands = deque(entry for entry in self._demands if entry[1] is not future)
            self._demanded -= number
        elif future.exception() is None:  # it was served in the very tick in which it was cancelled
            self._ready.extendleft(reversed([one for one in future.result() if one in self._out]))
            self._hand_out()
        self._look_for_surplus()

    def _tell(self, delivered: Delivered, verb: Verb) -> bool:
        """False if its connection has ended, and the broker therefore gives the message again."""
        lane = delivered.lane
        if lane is None or not lane.is_open:
            self.stale_settlements += 1
            return False
        if verb is ACK:
            lane.ack(delivered.delivery_tag)
        else:
            lane.nack(delivered.delivery_tag, requeue=verb is GIVE_BACK)
        return True

    def _forget(self, delivery: Delivery) -> bool:
        self._lost.discard(delivery)
        self.stale_settlements += 1
        return False

    async def _is_settled(self) -> bool:
        """A round trip on the channel, which works off its methods in order."""
        lane = self._lane
        if lane is None:
            return False
        try:
            await self._at_broker.round_trip(lane)
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            return False
        return True

    def _check(self) -> None:
        if isinstance(self._ended, TransportClosed):
            raise self._ended

    def _end(self, error: BuslineError) -> None:
        """Whoever waits, and whoever asks from now on, gets `error`."""
        self._ended = error
        while self._demands:
            _, future = self._demands.popleft()
            if not future.done():
                future.set_exception(error)
        self._demanded = 0
        self._answer_resizes()

    def _answer_resizes(self) -> None:
        for done in self._resized:
            if not done.done():
                done.set_result(None)
        self._resized.clear()

    # -- the consumers at the broker ----------------------------------------------------------------------------

    def _wanted(self) -> int:
        return min(self._slots, len(self._out) - len(self._ready) + self._demanded)

    def _may_be_ready(self) -> int:
        """How many messages may lie here that nobody asked for."""
        return self._slots * (self._prefetch - 1)

    def _look_for_surplus(self) -> None:
        if self._surplus is None and self._has_surplus():
            self._surplus = asyncio.get_running_loop().call_later(SURPLUS_FOR, self._on_surplus)

    def _has_surplus(self) -> bool:
        return len(self._ready) > self._may_be_ready() or len(self._at_broker) > self._wanted()

    def _on_surplus(self) -> None:
        self._surplus = None
        if self._settled_at > monotonic() - IN_TRANSIT:
            self._look_for_surplus()
        elif self._has_surplus():
            self._trim = True
            self._wake.set()

    async def _tend(self) -> None:
        while self._ended is None:
            try:
                session = await self._link.session()
            except ConnectionLost:
                continue
            except TransportClosed:
                return
            try:
                await self._consume_in(session)
            except ChannelNotFoundEntity:
                self._end(QueueNotFound(self.queue, self._link.where))
            except (ChannelAccessRefused, ChannelLockedResource) as error:
                # Not a ConfigurationError: rights may be given back, and another's connection may end.
                self._end(ConnectionLost(f"{self._link.where} refuses: {reason(error)}"))
            except BuslineError as error:
                self._end(error)
            except LIBRARY as error:
                if was_cancelled(error):
                    raise
                await asyncio.sleep(PAUSE)

    async def _consume_in(self, session: Session) -> None:
        """Until the session, or the channel, ends; raises what ended the channel."""
        lane = await session.lane(lasting=False)
        channel = lane.channel
        try:
            channel.on_consumer_cancel_callbacks.add(self._on_cancelled)
            closing = channel.closing
            closing.add_done_callback(lambda _: self._wake.set())
            self._at_broker.arguments = self._arguments(self.queue, session.version)
            await self._at_broker.round_trip(lane)
            self._lane = lane
            while not closing.done():
                if self._taken_away:
                    await self._find_out(session)
                await self._adjust(lane)
                await self._wake.wait()
                self._wake.clear()
            closing.result()
        finally:
            self._lose_channel()
            await session.give_up(channel)

    def _lose_channel(self) -> None:
        """What came on it and was not received is the broker's again."""
        self._lane = None
        self._at_broker.tags.clear()
        self._out.difference_update(self._ready)
        self._ready.clear()
        self._lost |= self._out
        self._out.clear()
        self._answer_resizes()

    async def _adjust(self, lane: Lane) -> None:
        wanted = self._wanted()
        while len(self._at_broker) < wanted:
            await self._at_broker.add(lane)
            wanted = self._wanted()
        if self._trim or self._resized:
            self._trim = False
            await asyncio.sleep(self._settled_at + IN_TRANSIT - monotonic())
            # A cancel waits for the method before it, and acks do not: one may have brought the next message meanwhile.
            await self._at_broker.round_trip(lane)
            if not self._resized and self._settled_at > monotonic() - IN_TRANSIT:
                self._look_for_surplus()
                return
            wanted = self._wanted() if self._slots else 0
            idle = self._at_broker.idle_first(delivery.receipt for delivery in self._out)
            await self._at_broker.remove(lane, idle[: max(0, len(idle) - wanted)])
            await self._give_back_unasked()
            self._answer_resizes()

    async def _give_back_unasked(self) -> None:
        if self._slots == 0 and self._resized:
            return  # `resize` returns it
        while len(self._ready) > self._may_be_ready():
            delivery = self._ready.pop()
            self._out.discard(delivery)
            await self._release(delivery, 0.0)

    def _on_cancelled(self, frame: commands.Basic.Cancel) -> None:
        """The broker has taken a consumer away: the queue was deleted, or moved."""
        self._at_broker.taken_away(frame.consumer_tag)
        self._taken_away = True
        self._wake.set()

    async def _find_out(self, session: Session) -> None:
        self._taken_away = False
        if not await exists(session, self.queue):
            raise QueueNotFound(self.queue, self._link.where)
        await asyncio.sleep(PAUSE)
