"""Calls leave, and their replies arrive, on one channel: direct reply-to is bound to it.

`reply="queue"` gives the replies a queue of our own instead, whose address stays when the connection is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from secrets import token_hex

from aiormq.exceptions import ChannelAccessRefused
from pamqp.common import FieldValue

from busline.errors import BuslineError, ConnectionLost, NoHandler, TransportClosed
from busline.message import Destination, Message
from busline.structs import value
from busline.transports.amqp.bounds import Bounds
from busline.transports.amqp.faults import LIBRARY, was_cancelled
from busline.transports.amqp.getting import get
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.properties import PERSISTENT, TRANSIENT, is_readable, message_of, properties
from busline.transports.amqp.publishing import Outlet
from busline.transports.amqp.wire import Consume, Declare, Delete, Delivered

DIRECT = "amq.rabbitmq.reply-to"
QUEUE = "busline.reply."
"""How the name of a reply queue begins."""
QUEUE_EXPIRES = 300.0
"""Seconds without its consumer after which the broker drops a reply queue."""

DELETE_TIMEOUT = 2.0
"""Seconds."""


@value
class Way:
    """How the transport sends, for calls to leave likewise."""

    route: Callable[[Destination], tuple[str, str]]
    """Exchange and routing key."""
    check: Callable[[Destination, Message], None]
    """Raises for what cannot be sent there."""
    unroutable: Callable[[Destination], BuslineError]
    bounds: Bounds


def is_address(address: str) -> bool:
    """Could it be an inbox? A worker must not be talked into writing to any other queue."""
    return address.startswith((DIRECT + ".", QUEUE)) and len(address.encode()) <= 255


class AmqpInbox:
    """See `Inbox`."""

    def __init__(
        self,
        link: Link,
        timeout: float,
        own_queue: bool,
        way: Way,
        on_reply: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._link = link
        self._outlet = Outlet(link, timeout)
        self._queue = QUEUE + token_hex(16) if own_queue else ""
        self._way = way
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._address = self._queue
        self.closed = False

    @property
    def address(self) -> str:
        return self._address

    async def send(self, to: Destination, message: Message) -> None:
        if self.closed:
            raise TransportClosed("the inbox is closed")
        self._way.check(to, message)
        to = await self._way.bounds.admit(to, 1)
        try:
            await self._put(to, message)
        except NoHandler:
            bounded = await self._way.bounds.find(to, 1)
            if bounded is None:
                raise
            await self._put(bounded, message)

    async def _put(self, to: Destination, message: Message) -> None:
        exchange, key = self._way.route(to)
        # A call to a direct inbox dies with the caller's connection anyway, so the broker need not write it to disk.
        mode = PERSISTENT if self._queue else TRANSIENT
        found = properties(message, reply_to=self._queue or DIRECT, mode=mode)
        await self._outlet.put(exchange, key, message.body, found, lambda: self._way.unroutable(to))

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._link.move_out(self)
        session = self._link.current()
        await self._outlet.close()
        if self._queue and session is not None:
            await self._delete_queue(session)

    async def _delete_queue(self, session: Session) -> None:
        """So that whoever replies from now on is told; else it expires."""
        try:
            async with asyncio.timeout(DELETE_TIMEOUT), session.scratch() as channel:
                await channel.rpc(Delete(queue=self._queue))
        except (BuslineError, *LIBRARY) as error:
            if was_cancelled(error):
                raise

    # -- as a resident ------------------------------------------------------------------------------------------

    async def up(self, session: Session) -> None:
        """See `Resident`."""
        await self._outlet.up(session)
        lane = self._outlet.lane
        if self._queue:
            expires: dict[str, FieldValue] = {"x-queue-type": "classic", "x-expires": round(QUEUE_EXPIRES * 1000)}
            await lane.channel.rpc(Declare(queue=self._queue, durable=True, arguments=expires))
        lane.subscribe("replies", self._arrived)
        await lane.channel.rpc(Consume(queue=self._queue or DIRECT, no_ack=not self._queue, consumer_tag="replies"))
        if not self._queue:
            try:
                self._address = await self._learn_address(session)
            except ChannelAccessRefused:  # our own calls need not know it: the broker writes it into them
                self._address = DIRECT

    def down(self) -> None:
        """See `Resident`. Replies to a queue of our own wait there."""
        self._outlet.down()
        if not self._queue and not self.closed:
            self._on_lost()

    def _arrived(self, delivered: Delivered) -> None:
        if not self.closed and is_readable(delivered):
            self._on_reply(message_of(delivered))
        if self._queue:  # acked, so that a reply on its way to a connection that has ended comes again
            assert delivered.lane is not None
            if delivered.lane.is_open:
                delivered.lane.ack(delivered.delivery_tag)

    async def _learn_address(self, session: Session) -> str:
        """The broker writes the address into what is published; so a message to ourselves tells it."""
        async with session.scratch() as channel:
            mirror = await channel.queue_declare(exclusive=True)
            name = mirror.queue or ""
            question = properties(Message("busline.address", b""), reply_to=DIRECT, mode=TRANSIENT)
            await self._outlet.put("", name, b"", question, None)
            delivered = await get(channel, name)
            await channel.queue_delete(name)
        if delivered is None or not (address := delivered.properties.reply_to):
            raise ConnectionLost(f"{self._link.where} gave no address for replies")
        return address
