"""One client of the memory broker. It stands for one process: it can close, and it can die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from busline.errors import ConfigurationError, LeaseLost, TransportClosed
from busline.message import Delivery, Destination, Health, Limits, Message, QueueSpec, QueueStats
from busline.transports.memory.broker import MemoryBroker, check
from busline.transports.memory.queue import Queue, Share, Stored, copy

BREATH = 16
"""Of so many messages that were there already, one lets the loop turn first, as reading a socket would."""
CLOSED = "this consumer was closed"


class MemoryConsumer:
    """Pulls from one queue; see `busline.transports.base.Consumer`. Nothing is fetched before it is asked for."""

    def __init__(self, client: MemoryTransport, queue: Queue, slots: int, prefetch: int) -> None:
        self.closed = False
        self._queue = queue
        self._share = Share(client, asyncio.get_running_loop(), slots * prefetch)
        self._slots = slots
        self._prefetch = prefetch
        self._in_a_row = 0
        queue.shares.add(self._share)

    def _check(self) -> None:
        if self.closed:
            raise TransportClosed(CLOSED)

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        if self._in_a_row == BREATH:
            self._in_a_row = 0
            await asyncio.sleep(0)
        if self.closed:
            raise TransportClosed(CLOSED)
        if claimed := self._queue.claim(self._share, max_messages):
            self._in_a_row += 1
            return claimed
        self._in_a_row = 0
        self._queue.check_exists()
        assigned = await self._queue.wait(self._share, max_messages)
        if self.closed:
            raise TransportClosed(CLOSED)  # closed after they were assigned: they went back with the rest
        return assigned

    async def resize(self, slots: int) -> Sequence[Delivery]:
        self._check()
        self._share.room += (slots - self._slots) * self._prefetch
        self._slots = slots
        self._queue.dispatch()
        return ()

    async def ack(self, *deliveries: Delivery, confirm: bool = False) -> None:
        if self.closed:
            raise TransportClosed(CLOSED)
        if not self._queue.ack(*deliveries) and confirm:
            raise LeaseLost(f"a message of queue {self._queue.spec.name!r} was no longer ours when it was acked")

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        self._check()
        self._queue.release(*deliveries, delay=delay)

    async def extend(self, *deliveries: Delivery, lease: float) -> Sequence[Delivery]:
        self._check()
        return [delivery for delivery in deliveries if not self._queue.extend(delivery, lease)]

    async def aclose(self) -> None:
        if not self.closed:
            self.die()
            self._queue.give_back_all(self._share)

    def die(self) -> None:
        """Stop, and give nothing back."""
        self.closed = True
        self._share.room = 0
        self._queue.leave(self._share, lambda: TransportClosed(CLOSED))


class MemoryInbox:
    """Where replies to one client arrive; see `busline.transports.base.Inbox`."""

    def __init__(self, broker: MemoryBroker, on_reply: Callable[[Message], None]) -> None:
        self.closed = False
        self._broker = broker
        self._on_reply = on_reply
        self._address = broker.open_address(self._arrived)

    @property
    def address(self) -> str:
        return self._address

    def _arrived(self, message: Message) -> None:
        if not self.closed:
            self._on_reply(message)

    async def send(self, to: Destination, message: Message) -> None:
        if self.closed:
            raise TransportClosed("this inbox was closed")
        check((message,))
        queue = self._broker.route(to)
        queue.admit((message,))
        call = copy(message)
        call.reply_to = self._address
        queue.put(Stored(call))

    def close(self) -> None:
        """Nobody listens any more."""
        self.closed = True
        self._broker.close_address(self._address)

    async def aclose(self) -> None:
        self.close()


class MemoryTransport:
    """A client of `broker`; see `busline.transports.base.Transport`. May be opened again after it was closed."""

    shared_clock = True

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._open: MemoryBroker | None = None
        self._consumers: list[MemoryConsumer] = []
        self._ephemeral: set[str] = set()
        self._inbox: MemoryInbox | None = None
        self._health = Health("unknown")

    @property
    def where(self) -> str:
        return self._broker.where

    @property
    def store_url(self) -> str:
        return self._broker.store_url

    def _opened(self) -> MemoryBroker:
        if self._open is None:
            raise TransportClosed(f"the transport to {self.where} is not open")
        return self._open

    async def open(self) -> None:
        if self._open is None:
            self._broker.enter()
            self._open = self._broker
            self._health = Health("healthy", self._broker.clock.time())
            for queue in self._broker.queues.values():
                queue.set_alarm()

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        broker = self._opened()
        broker.check_options(queue)
        if queue.passive:
            broker.verify(queue)
        elif create and broker.declare(queue) and queue.ephemeral:
            self._ephemeral.add(queue.name)
        return broker.limits_of(queue.name)

    async def detach(self, queue: str, *, delete: bool = False) -> None:
        broker = self._opened()
        if delete:
            broker.delete(queue)
            self._ephemeral.discard(queue)

    async def send(self, to: Destination, *messages: Message) -> None:
        broker = self._opened()
        check(messages)
        queue = broker.route(to)
        queue.admit(messages)
        queue.put(*[Stored(copy(message)) for message in messages])

    async def publish(self, topic: str, *messages: Message) -> bool:
        broker = self._opened()
        check(messages)
        return broker.publish(topic, messages)

    async def consume(self, queue: str, *, slots: int, prefetch: int = 1) -> MemoryConsumer:
        consumer = MemoryConsumer(self, self._opened().queue(queue), slots, prefetch)
        self._consumers = [other for other in self._consumers if not other.closed]
        self._consumers.append(consumer)
        return consumer

    async def open_inbox(self, on_reply: Callable[[Message], None], on_lost: Callable[[], None]) -> MemoryInbox:
        """As the contract says; a process that lives cannot lose its memory, so `on_lost` is never called."""
        broker = self._opened()
        if self._inbox is not None and not self._inbox.closed:
            raise ConfigurationError("this transport has an inbox already; a transport has one")
        self._inbox = MemoryInbox(broker, on_reply)
        return self._inbox

    async def reply(self, address: str, message: Message) -> bool:
        return self._opened().reply(address, message)

    def health(self) -> Health:
        return self._health

    async def aclose(self) -> None:
        if self._open is None:
            return
        self._leave("closed")
        for consumer in self._consumers:
            await consumer.aclose()
        self._forget()

    def die(self) -> None:
        """For tests: vanish as SIGKILL would. Nothing is given back: what was held comes again as its leases end,
        and a lease from now the broker misses the client and drops its ephemeral queues and its inbox."""
        if self._open is None:
            return
        self._leave("killed")
        for consumer in self._consumers:
            consumer.die()
        if self._inbox is not None:
            self._inbox.closed = True
        self._broker.clock.call_at(self._broker.clock.time() + self._broker.lease, self._forget)

    def _leave(self, why: str) -> None:
        self._open = None
        self._broker.leave()
        self._health = Health("down", self._broker.clock.time(), why)

    def _forget(self) -> None:
        """What the broker does when it knows that the client is gone."""
        for queue in self._ephemeral:
            self._broker.delete(queue)
        if self._inbox is not None:
            self._inbox.close()
        self._consumers, self._ephemeral, self._inbox = [], set(), None

    async def stats(self) -> Sequence[QueueStats]:
        queues = self._opened().queues
        return [queues[name].stats() for name in sorted(queues)]

    async def peek(self, queue: str, limit: int) -> Sequence[Message]:
        return [copy(stored.message) for stored in self._opened().queue(queue).waiting(limit)]

    async def purge(self, queue: str) -> int:
        return len(self._opened().queue(queue).take_waiting())

    async def move(self, source: str, to: str, limit: int) -> int:
        broker = self._opened()
        target = broker.queue(to)
        moved = broker.queue(source).take_waiting(limit)
        for stored, delay in moved:
            target.place(stored, delay)
        target.dispatch()
        return len(moved)
