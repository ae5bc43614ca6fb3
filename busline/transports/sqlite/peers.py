"""The other processes: a listening Unix stream socket each, and streams to those that we have something to say to."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from busline.transports.sqlite.frames import LENGTH

MAX_BACKLOG = 64 * 1024 * 1024
"""Bytes that may wait for one peer; one that reads so slowly is given up, and connected anew when there is need."""
WAITING_ROOM = 1024
"""Processes that may wait to be let in; one that finds no room comes again."""
EAGER = 16
"""Frames to one peer that leave at once, so that it works on them while we are busy with the rest of the tick."""


class Incoming(asyncio.Protocol):
    """Cuts what one peer sends into frames."""

    def __init__(self, receive: Callable[[bytes], None], open_ones: set[Incoming]) -> None:
        self._receive = receive
        self._open_ones = open_ones
        self._buffer = bytearray()
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._open_ones.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_ones.discard(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= LENGTH.size:
            (size,) = LENGTH.unpack_from(buffer, at)
            end = at + LENGTH.size + size
            if len(buffer) < end:
                break
            self._receive(bytes(buffer[at + LENGTH.size : end]))
            at = end
        del buffer[:at]


class Outgoing:
    """A stream to one peer. What is said in one loop tick is one write; nothing is kept for a peer that is gone."""

    def __init__(self, path: str, lost: Callable[[], None]) -> None:
        """Connect, which takes no time with a Unix socket. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._frames: list[bytes] = []
        self._unsent = b""
        self._backlog = 0
        self._scheduled: asyncio.Handle | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._on_readable)

    def write(self, frame: bytes) -> None:
        """Say it, at the end of this loop tick at the latest."""
        self._frames.append(LENGTH.pack(len(frame)))
        self._frames.append(frame)
        self._backlog += len(frame)
        if self._backlog > MAX_BACKLOG:
            self.close()
        elif self._unsent:
            return
        elif len(self._frames) >= 2 * EAGER:
            self.flush()
        elif self._scheduled is None:
            self._scheduled = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Say it now."""
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        data = b"".join((self._unsent, *self._frames))
        self._frames.clear()
        try:
            sent = self._socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._keep(data[sent:])

    def is_alive(self) -> bool:
        """Has the peer not ended it, as far as the kernel knows? Asked once per loop tick."""
        if not self._frames:
            self._on_readable()
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """End it; what was not sent is lost."""
        if self._socket.fileno() < 0:
            return
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._lost()

    def _keep(self, unsent: bytes) -> None:
        if unsent:
            self._loop.add_writer(self._socket, self.flush)
        elif self._unsent:
            self._loop.remove_writer(self._socket)
        self._unsent = unsent
        self._backlog = len(unsent)

    def _on_readable(self) -> None:
        # A peer never answers on this stream: it is readable when it has ended.
        try:
            ended = self._socket.recv(1) == b""
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self.close()


class Peers:
    """Frames to and from the other processes, by their ids."""

    def __init__(self, address_of: Callable[[int], str | None], receive: Callable[[bytes], None]) -> None:
        self._address_of = address_of
        self._receive = receive
        self._streams: dict[int, Outgoing] = {}
        self._incoming: set[Incoming] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: str, mode: int) -> None:
        """Take frames at the socket `path`, from whoever `mode` lets; no more at the one of before. Raises OSError."""
        if self._server is not None:
            self._server.close()
            self._server = None
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            listening.bind(path)
            os.chmod(path, mode)
            listening.listen(WAITING_ROOM)
            make = asyncio.get_running_loop().create_unix_server
            self._server = await make(lambda: Incoming(self._receive, self._incoming), sock=listening)
        except BaseException:
            listening.close()
            raise

    def send(self, process: int, frame: bytes, *, now: bool = False) -> bool:
        """Say it to the process; False if it is known to be gone."""
        stream = self._streams.get(process)
        if stream is None or not stream.is_alive():
            if not self.reach(process):
                return False
            stream = self._streams[process]
        stream.write(frame)
        if now:
            stream.flush()
        return True

    def knows(self, process: int) -> bool:
        """Is there a stream to it?"""
        return process in self._streams

    def reach(self, process: int) -> bool | None:
        """Make a stream to it, unless there is one; False if it is known to be gone, None if it lets nobody in now."""
        stream = self._streams.get(process)
        if stream is not None and stream.is_alive():  # made since the caller looked
            return True
        address = self._address_of(process)
        if address is None:
            return False
        try:
            self._streams[process] = Outgoing(address, lambda: self._drop(process))
        except BlockingIOError:  # as many wait to be let in as may
            return None
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End all streams and stop listening."""
        for stream in list(self._streams.values()):
            stream.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        for incoming in list(self._incoming):
            if isinstance(incoming.transport, asyncio.Transport):
                incoming.transport.abort()

    def _drop(self, process: int) -> None:
        self._streams.pop(process, None)
