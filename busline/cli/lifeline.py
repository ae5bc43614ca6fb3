"""The stream between a worker process and its parent: it ends when either does, and carries the child's news."""

from __future__ import annotations

import asyncio
import os
import socket

READY, RETIRING = b"ready", b"retiring"
"""It consumes; it takes no further message and only finishes what it has."""
LONGEST_NEWS = 16_000_000
"""Bytes of one line; whoever sends longer ones is not one of ours."""
PAUSE = 0.02
"""Seconds that the parent has to make room in the stream, before the rest of a long report is sent."""


class Lifeline:
    """The child's end, known by its descriptor.

    News are lines. A parent that does not read, because it was stopped, holds up nobody: what does not fit into the
    stream waits here, and a report that would have to wait behind an older one is left out.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._unsent = b""

    def tell(self, news: bytes) -> None:
        """Tell the parent, if it is still there."""
        self._unsent += news + b"\n"
        self._send()

    def report(self, news: bytes) -> None:
        """The same, unless the parent has yet to read an older report."""
        self._send()
        if not self._unsent:
            self.tell(news)

    async def sent(self) -> None:
        """Until the parent has, or can have, read all of it."""
        while self._unsent:
            await asyncio.sleep(PAUSE)
            self._send()

    def _send(self) -> None:
        if not self._unsent:
            return
        try:
            sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # the parent is gone, and whoever reads from the lifeline makes us leave
            self._unsent = b""
            return
        self._unsent = self._unsent[sent:]
