"""Frames that leave, as bytes: `basic.publish` with its content, and what settles a delivery."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct

from pamqp.commands import Basic

END = b"\xce"
OVERHEAD = 8
"""Bytes of a frame beside its payload."""

_FRAME = Struct(">BHI").pack
"""Kind, channel, bytes of the payload."""
_CONTENT = Struct(">BHIHHQ").pack
"""A frame's start, then class, weight, bytes of the body."""
_SETTLE = Struct(">BHIHHQBB").pack
"""A whole frame: its start, class, method, delivery tag, flags, end."""
_LONG, _LONG_LONG, _FLAGS = Struct(">I").pack, Struct(">q").pack, Struct(">H").pack
_STAMP = Struct(">Q").pack
_LENGTHS = tuple(bytes((number,)) for number in range(256))
_BASIC, _PUBLISH, _ACK, _NACK = 60, b"\x00\x3c\x00\x28\x00\x00", 80, 120
_REQUEUE = 2

_CONTENT_TYPE, _HEADERS, _MODE, _PRIORITY, _CORRELATION_ID, _REPLY_TO = 0x8000, 0x2000, 0x1000, 0x800, 0x400, 0x200
_EXPIRATION, _MESSAGE_ID, _TIMESTAMP, _TYPE, _APP_ID = 0x100, 0x80, 0x40, 0x20, 0x8


class Header:
    """Properties of a message that leaves, encoded: flags and values."""

    __slots__ = ("message_id", "payload")

    def __init__(self, payload: bytes, message_id: str) -> None:
        self.payload = payload
        self.message_id = message_id
        """By which a returned message is known; fresh for each attempt to send."""

    @classmethod
    def of(cls, found: Basic.Properties) -> Header:
        """Of the library's form, whatever it has. Raises ValueError, TypeError."""
        return cls(found.marshal(), found.message_id or "")


def encode(
    *,
    message_id: str,
    timestamp: int,
    mode: int,
    content_type: str,
    app_id: str,
    message_type: str = "",
    headers: Mapping[str, str | int] | None = None,
    priority: int = 0,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    expiration: str | None = None,
) -> Header:
    """What is empty is left out. Raises ValueError for a text of more than 255 bytes, or that is no Unicode."""
    flags = _CONTENT_TYPE | _MODE | _MESSAGE_ID | _TIMESTAMP | _APP_ID
    parts = [b"", _known(content_type)]
    if headers:
        flags |= _HEADERS
        parts.append(_table(headers))
    parts.append(_LENGTHS[mode])
    if priority:
        flags |= _PRIORITY
        parts.append(_LENGTHS[priority])
    if correlation_id:
        flags |= _CORRELATION_ID
        parts.append(_short(correlation_id))
    if reply_to:
        flags |= _REPLY_TO
        parts.append(_known(reply_to))
    if expiration:
        flags |= _EXPIRATION
        parts.append(_short(expiration))
    parts += (_short(message_id), _STAMP(timestamp))
    if message_type:
        flags |= _TYPE
        parts.append(_known(message_type))
    parts.append(_known(app_id))
    parts[0] = _FLAGS(flags)
    return Header(b"".join(parts), message_id)


def publish(
    channel: int, exchange: str, key: str, header: Header, body: bytes, *, mandatory: bool, frame_max: int
) -> bytes:
    """All frames of a message. Raises ValueError as `encode` does."""
    method = _method(channel, exchange, key, mandatory)
    payload, size = header.payload, len(body)
    content = _CONTENT(2, channel, 12 + len(payload), _BASIC, 0, size)
    most = frame_max - OVERHEAD
    if 0 < size <= most:
        return b"".join((method, content, payload, END, _FRAME(3, channel, size), body, END))
    parts = [method, content, payload, END]
    for at in range(0, size, most):
        part = body[at : at + most]
        parts += (_FRAME(3, channel, len(part)), part, END)
    return b"".join(parts)


def ack(channel: int, tag: int) -> bytes:
    """One delivery is done with."""
    return _SETTLE(1, channel, 13, _BASIC, _ACK, tag, 0, 0xCE)


def nack(channel: int, tag: int, *, requeue: bool) -> bytes:
    """One delivery goes back to its queue, or to the queue's dead letters."""
    return _SETTLE(1, channel, 13, _BASIC, _NACK, tag, _REQUEUE if requeue else 0, 0xCE)


@lru_cache(maxsize=4096)
def _method(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    payload = _PUBLISH + _short(exchange) + _short(key) + _LENGTHS[mandatory]
    return _FRAME(1, channel, len(payload)) + payload + END


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"{text[:40]!r}… is longer than 255 bytes")
    return _LENGTHS[len(data)] + data


_known = lru_cache(maxsize=1024)(_short)
"""For texts that come again."""


def _table(headers: Mapping[str, str | int]) -> bytes:
    parts = [b""]
    for key, value in headers.items():
        if isinstance(value, str):
            data = value.encode()
            parts += (_known(key), b"S", _LONG(len(data)), data)
        else:
            parts += (_known(key), b"l", _LONG_LONG(value))
    table = b"".join(parts)
    return _LONG(len(table)) + table
