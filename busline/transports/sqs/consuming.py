"""One queue's consumer: who waits, what is out, and what becomes of messages that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from busline.errors import BuslineError, ConfigurationError, ConnectionLost, LeaseLost, QueueNotFound, TransportClosed
from busline.message import Delivery
from busline.structs import value
from busline.transports.sqs.clients import SLACK, Clients
from busline.transports.sqs.polling import Poller, Raw
from busline.transports.sqs.receipts import Done, Receipt, delivery_of, receipt_of
from busline.transports.sqs.sending import all_of
from busline.transports.sqs.settling import Settler
from busline.transports.sqs.wire import Letter

DUE = 0.05
"""Seconds of a delay that are not worth another round."""


@dataclass(slots=True, eq=False)
class _Waiter:
    most: int
    future: asyncio.Future[list[Delivery]]


@value
class Terms:
    """What a consumer has to know of its queue. Times are seconds."""

    name: str
    url: str
    topic: str
    """The only topic of the queue, for messages that name none; "" if it has several."""
    lease: int
    wait: int
    max_release_delay: float
    ephemeral: bool
    """The queue goes with this process, so nothing is given back."""


class SqsConsumer:
    """Pulls from one queue; see `busline.transports.base.Consumer`."""

    def __init__(
        self,
        clients: Clients,
        settler: Settler,
        terms: Terms,
        done: Done,
        *,
        slots: int,
        prefetch: int,
        is_known: Callable[[Letter], bool],
        is_meant: Callable[[Letter], Awaitable[bool]],
        on_close: Callable[[SqsConsumer], None],
    ) -> None:
        self._settler = settler
        self._terms = terms
        self._done = done
        self._slots = slots
        self._prefetch = prefetch
        self._is_known = is_known
        self._is_meant = is_meant
        self._on_close = on_close
        self._waiters: deque[_Waiter] = deque()
        self._buffer: deque[Delivery] = deque()
        self._out: set[Delivery] = set()
        self._side: set[asyncio.Task[None]] = set()
        self._gone: QueueNotFound | None = None
        self.closed = False
        self.poller = Poller(
            clients,
            terms.url,
            terms.name,
            wait=terms.wait,
            lease=terms.lease,
            wanted=self._wanted,
            arrived=self._arrived,
            gone=self._on_gone,
            denied=lambda error: self._wake(ConnectionLost(str(error))),
        )

    def _check(self) -> None:
        if self.closed:
            raise TransportClosed("this consumer was closed")
        if self._gone is not None:
            raise self._gone

    def succeeded(self, queue: str) -> None:
        """Somebody else consumes this queue: if it is ours, and was deleted, that is over."""
        if self._gone is not None and self._terms.name == queue:
            self.poller.stop()
            self.poller.fault = ""

    # -- receiving ------------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        """How many messages polls may bring, those included that are on their way."""
        if self.closed or not self._waiters or self._gone is not None:
            return 0
        demand = sum(waiter.most for waiter in self._waiters) + (self._prefetch - 1) * self._slots
        return min(demand, self._slots * self._prefetch - len(self._out)) - len(self._buffer)

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        self._check()
        if self._buffer and self._slots:
            return self._take(max_messages)
        waiter = _Waiter(max_messages, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self.poller.kick()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._hand_over(waiter.future.result())
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _take(self, most: int) -> list[Delivery]:
        taken: list[Delivery] = []
        while self._buffer and len(taken) < most:
            delivery = self._buffer.popleft()
            if delivery.receipt.is_ours:
                self._out.add(delivery)
                taken.append(delivery)
        return taken

    def _arrived(self, found: Sequence[Raw]) -> None:
        """A poll is back: sort out what core need not see, and give the rest to those who wait."""
        terms = self._terms
        deliveries: list[Delivery] = []
        for raw in found:
            receipt = receipt_of(raw, terms.lease, terms.topic)
            if receipt.message_id in self._done or receipt.has_expired:
                self._settler.delete(receipt)
            elif receipt.letter.is_event and not self._is_known(receipt.letter):
                self._beside(self._judge(receipt))
            elif receipt.delay_left > DUE:
                self._beside(self._settler.release([receipt], receipt.delay_left))
            else:
                deliveries.append(delivery_of(receipt, terms.name))
        self._hand_over(deliveries)

    async def _judge(self, receipt: Receipt) -> None:
        """An event that none of the patterns asks for that we know: SNS's filter lets through too much, or somebody
        has bound the queue to more since."""
        if await self._is_meant(receipt.letter):
            self._hand_over([delivery_of(receipt, self._terms.name)])
        else:
            await self._settler.delete(receipt)

    def _hand_over(self, deliveries: Sequence[Delivery]) -> None:
        """To those who wait, then to the buffer, and what is left over back to SQS."""
        left = deque(deliveries)
        for each in deliveries:
            self._out.discard(each)
        while left and self._waiters and self._slots and not self.closed:
            waiter = self._waiters.popleft()
            if waiter.future.done():
                continue
            given = [left.popleft() for _ in range(min(waiter.most, len(left)))]
            self._out.update(given)
            waiter.future.set_result(given)
        room = (self._prefetch - 1) * self._slots - len(self._buffer) if self._slots and not self.closed else 0
        while left and room > 0:
            self._buffer.append(left.popleft())
            room -= 1
        if left:
            self._beside(self._settler.give_back([each.receipt for each in left]))
        self.poller.kick()

    def _on_gone(self, error: QueueNotFound) -> None:
        self._gone = error
        self._wake(error)

    def _wake(self, error: BuslineError) -> None:
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(error)
        self._waiters.clear()

    async def resize(self, slots: int) -> Sequence[Delivery]:
        self._check()
        self._slots = slots
        unstarted = list(self._buffer) if not slots else []
        if unstarted:
            self._buffer.clear()
            self._out.update(unstarted)
        self.poller.kick()
        return unstarted

    # -- settling -------------------------------------------------------------------------------------------------

    def _settle(self, delivery: Delivery) -> Receipt | None:
        """It is done with here; None if it was already, or is no longer ours."""
        receipt: Receipt = delivery.receipt
        was_ours = receipt.is_ours
        receipt.settled = True
        self._out.discard(delivery)
        return receipt if was_ours else None

    async def ack(self, *deliveries: Delivery, confirm: bool = False) -> None:
        self._check_open()
        lost = False
        ended: list[asyncio.Future[None]] = []
        for delivery in deliveries:
            if delivery.receipt.settled:
                continue
            receipt = self._settle(delivery)
            if receipt is None:
                lost = True
                self._done.add(delivery.receipt.message_id)
            else:
                ended.append(self._settler.delete(receipt))
        self.poller.kick()
        if confirm:
            await all_of(ended)
            if lost:
                raise LeaseLost(f"a message of queue {self._terms.name!r} was no longer ours when it was acked")

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        self._check_open()
        if delay > self._terms.max_release_delay:
            raise ConfigurationError(
                f"queue {self._terms.name!r} can wait {self._terms.max_release_delay:g} s, not {delay:g} s"
            )
        receipts = [receipt for each in deliveries if (receipt := self._settle(each)) is not None]
        try:
            if receipts:
                await self._settler.release(receipts, delay)
        finally:
            if not self.closed:
                self.poller.kick()

    async def extend(self, *deliveries: Delivery, lease: float) -> Sequence[Delivery]:
        self._check_open()
        return await self._settler.extend(deliveries, lease)

    def _check_open(self) -> None:
        if self.closed:
            raise TransportClosed("this consumer was closed")

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it without anybody waiting. If it fails, the messages come again when their leases end."""
        task = asyncio.create_task(_quietly(work), name=f"busline sqs give back {self._terms.name}")
        self._side.add(task)
        task.add_done_callback(self._side.discard)

    # -- the end --------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._wake(TransportClosed("this consumer was closed"))
        self.poller.stop()
        unsettled = [*self._out, *self._buffer]
        self._buffer.clear()
        receipts = [receipt for each in unsettled if (receipt := self._settle(each)) is not None]
        if self._terms.ephemeral:
            await self.poller.abort()
        else:
            if receipts:
                await _quietly(self._settler.release(receipts, 0.0))
            await self.poller.ended(self._terms.wait + SLACK)
        if self._side:
            await asyncio.wait(self._side)
        self._on_close(self)

    async def die(self) -> None:
        """For tests: stop, and give nothing back."""
        self.closed = True
        self._wake(TransportClosed("this consumer was closed"))
        await self.poller.abort()
        for task in self._side:
            task.cancel()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except BuslineError:
        pass  # What could not be given back comes again when its lease ends, which is all that is lost.
