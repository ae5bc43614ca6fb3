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
_BLOCKED = b"\x00\x0a\x00\x3c"
_UNBLOCKED = b"\x00\x0a\x00\x3d"
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
        if kind == _METHOD_FRAME and data[:4] in (_BLOCKED, _UNBLOCKED):
            self._on_blocked(data[5:-1].decode(errors="replace") if data[:4] == _BLOCKED else None)
        return data


def _is_readable(payload: bytes) -> bool:
    try:
        ContentHeader().unmarshal(payload)
    except Exception:  # ValueError, struct.error, OverflowError, RecursionError: what any client can provoke
        return False
    return True


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

    async def create(self, url: URL, **kwargs: Any) -> tuple[Any, asyncio.StreamWriter]:
        """For the library."""
        reader, self._writer = await self._factory.create(url, **kwargs)
        return Tap(reader, self._on_blocked), self._writer

    def cut(self) -> None:
        """End it now, saying nothing."""
        if self._writer is not None:
            self._writer.transport.abort()
