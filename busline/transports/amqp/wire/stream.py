"""The bytes of one connection: what comes in is parted among lanes and the library, what leaves is gathered.

The library reads from a `StreamReader`, in which it finds every frame that no lane took; it writes to a `Writer`. So it
keeps its handshake, heartbeats, answers to rare methods and its closing, and knows nothing of what lanes do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import Any, Protocol, cast

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from busline.transports.amqp.wire.reading import readable

METHOD, HEADER, BODY = 1, 2, 3
_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_KINDS = frozenset({METHOD, HEADER, BODY, _HEARTBEAT[0]})
_END = 0xCE
_START = Struct(">BHI").unpack_from
"""Kind, channel, bytes of the payload."""
_OVERHEAD = 8
_BLOCKED, _UNBLOCKED = b"\x00\x0a\x00\x3c", b"\x00\x0a\x00\x3d"
_CLOSE, _CLOSE_OK = b"\x00\x0a\x00\x32", b"\x00\x0a\x00\x33"
_CHANNEL_ENDS = frozenset({b"\x00\x14\x00\x28", b"\x00\x14\x00\x29"})
"""`channel.close` and its answer: whichever side sends one, nothing more may be sent on that channel."""
_CONNECTION_ENDS = frozenset({_CLOSE, _CLOSE_OK})

FRAME_MAX = 131_072
"""Bytes of the longest frame until the broker has said what it is, and where it says that there is none."""
GATHERED = 65_536
"""Bytes that are written at once, before the turn of the event loop is over."""
SIGN_OF_LIFE = 1.0
"""Seconds; the library is told so often that the peer is alive while lanes take everything that comes."""


class Taker(Protocol):
    """A lane, as its stream sees it."""

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """The payload of a frame of its channel. False: it is the library's."""
        ...

    def end(self) -> None:
        """Nothing can be sent any more."""


