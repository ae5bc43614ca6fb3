"""What comes in, decoded without trust: any client can write a message's properties, and its routing key."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

if TYPE_CHECKING:
    from busline.transports.amqp.wire.lane import Lane

UNREADABLE = 255
"""The delivery mode of a message whose properties could not be decoded; the broker refuses any but 1 and 2."""
FIXED = 12
"""Bytes of a content header before its property flags: class, weight, body size."""
_DELIVERY_MODE_FLAG = b"\x10\x00"

_tag_of = Struct(">QB").unpack_from
"""A delivery tag, and the octet that follows it."""
_LONG = Struct(">I").unpack_from
_VALUES = {ord("I"): Struct(">i"), ord("l"): Struct(">q")}
"""Header values that no content can spoil, beside texts and booleans."""
_TEXT, _TABLE, _OCTET, _TIME = range(4)
_PROPERTIES = (
    *((0x8000, _TEXT, ""), (0x4000, _TEXT, ""), (0x2000, _TABLE, "headers"), (0x1000, _OCTET, "delivery_mode")),
    *(
        (0x0800, _OCTET, "priority"),
        (0x0400, _TEXT, "correlation_id"),
        (0x0200, _TEXT, "reply_to"),
        (0x0100, _TEXT, ""),
    ),
    *((0x0080, _TEXT, "message_id"), (0x0040, _TIME, ""), (0x0020, _TEXT, "message_type"), (0x0010, _TEXT, "")),
    *((0x0008, _TEXT, ""), (0x0004, _TEXT, "")),
)
"""Flag, form, and where it is kept, of each property in the order in which they follow."""
_KEPT = tuple(name for _, _, name in _PROPERTIES if name)


class Properties:
    """What a message says of itself, as far as the transport reads it."""

    __slots__ = ("_raw", *_KEPT)

    headers: dict[str, Any] | None
    delivery_mode: int | None
    priority: int | None
    correlation_id: str | None
    reply_to: str | None
    message_id: str | None
    message_type: str | None

    def __init__(self, raw: bytes | Basic.Properties) -> None:
        self._raw = raw
        self.headers = self.delivery_mode = self.priority = None
        self.correlation_id = self.reply_to = self.message_id = self.message_type = None

    @classmethod
    def of(cls, found: Basic.Properties, raw: bytes | None = None) -> Properties:
        """Of the library's form."""
        self = cls(found if raw is None else raw)
        for name in _KEPT:
            setattr(self, name, getattr(found, name))
        return self

    def full(self) -> Basic.Properties:
        """All of them, in the library's form; a new one each time if they came on a lane."""
        return self._raw if isinstance(self._raw, Basic.Properties) else _by_the_library(self._raw)


class Delivered:
    """A message that came."""

    __slots__ = ("body", "consumer_tag", "delivery_tag", "exchange", "lane", "properties", "redelivered", "routing_key")

    def __init__(
        self,
        lane: Lane | None,
        consumer_tag: str,
        delivery_tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        properties: Properties,
        body: bytes,
    ) -> None:
        self.lane = lane
        """None if it was got, and not delivered."""
        self.consumer_tag = consumer_tag
        self.delivery_tag = delivery_tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body

    @classmethod
    def of(cls, got: DeliveredMessage) -> Delivered:
        """One that the library has got."""
        found, redelivered = Properties.of(got.header.properties), bool(got.redelivered)
        return cls(
            None, "", got.delivery_tag or 0, redelivered, got.exchange or "", got.routing_key or "", found, got.body
        )

    @classmethod
    def announced(cls, lane: Lane, data: bytes, at: int) -> Delivered:
        """From the arguments of `basic.deliver`; its content follows. Raises IndexError, struct.error."""
        end = at + 1 + data[at]
        consumer_tag = data[at + 1 : end].decode(errors="replace")
        delivery_tag, redelivered = _tag_of(data, end)
        at = end + 9
        end = at + 1 + data[at]
        exchange = data[at + 1 : end].decode(errors="replace")
        key = data[end + 1 : end + 1 + data[end]].decode(errors="replace")
        return cls(lane, consumer_tag, delivery_tag, redelivered != 0, exchange, key, NONE, b"")


def confirmed(data: bytes, at: int) -> tuple[int, bool]:
    """From the arguments of `basic.ack` or `basic.nack`: the tag, and whether all before it are meant."""
    tag, flags = _tag_of(data, at)
    return tag, flags & 1 == 1


def decode(raw: bytes) -> Properties:
    """Of a content header's payload. The usual is decoded at a tenth of the library's price; the rest by it."""
    try:
        return _usual(raw) or Properties.of(_by_the_library(raw), raw)
    except Exception:  # ValueError, struct.error, OverflowError, RecursionError: what any client can provoke
        return SPOILED


def readable(frame: bytes) -> bytes:
    """A frame with a content header, replaced by one that says so if the library could not decode it."""
    return frame if decode(frame[7:-1]) is not SPOILED else _says_so(frame)


def _says_so(frame: bytes) -> bytes:
    """A content header of the same length that has one property, the impossible delivery mode."""
    start = frame[: 7 + FIXED] + _DELIVERY_MODE_FLAG + bytes((UNREADABLE,))
    return start.ljust(len(frame) - 1, b"\0") + frame[-1:]


def _by_the_library(raw: bytes) -> Basic.Properties:
    header = ContentHeader()
    header.unmarshal(raw)
    return header.properties


def _usual(raw: bytes) -> Properties | None:
    """None unless every part is certain to be decodable."""
    plan = _plan(raw[FIXED] << 8 | raw[FIXED + 1])
    if plan is None:
        return None
    found, at = Properties(raw), FIXED + 2
    value: Any = None
    for form, name in plan:
        if form == _TEXT:
            end = at + 1 + raw[at]
            value = raw[at + 1 : end].decode()
        elif form == _OCTET:
            end = at + 1
            value = raw[at]
        elif form == _TIME:
            end = at + 8
            if raw[at : at + 3] != b"\0\0\0":
                return None
        else:
            end = at + 4 + _LONG(raw, at)[0]
            value = _usual_table(raw, at + 4, end) if end <= len(raw) else None
            if value is None:
                return None
        if name:
            setattr(found, name, value)
        at = end
    return found if at == len(raw) else None


@lru_cache(maxsize=1024)
def _plan(flags: int) -> tuple[tuple[int, str], ...] | None:
    """Form and name of the properties that are there; None if there are more than these."""
    return None if flags & 3 else tuple((form, name) for flag, form, name in _PROPERTIES if flags & flag)


def _usual_table(raw: bytes, at: int, end: int) -> dict[str, Any] | None:
    table: dict[str, Any] = {}
    while at < end:
        value = at + 2 + raw[at]
        key, kind = raw[at + 1 : value - 1].decode(), raw[value - 1]
        if kind == 0x53:  # S, a text, whose bytes may be anything
            at = value + 4 + _LONG(raw, value)[0]
            table[key] = _text(raw[value + 4 : at])
        elif kind == 0x74:  # t, a boolean
            at = value + 1
            table[key] = raw[value] != 0
        elif (form := _VALUES.get(kind)) is not None:
            at = value + form.size
            (table[key],) = form.unpack_from(raw, value)
        else:
            return None
    return table if at == end else None


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


NONE = Properties(b"")
SPOILED = Properties(b"")
"""Of a message whose properties cannot be decoded."""
SPOILED.delivery_mode = UNREADABLE
