"""One channel: what is sent often and what comes often goes past the library, the rest through its `channel`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError

from busline.transports.amqp.wire import writing
from busline.transports.amqp.wire.reading import FIXED, NONE, Delivered, confirmed, decode
from busline.transports.amqp.wire.stream import BODY, HEADER, METHOD, Stream
from busline.transports.amqp.wire.writing import Header

_DELIVER, _RETURN = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x32"
_ACK, _NACK = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"

Arrived = Callable[[Delivered], None]


class Outcome(Enum):
    """What the broker says of a message that was sent."""

    CONFIRMED = 1
    REFUSED = 2
    """A queue takes no more."""
    RETURNED = 3
    """It leads nowhere."""


CONFIRMED, REFUSED, RETURNED = Outcome


class _Unconfirmed:
    """A message of which the broker has not said yet that it has it."""

    __slots__ = ("deadline", "future", "message_id")

    def __init__(self, future: asyncio.Future[Outcome], message_id: str, deadline: float) -> None:
        self.future = future
        self.message_id = message_id
        self.deadline = deadline

    def end(self, outcome: Outcome) -> None:
        """Tell whoever waits for it still."""
        if not self.future.done():
            self.future.set_result(outcome)


class Lane:
    """Only a lane publishes, settles and consumes on its channel; everything else is asked of `channel`."""

    def __init__(self, channel: Channel, stream: Stream) -> None:
        self.channel = channel
        self._stream = stream
        self._number = channel.number
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._consumers: dict[str, Arrived] = {}
        self._sent = 0
        self._settled = 0
        """All up to this number are confirmed."""
        self._unconfirmed: dict[int, _Unconfirmed] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._coming: Delivered | None = None
        self._returned = False
        self._missing = -1
        """Bytes of its body that are still to come; -1 before its header."""
        self._parts: list[bytes] = []
        stream.lanes[self._number] = self
        channel.closing.add_done_callback(self._on_closing)

    @property
    def is_open(self) -> bool:
        """Can anything be sent?"""
        return self._open

    @property
    def is_full(self) -> bool:
        """Does the peer not take what was written?"""
        return self._stream.is_full

    async def room(self) -> None:
        """Until it takes it, or the connection ends."""
        while self._open and self._stream.is_full:
            await self._stream.room()

    # -- out ----------------------------------------------------------------------------------------------------

    def publish(self, exchange: str, key: str, header: Header, body: bytes, *, mandatory: bool = False) -> None:
        """On a channel without confirmations. Raises ChannelInvalidStateError if it has ended, ValueError for what
        cannot be encoded; then nothing was sent."""
        self._check()
        most = self._stream.frame_max
        self._stream.send(
            writing.publish(self._number, exchange, key, header, body, mandatory=mandatory, frame_max=most)
        )

    def publish_confirmed(
        self, exchange: str, key: str, header: Header, body: bytes, timeout: float
    ) -> asyncio.Future[Outcome]:
        """As `publish`, on a channel with confirmations. The future ends with TimeoutError after `timeout` seconds,
        which are the same for all of a lane, and with the library's error if the channel ends first."""
        self.publish(exchange, key, header, body, mandatory=True)
        self._sent += 1
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._unconfirmed[self._sent] = _Unconfirmed(future, header.message_id, self._loop.time() + timeout)
        if self._timer is None:
            self._timer = self._loop.call_later(timeout, self._look_at_the_clock)
        return future

    def ack(self, tag: int) -> None:
        """Raises ChannelInvalidStateError if the channel has ended."""
        self._check()
        self._stream.send(writing.ack(self._number, tag))

    def nack(self, tag: int, *, requeue: bool) -> None:
        """Raises ChannelInvalidStateError if the channel has ended."""
        self._check()
        self._stream.send(writing.nack(self._number, tag, requeue=requeue))

    def subscribe(self, tag: str, arrived: Arrived) -> None:
        """Whatever comes to this consumer tag is for `arrived`, which is called at once."""
        self._consumers[tag] = arrived
        self.channel.consumers[tag] = _taken  # it answers when the broker takes one away that it knows

    def unsubscribe(self, tag: str) -> None:
        """Drop what may still come to it."""
        self._consumers.pop(tag, None)
        self.channel.consumers.pop(tag, None)

    def _check(self) -> None:
        if not self._open:
            raise ChannelInvalidStateError(f"channel {self._number} has ended")

    # -- in -----------------------------------------------------------------------------------------------------

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """See `Taker`."""
        if kind == METHOD:
            return self._take_method(data, start)
        if self._coming is None:
            return False
        if kind == HEADER:
            self._coming.properties = decode(data[start:end])
            self._missing = int.from_bytes(data[start + 4 : start + FIXED], "big")
        elif kind == BODY:
            self._take_body(data[start:end])
        if self._missing == 0:
            self._arrive(self._coming)
        return True

    def _take_method(self, data: bytes, start: int) -> bool:
        method = data[start : start + 4]
        if method == _DELIVER:
            self._coming, self._returned, self._missing = Delivered.announced(self, data, start + 4), False, -1
        elif method == _ACK:
            self._confirm(*confirmed(data, start + 4), CONFIRMED)
        elif method == _NACK:
            self._confirm(*confirmed(data, start + 4), REFUSED)
        elif method == _RETURN:
            self._coming, self._returned, self._missing = Delivered(self, "", 0, False, "", "", NONE, b""), True, -1
        else:
            return False
        return True

    def _take_body(self, part: bytes) -> None:
        self._missing -= len(part)
        if self._missing < 0:
            raise AMQPConnectionError("a body that is longer than its header says")
        self._parts.append(part)

    def _arrive(self, message: Delivered) -> None:
        message.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._coming = None
        self._parts.clear()
        if self._returned:
            self._give_back(message.properties.message_id)
        elif (arrived := self._consumers.get(message.consumer_tag)) is not None:
            try:
                arrived(message)
            except Exception as error:  # a fault of ours, which must not cost the frames behind it
                self._loop.call_exception_handler({"message": "a delivery could not be taken", "exception": error})

    # -- confirmations ------------------------------------------------------------------------------------------

    def _confirm(self, tag: int, all_before: bool, outcome: Outcome) -> None:
        if not all_before:
            self._end_one(tag, outcome)
            return
        last = min(tag, self._sent) if tag else self._sent
        for number in range(self._settled + 1, last + 1):
            self._end_one(number, outcome)
        self._settled = max(self._settled, last)

    def _end_one(self, number: int, outcome: Outcome) -> None:
        if (one := self._unconfirmed.pop(number, None)) is not None:
            one.end(outcome)

    def _give_back(self, message_id: str | None) -> None:
        """The broker returns what leads nowhere before it confirms it."""
        for one in self._unconfirmed.values():
            if one.message_id == message_id:
                one.end(RETURNED)
                return

    def _look_at_the_clock(self) -> None:
        self._timer, now = None, self._loop.time()
        for one in self._unconfirmed.values():
            if one.future.done():
                continue
            if one.deadline > now:
                self._timer = self._loop.call_at(one.deadline, self._look_at_the_clock)
                return
            one.future.set_exception(TimeoutError())

    # -- the end ------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """See `Taker`."""
        self._open = False

    def _on_closing(self, closing: asyncio.Future[object]) -> None:
        """Whoever waits for a confirmation gets what ended the channel."""
        self._open = False
        if self._stream.lanes.get(self._number) is self:
            del self._stream.lanes[self._number]
        if self._timer is not None:
            self._timer.cancel()
        error = None if closing.cancelled() else closing.exception()
        if not isinstance(error, Exception):
            error = AMQPConnectionError("the channel has ended")
        for one in self._unconfirmed.values():
            if not one.future.done():
                one.future.set_exception(error)
        self._unconfirmed.clear()


async def _taken(message: DeliveredMessage) -> None:
    """Never called: the lane has taken it."""