class Turn:
    """Lets streams write at the end of a turn of the event loop: those first in which replies leave, so that no ack
    overtakes the reply before it."""

    def __init__(self) -> None:
        self._waiting: list[Stream] = []

    def soon(self, stream: Stream) -> None:
        """It has something to write."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        if stream.first:
            self._waiting.insert(0, stream)
        else:
            self._waiting.append(stream)

    def flush(self) -> None:
        """Write now."""
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            stream.flush()


class Stream(asyncio.StreamReaderProtocol):
    """See above."""

    def __init__(
        self, reader: asyncio.StreamReader, turn: Turn, first: bool, on_blocked: Callable[[str | None], None]
    ) -> None:
        super().__init__(reader)
        self.first = first
        self.farewell = ""
        """Why the broker closed the connection, in its words."""
        self.frame_max = FRAME_MAX
        self.lanes: dict[int, Taker] = {}
        self._clock = asyncio.get_running_loop().time
        self._reader = reader
        self._turn = turn
        self._on_blocked = on_blocked
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._needed = 0
        self._broken = False
        self._told_at = 0.0
        self._gathered: list[bytes] = []
        self._size = 0
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end_all()
        self._room.set()
        super().connection_lost(exc)

    # -- in -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._broken:
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        try:
            at = self._part(data)
        except (IndexError, StructError, AMQPConnectionError) as error:
            self._broken = True
            self._reader.set_exception(AMQPConnectionError(f"what came is no AMQP: {error}"))
            return
        if at < len(data):
            self._rest += data[at:]

    def _part(self, data: bytes) -> int:
        """Hand over all whole frames; where the next begins. Raises for what is none."""
        at, end, size, lanes, taken = 0, 0, len(data), self.lanes, False
        while at < size:
            if data[at] not in _KINDS:
                raise AMQPConnectionError(f"a frame of kind {data[at]}")
            if size - at < _OVERHEAD:
                self._needed = _OVERHEAD
                break
            kind, number, length = _START(data, at)
            end = at + _OVERHEAD + length
            if end > size:
                if length > self.frame_max:
                    raise AMQPConnectionError(f"a frame of {length} bytes")
                self._needed = end - at
                break
            if data[end - 1] != _END:
                raise AMQPConnectionError("a frame without its end")
            lane = lanes.get(number)
            if lane is not None and lane.take(kind, data, at + 7, end - 1):
                taken = True
            else:
                self._leave(kind, number, data[at:end])
            at = end
        if taken and (now := self._clock()) - self._told_at > SIGN_OF_LIFE:
            self._told_at = now
            self._reader.feed_data(_HEARTBEAT)
        return at

    def _leave(self, kind: int, channel: int, frame: bytes) -> None:
        """To the library, what would kill it replaced; and note what it keeps to itself."""
        if kind == HEADER:
            frame = readable(frame)
        elif kind == METHOD:
            method = frame[7:11]
            if method == _BLOCKED:
                self._on_blocked(frame[12:-1].decode(errors="replace"))
            elif method == _UNBLOCKED:
                self._on_blocked(None)
            elif method == _CLOSE:
                self.farewell = frame[14 : 14 + frame[13]].decode(errors="replace")
            self._end_with(method, channel)
        self._reader.feed_data(frame)

    # -- out ----------------------------------------------------------------------------------------------------

    def send(self, frames: bytes) -> None:
        """They leave at the end of this turn of the event loop, with whatever else does."""
        if not self._gathered:
            self._turn.soon(self)
        self._gathered.append(frames)
        self._size += len(frames)
        if self._size > GATHERED:
            self._turn.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        if not self._gathered:
            return
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._size = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def before(self, frame: bytes) -> None:
        """The library is about to write this."""
        self._turn.flush()
        if frame[:1] == b"\x01":
            self._end_with(frame[7:11], frame[1] << 8 | frame[2])

    @property
    def is_full(self) -> bool:
        """Does the peer not take what was written?"""
        return not self._room.is_set()

    async def room(self) -> None:
        """Until it takes it, or the connection ends."""
        await self._room.wait()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._room.clear()
        super().pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._room.set()
        super().resume_writing()

    # -- the end ------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """End it now, saying nothing."""
        if self._transport is not None:
            self._transport.abort()

    def _end_with(self, method: bytes, channel: int) -> None:
        if method in _CHANNEL_ENDS:
            if (lane := self.lanes.pop(channel, None)) is not None:
                lane.end()
        elif method in _CONNECTION_ENDS:
            self._end_all()

    def _end_all(self) -> None:
        for lane in self.lanes.values():
            lane.end()
        self.lanes.clear()


class Writer(asyncio.StreamWriter):
    """Keeps what the library writes behind what lanes have sent before."""

    def __init__(self, transport: asyncio.Transport, stream: Stream, reader: asyncio.StreamReader) -> None:
        super().__init__(transport, stream, reader, asyncio.get_running_loop())
        self._stream = stream

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.StreamWriter`."""
        self._stream.before(bytes(data[:11]))
        super().write(data)


class Socket(TransportFactory):
    """Makes the connection's stream, for the library; keeps it, so that a connection that is stuck can be cut."""

    def __init__(self, tls: bool, turn: Turn, first: bool, on_blocked: Callable[[str | None], None]) -> None:
        self._tls = tls
        self._turn = turn
        self._first = first
        self._on_blocked = on_blocked
        self.stream: Stream | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """For the library."""
        certificates = kwargs.pop("ssl_context_provider")
        context = await certificates.get_context() if self._tls else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        stream = Stream(reader, self._turn, self._first, self._on_blocked)
        host, port = url.host or "", url.port or 0
        try:
            transport, _ = await loop.create_connection(lambda: stream, host, port, ssl=context, **kwargs)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self.stream = stream
        return reader, Writer(transport, stream, reader)

    @property
    def farewell(self) -> str:
        """Why the broker closed the connection; "" if it did not."""
        return self.stream.farewell if self.stream is not None else ""

    def cut(self) -> None:
        """End it now, saying nothing."""
        if self.stream is not None:
            self.stream.cut()
