"""Frames that the client library would not send, and what comes in before the library sees it.

The library checks queue names against a narrower alphabet than the broker's, so each method that names a queue has a
form without that check. And it ends the whole connection when it cannot decode a message's properties, which any
client can write: `Tap` reads the stream first and turns such a header into one that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp import commands
from pamqp.header import ContentHeader
from yarl import URL

UNREADABLE = 255
"""The delivery mode of a message whose properties could not be decoded; the broker refuses any but 1 and 2."""

_HEADER_FRAME = 2
_METHOD_FRAME = 1
_CONNECTION = b"\x00\x0a\x00"
_BLOCKED = b"\x00\x0a\x00\x3c"
_UNBLOCKED = b"\x00\x0a\x00\x3d"
_CLOSE = b"\x00\x0a\x00\x32"
_FRAME_END = b"\xce"
_FIXED = 12
"""Bytes of a content header before its property flags: class, weight, body size."""
_DELIVERY_MODE_FLAG = b"\x10\x00"


class Declare(commands.Queue.Declare):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Bind(commands.Queue.Bind):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Unbind(commands.Queue.Unbind):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Delete(commands.Queue.Delete):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Purge(commands.Queue.Purge):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Get(commands.Basic.Get):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Consume(commands.Basic.Consume):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Tap:
    """Stands between the socket and the library's frame reader, which asks for 1, then 6, then the rest of a frame."""

    def __init__(self, reader: asyncio.StreamReader, on_blocked: Callable[[str | None], None]) -> None:
        self._reader = reader
        self._on_blocked = on_blocked
        self.farewell = ""
        """Why the broker closed the connection, in its words."""
        self._start = b""
        self._kind = 0

    def at_eof(self) -> bool:
        """As of a StreamReader."""
        return self._reader.at_eof()

    async def read(self) -> bytes:
        """As of a StreamReader."""
        return await self._reader.read()

    async def readexactly(self, number: int) -> bytes:
        """As of a StreamReader, a content header that cannot be decoded replaced."""
        data = await self._reader.readexactly(number)
        if not self._start:
            self._start = data
            return data
        if self._kind == 0:
            self._kind = self._start[0]
            return data
        kind, self._kind, self._start = self._kind, 0, b""
        if kind == _HEADER_FRAME:
            return data if _is_readable(data[:-1]) else _unreadable(data)
        if kind == _METHOD_FRAME and data[:3] == _CONNECTION:
            self._note(data)
        return data

    def _note(self, data: bytes) -> None:
        """What the library keeps to itself, or drops."""
        method = data[:4]
        if method == _BLOCKED:
            self._on_blocked(data[5:-1].decode(errors="replace"))
        elif method == _UNBLOCKED:
            self._on_blocked(None)
        elif method == _CLOSE:
            self.farewell = data[7 : 7 + data[6]].decode(errors="replace")


def _is_readable(payload: bytes) -> bool:
    """Can the library decode it? The usual is seen at a glance, at a fifth of the price; the rest is tried."""
    try:
        if _is_usual(payload):
            return True
        ContentHeader().unmarshal(payload)
    except Exception:  # ValueError, struct.error, OverflowError, RecursionError: what any client can provoke
        return False
    return True


_TEXT, _TABLE, _OCTET, _TIME = range(4)
_PROPERTIES = (
    *((0x8000, _TEXT), (0x4000, _TEXT), (0x2000, _TABLE), (0x1000, _OCTET), (0x0800, _OCTET), (0x0400, _TEXT)),
    *((0x0200, _TEXT), (0x0100, _TEXT), (0x0080, _TEXT), (0x0040, _TIME), (0x0020, _TEXT), (0x0010, _TEXT)),
    *((0x0008, _TEXT), (0x0004, _TEXT)),
)
"""Flag and form of each property, in the order in which they follow: content type, encoding, headers …"""
_PLAIN_SIZES = {ord("t"): 1, ord("I"): 4, ord("l"): 8}
"""Bytes of header values that no content can spoil: booleans and integers."""


def _is_usual(payload: bytes) -> bool:
    """True only if every part is certain to be decodable."""
    flags, at = payload[_FIXED] << 8 | payload[_FIXED + 1], _FIXED + 2
    if flags & 3:
        return False
    for flag, form in _PROPERTIES:
        if not flags & flag:
            continue
        if form == _TEXT:
            end = at + 1 + payload[at]
            payload[at + 1 : end].decode()
        elif form == _OCTET:
            end = at + 1
        elif form == _TIME:
            end = at + 8
            if payload[at : at + 3] != b"\0\0\0":
                return False
        else:
            end = at + 4 + int.from_bytes(payload[at : at + 4], "big")
            if end > len(payload) or not _is_usual_table(payload, at + 4, end):
                return False
        at = end
    return at == len(payload)


def _is_usual_table(payload: bytes, at: int, end: int) -> bool:
    while at < end:
        value = at + 2 + payload[at]
        payload[at + 1 : value - 1].decode()
        kind = payload[value - 1]
        if kind == 0x53:  # S, a text, whose bytes may be anything
            at = value + 4 + int.from_bytes(payload[value : value + 4], "big")
        elif size := _PLAIN_SIZES.get(kind):
            at = value + size
        else:
            return False
    return at == end


def _unreadable(data: bytes) -> bytes:
    """A content header of the same length that has one property, the impossible delivery mode."""
    start = data[:_FIXED] + _DELIVERY_MODE_FLAG + bytes((UNREADABLE,))
    return start.ljust(len(data) - 1, b"\0") + _FRAME_END


class Socket(TransportFactory):
    """Makes the connection's stream; keeps the writer, so that a connection that is stuck can be cut."""

    def __init__(self, tls: bool, on_blocked: Callable[[str | None], None]) -> None:
        self._factory: TransportFactory = TLSTransportFactory() if tls else TCPTransportFactory()
        self._on_blocked = on_blocked
        self._writer: asyncio.StreamWriter | None = None
        self._tap: Tap | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[Any, asyncio.StreamWriter]:
        """For the library."""
        reader, self._writer = await self._factory.create(url, **kwargs)
        self._tap = Tap(reader, self._on_blocked)
        return self._tap, self._writer

    @property
    def farewell(self) -> str:
        """Why the broker closed the connection; "" if it did not."""
        return self._tap.farewell if self._tap is not None else ""

    def cut(self) -> None:
        """End it now, saying nothing."""
        if self._writer is not None:
            self._writer.transport.abort()
