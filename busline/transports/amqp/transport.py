"""The transport itself: what goes where, and who does it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TypeVar

from busline.errors import (
    BuslineError,
    ConfigurationError,
    NoHandler,
    QueueNotFound,
    TransportClosed,
)
from busline.message import Destination, Health, Limits, Message, QueueSpec, QueueStats, ToQueue, ToTopic
from busline.transports.amqp import ladder as delays
from busline.transports.amqp.attaching import Attached
from busline.transports.amqp.bounds import Bounds
from busline.transports.amqp.consuming import AmqpConsumer
from busline.transports.amqp.errands import Errands
from busline.transports.amqp.faults import LIBRARY, translate, was_cancelled
from busline.transports.amqp.inbox import QUEUE as REPLY_QUEUE
from busline.transports.amqp.inbox import AmqpInbox, Way, is_address
from busline.transports.amqp.inspection import Inspection
from busline.transports.amqp.ladder import Ladder
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.properties import TRANSIENT, check, properties, released
from busline.transports.amqp.publishing import Outlet
from busline.transports.amqp.registry import Register, Registrar
from busline.transports.amqp.replying import ReplyOutlet
from busline.transports.amqp.topology import CALLS, EVENTS, declare_exchanges
from busline.transports.amqp.url import Settings, parse
from busline.transports.amqp.wire import Delivered, Header, Turn
from busline.transports.base import Remark

T = TypeVar("T")

MOVED_AT_ONCE = 100
"""Messages."""


def from_url(url: str) -> AmqpTransport:
    """`amqp://user:password@host:port/vhost` or `amqps://…`; see `url.Settings` for the options. Raises
    ConfigurationError for whatever is unknown, missing or unsafe."""
    return AmqpTransport(parse(url))


class Exchanges:
    """The exchanges are there in every session. Lives on the link that publishes."""

    async def up(self, session: Session) -> None:
        """See `Resident`."""
        await declare_exchanges(session)

    def down(self) -> None:
        """See `Resident`."""


class AmqpTransport:
    """One client of a RabbitMQ broker: a connection to send, and one to consume as soon as a queue is attached."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gate = asyncio.Lock()
        self._open = False
        self._closed = False
        self._make()

    def _make(self) -> None:
        """What one opening needs; nothing connects yet."""
        settings = self._settings
        turn = Turn()
        self._out = Link(settings, "out", turn, sends=True)
        self._in = Link(settings, "in", turn, sends=False)
        self._outlet = Outlet(self._out, settings.timeout)
        self._replies = ReplyOutlet(self._out)
        self._ladder = Ladder()
        self._registrar = Registrar(self._outlet, self.where)
        self._attached = Attached(self._in, self._registrar, settings)
        self._bounds = Bounds(self._attached.bound, self._register, self._count)
        self._inspection = Inspection(self._in, self._registrar, self._outlet)
        self._consumers: list[AmqpConsumer] = []
        self._errands = Errands(settings.where)
        self._inbox: AmqpInbox | None = None
        self._inbox_gate = asyncio.Lock()
        self._inbox_is_wanted = False
        """Its opener got it, and was not cancelled while it opened."""
        self._consuming = False
        self._consuming_gate = asyncio.Lock()
        self._closing: asyncio.Task[None] | None = None

    @property
    def where(self) -> str:
        return self._settings.where

    @property
    def shared_clock(self) -> bool:
        return False

    async def open(self) -> None:
        async with self._gate:
            if self._open:
                return
            if self._closed:
                self._make()
            try:
                await self._out.open()
                for resident in (Exchanges(), self._outlet, self._replies, self._ladder):
                    await self._out.move_in(resident)
            except BaseException:
                await self._out.close()
                self._make()
                raise
            self._open, self._closed = True, False

    def _opened(self) -> None:
        if not self._open:
            raise TransportClosed(f"the transport to {self.where} is not open")

    async def _in_session(self) -> Session:
        """The connection that consumes, which a mere caller never needs."""
        async with self._consuming_gate:
            if not self._consuming:
                await self._in.open()
                await self._in.move_in(self._attached)
                self._consuming = True
        return await self._in.session()

    async def _do(self, act: Callable[[Session], Awaitable[T]]) -> T:
        """Something on the consuming connection. A caller that is cancelled leaves it to come to its end."""
        self._opened()
        return await self._errands.run(self._operation(act))

    async def _operation(self, act: Callable[[Session], Awaitable[T]]) -> T:
        """Within the time of one operation, with our errors only."""
        session = await self._in_session()
        try:
            async with asyncio.timeout(self._settings.timeout * 4):
                return await act(session)
        except BuslineError:
            raise
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            raise translate(error, self.where) from error

    # -- queues -------------------------------------------------------------------------------------------------

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        return await self._do(lambda session: self._attached.attach(session, queue, create=create))

    async def detach(self, queue: str, *, delete: bool = False) -> None:
        await self._do(lambda session: self._attached.detach(session, queue, delete=delete))

    async def consume(self, queue: str, *, slots: int, prefetch: int = 1) -> AmqpConsumer:
        self._opened()
        await self._errands.run(self._in_session())
        topic = self._attached.sole_topic(queue)
        arguments = self._attached.consumer_arguments
        consumer = AmqpConsumer(self._in, queue, topic, slots, prefetch, arguments, self._again, self._consumers.remove)
        self._consumers.append(consumer)
        return consumer

    # -- messages -----------------------------------------------------------------------------------------------

    async def send(self, to: Destination, *messages: Message) -> None:
        self._opened()
        for message in messages:
            self._check(to, message)
        if not messages:
            return
        to = await self._bounds.admit(to, len(messages))
        try:
            await _together([self._send(to, message) for message in messages])
        except NoHandler:
            bounded = await self._bounds.find(to, len(messages))
            if bounded is None:
                raise
            await _together([self._send(bounded, message) for message in messages])

    async def publish(self, topic: str, *messages: Message) -> bool:
        self._opened()
        for message in messages:
            self._check(ToTopic(topic), message)
        puts = [self._outlet.put(EVENTS, topic, message.body, properties(message), None) for message in messages]
        return any(await _together(puts))

    async def open_inbox(self, on_reply: Callable[[Message], None], on_lost: Callable[[], None]) -> AmqpInbox:
        self._opened()
        inbox = await self._errands.run(self._open_inbox(on_reply, on_lost))
        self._inbox_is_wanted = True
        return inbox

    async def _open_inbox(self, on_reply: Callable[[Message], None], on_lost: Callable[[], None]) -> AmqpInbox:
        async with self._inbox_gate:
            if self._inbox is not None and not self._inbox.closed:
                if self._inbox_is_wanted:
                    raise ConfigurationError("this transport has an inbox already; a transport has one")
                await self._inbox.aclose()
            self._inbox_is_wanted = False
            settings = self._settings
            own_queue = settings.reply == "queue"
            way = Way(_route, self._check, self._unroutable, self._bounds)
            inbox = AmqpInbox(self._out, settings.timeout, own_queue, way, on_reply, on_lost)
            await self._out.move_in(inbox)
            self._inbox = inbox
            return inbox

    async def reply(self, address: str, message: Message) -> bool:
        self._opened()
        check(message)
        if not is_address(address):
            return False
        if not address.startswith(REPLY_QUEUE):
            return await self._replies.put(address, message.body, properties(message, mode=TRANSIENT))
        to = ToQueue(address)
        try:
            await self._outlet.put("", address, message.body, properties(message), lambda: self._unroutable(to))
        except QueueNotFound:
            return False
        return True

    async def _send(self, to: Destination, message: Message) -> None:
        if message.delay > 0:
            await self._send_later(to, message)
            return
        exchange, key = _route(to)
        await self._outlet.put(exchange, key, message.body, properties(message), lambda: self._unroutable(to))

    async def _again(self, queue: str, delivered: Delivered, deliveries: int, delay: float) -> None:
        """A copy of what was delivered, to the same queue."""
        found = released(delivered.properties, deliveries, delayed=delay > 0)
        to = ToQueue(queue)
        if delay > 0:
            await self._climb(to, delay, delivered.body, found)
        else:
            await self._outlet.put("", queue, delivered.body, found, lambda: self._unroutable(to))

    async def _send_later(self, to: Destination, message: Message) -> None:
        queue = to.queue if isinstance(to, ToQueue) else await self._owner(to.topic)
        if queue not in self._attached:
            await self._do(lambda session: self._inspection.find(session, queue))
        await self._climb(ToQueue(queue), message.delay, message.body, properties(message, delayed=True))

    async def _climb(self, to: ToQueue, delay: float, body: bytes, found: Header) -> None:
        """Into the ladder, at whose end the queue is."""
        number = delays.ticks(delay)
        if not self._ladder.is_ready(number, to.queue):
            await self._errands.run(self._prepare(number, to.queue))
        key = delays.routing_key(number, to.queue)
        await self._outlet.put(delays.entrance(number), key, body, found, lambda: self._unroutable(to))

    async def _prepare(self, number: int, queue: str) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._ladder.prepare(await self._out.session(), number, queue)
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            raise translate(error, self.where) from error

    async def _owner(self, topic: str) -> str:
        if (queue := self._attached.owner(topic)) is not None:
            return queue
        owner = (await self._register()).owner(topic)
        if owner is None:
            raise NoHandler(topic, self.where)
        return owner

    def _check(self, to: Destination, message: Message) -> None:
        check(message)
        if message.delay:
            delays.check(message.delay, message.topic)
        if message.priority and isinstance(to, ToQueue):
            self._attached.check_priority(to.queue, message.priority)

    def _unroutable(self, to: Destination) -> BuslineError:
        return QueueNotFound(to.queue, self.where) if isinstance(to, ToQueue) else NoHandler(to.topic, self.where)

    async def _register(self) -> Register:
        return await self._do(self._registrar.look)

    async def _count(self, queue: str) -> int:
        found = await self._do(lambda session: self._inspection.find(session, queue))
        return found.message_count or 0

    # -- health and end -----------------------------------------------------------------------------------------

    def health(self) -> Health:
        if not self._open:
            return Health("down" if self._closed else "unknown", detail="closed" if self._closed else "not opened")
        links = (self._out, self._in) if self._consuming else (self._out,)
        since = max(link.since for link in links)
        for link in links:
            if link.current() is None:
                return Health("down", link.since, link.fault)
        served = {consumer.queue for consumer in self._consumers if consumer.is_at_the_broker}
        if any(consumer.queue not in served for consumer in self._consumers):  # one that ended may have a successor
            return Health("degraded", since, "not every consumer is at the broker")
        if self._attached.differences:
            return Health("degraded", since, "; ".join(self._attached.differences.values()), tolerable=True)
        return Health("healthy", since)

    async def stats(self) -> Sequence[QueueStats]:
        return await self._do(self._inspection.stats)

    async def examine(self, queue: QueueSpec, max_deliveries: int) -> Sequence[Remark]:
        return await self._do(lambda session: self._attached.examine(session, queue, max_deliveries))

    async def peek(self, queue: str, limit: int) -> Sequence[Message]:
        return await self._do(lambda session: self._inspection.peek(session, queue, limit))

    async def purge(self, queue: str) -> int:
        return await self._do(lambda session: self._inspection.purge(session, queue))

    async def move(self, source: str, to: str, limit: int) -> int:
        moved = 0
        while moved < limit:  # in parts, so that whoever is cancelled moves no more than the rest of one
            part = min(limit - moved, MOVED_AT_ONCE)
            done = await self._do(partial(self._inspection.move, source=source, to=to, limit=part))
            moved += done
            if done < part:
                break
        return moved

    async def aclose(self) -> None:
        """Whoever is cancelled here does not keep it from closing."""
        if self._closing is None or self._closing.done():
            self._closing = asyncio.create_task(self._close(), name="busline amqp close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        async with self._gate:
            if not self._open:
                return
            self._open, self._closed = False, True
            if self._consumers:  # side by side: each waits for the broker
                await asyncio.gather(*(consumer.aclose() for consumer in self._consumers))
            if self._inbox is not None:
                await self._inbox.aclose()
            await self._errands.end()
            await self._registrar.aclose()
            await asyncio.gather(self._in.close(), self._out.close())

    async def _die(self) -> None:
        """For tests: end as SIGKILL would. The sockets close, and nothing is said."""
        self._open, self._closed = False, True
        for link in (self._in, self._out):
            if (session := link.current()) is not None:
                session.cut()
        for consumer in list(self._consumers):
            await consumer.aclose()
        if self._inbox is not None:
            self._inbox.closed = True
        await self._errands.end(0.0)
        await self._registrar.aclose()
        await asyncio.gather(self._in.close(), self._out.close())


def _route(to: Destination) -> tuple[str, str]:
    """Exchange and routing key."""
    return ("", to.queue) if isinstance(to, ToQueue) else (CALLS, to.topic)


async def _together(puts: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """All at once, in their order; the first error is raised when every one has ended."""
    if len(puts) == 1:
        return [await puts[0]]
    tasks = [asyncio.create_task(put, name="busline amqp send") for put in puts]
    if tasks:
        await asyncio.wait(tasks)
    return [task.result() for task in tasks]
