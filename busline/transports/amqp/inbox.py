"""Calls leave, and their replies arrive, on one channel: direct reply-to is bound to it.

`reply="queue"` gives the replies a queue of our own instead, whose address stays when the connection is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex

from aiormq.abc import DeliveredMessage
from pamqp.common import FieldValue

from busline.errors import BuslineError, ConnectionLost, TransportClosed
from busline.message import Destination, Message
from busline.transports.amqp.getting import get
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.properties import PERSISTENT, TRANSIENT, check, is_readable, message_of, properties
from busline.transports.amqp.publishing import Outlet
from busline.transports.amqp.wire import Consume, Declare

DIRECT = "amq.rabbitmq.reply-to"
QUEUE = "busline.reply."
"""How the name of a reply queue begins."""
QUEUE_EXPIRES = 300.0
"""Seconds without its consumer after which the broker drops a reply queue."""

Unroutable = Callable[[Destination], BuslineError]


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
        route: Callable[[Destination], tuple[str, str]],
        unroutable: Unroutable,
        on_reply: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._link = link
        self._outlet = Outlet(link, timeout)
        self._queue = QUEUE + token_hex(16) if own_queue else ""
        self._route = route
        self._unroutable = unroutable
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
        check(message)
        exchange, key = self._route(to)
        # A call to a direct inbox dies with the caller's connection anyway, so the broker need not write it to disk.
        mode = PERSISTENT if self._queue else TRANSIENT
        found = properties(message, reply_to=self._queue or DIRECT, mode=mode)
        await self._outlet.put(exchange, key, message.body, found, lambda: self._unroutable(to))

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._link.move_out(self)
        await self._outlet.close()

    # -- as a resident ------------------------------------------------------------------------------------------

    async def up(self, session: Session) -> None:
        """See `Resident`."""
        await self._outlet.up(session)
        channel = self._outlet.channel
        if self._queue:
            expires: dict[str, FieldValue] = {"x-queue-type": "classic", "x-expires": round(QUEUE_EXPIRES * 1000)}
            await channel.rpc(Declare(queue=self._queue, durable=True, arguments=expires))
        channel.consumers["replies"] = self._arrived
        await channel.rpc(Consume(queue=self._queue or DIRECT, no_ack=True, consumer_tag="replies"))
        if not self._queue:
            self._address = await self._learn_address(session)

    def down(self) -> None:
        """See `Resident`. Replies to a queue of our own wait there."""
        self._outlet.down()
        if not self._queue and not self.closed:
            self._on_lost()

    async def _arrived(self, delivered: DeliveredMessage) -> None:
        if not self.closed and is_readable(delivered):
            self._on_reply(message_of(delivered))

    async def _learn_address(self, session: Session) -> str:
        """The broker writes the address into what is published; so a message to ourselves tells it."""
        async with session.scratch() as channel:
            mirror = await channel.queue_declare(exclusive=True)
            name = mirror.queue or ""
            question = properties(Message("busline.address", b""), reply_to=DIRECT, mode=TRANSIENT)
            await self._outlet.channel.basic_publish(b"", routing_key=name, properties=question)
            delivered = await get(channel, name)
            await channel.queue_delete(name)
        if delivered is None or not (address := delivered.header.properties.reply_to):
            raise ConnectionLost(f"{self._link.where} gave no address for replies")
        return address
