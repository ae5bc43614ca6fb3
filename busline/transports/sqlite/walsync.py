"""Durability beside the loop: one fdatasync of the write-ahead log for all the sends that wait for one.

A commit with synchronous=NORMAL has written the log and not synced it. Syncing it afterwards, from a thread and
without the write lock, makes it durable all the same: if the log was reset in between, the checkpoint that allowed
that had synced both files.

After a sync that failed, the kernel takes the pages that it could not write for written. What comes behind them in the
log would be lost with them in a power cut, so nothing is durable before the log has been moved and begun anew.

Nothing here, or anywhere on a send's way, asks for the log's status: a kernel that was asked for a file's time stamps
gives the next write new ones, and where the file system has no journal the sync has to write those, too.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Protocol

from busline.errors import BuslineError, OutcomeUnknown

_datasync = getattr(os, "fdatasync", os.fsync)
_RENEWAL = 5.0
"""Seconds for which others may be in the way of a new log."""


class Waiting(Protocol):
    """Something that is told when it is durable."""

    def settle(self, error: BuslineError | None = None) -> None:
        """It is, or `error`."""


class WalSync:
    """The thread, and what waits for it. Starts with the first `submit`.

    It answers through a pipe of its own, which takes half of what `call_soon_threadsafe` takes.
    """

    def __init__(self, database: str) -> None:
        self.unsettled = 0
        """How many wait."""
        self._database = database
        self._path = database + "-wal"
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Sequence[Waiting] | None] = SimpleQueue()
        self._synced: deque[tuple[Sequence[Waiting], BuslineError | None]] = deque()
        self._thread: threading.Thread | None = None
        self._ended = self._loop.create_future()
        self._ear = -1
        self._fd = -1
        self._has_failed = False

    def submit(self, committed: Sequence[Waiting]) -> None:
        """Settle them, in the loop, once what was committed until now cannot be lost."""
        if self._thread is None:
            self._start()
        self.unsettled += len(committed)
        self._queue.put(committed)

    async def aclose(self) -> None:
        """What was submitted is settled, then the thread has ended."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.shield(self._ended)
            self._thread.join()
            self._thread = None

    def abandon(self) -> None:
        """End the thread without waiting for it."""
        if self._thread is not None:
            self._queue.put(None)
            self._stop_listening()

    def _start(self) -> None:
        self._ear, mouth = os.pipe()
        self._loop.add_reader(self._ear, self._settle)
        self._thread = threading.Thread(target=self._work, args=(mouth,), name="busline-sqlite-sync", daemon=True)
        self._thread.start()

    def _settle(self) -> None:
        if not os.read(self._ear, 64):
            self._stop_listening()
            self._ended.set_result(None)
        while self._synced:
            batch, error = self._synced.popleft()
            self.unsettled -= len(batch)
            for waiting in batch:
                waiting.settle(error)

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._ear)
        os.close(self._ear)

    def _work(self, mouth: int) -> None:
        try:
            while batch := self._gather():
                self._synced.append((batch, self._sync()))
                os.write(mouth, b"\0")
        except BrokenPipeError:
            pass  # abandoned, together with everybody who waited
        finally:
            os.close(mouth)
            if self._fd >= 0:
                os.close(self._fd)

    def _gather(self) -> list[Waiting]:
        """What was submitted until now; nothing at the end."""
        batch: list[Waiting] = []
        while not batch or not self._queue.empty():
            more = self._queue.get()
            if more is None:
                if batch:
                    self._queue.put(None)
                break
            batch.extend(more)
        return batch

    def _sync(self) -> BuslineError | None:
        try:
            if self._fd < 0:  # SQLite has the same file open until the transport is closed
                self._fd = os.open(self._path, os.O_RDWR)
            if self._has_failed:
                self._renew()
            _datasync(self._fd)
        except (OSError, sqlite3.Error) as error:
            self._has_failed = True
            return OutcomeUnknown(f"{self._path} could not be synced to disk: {error}")
        self._has_failed = False
        return None

    def _renew(self) -> None:
        """Move all that is in the log, and empty it."""
        db = sqlite3.connect(self._database, timeout=_RENEWAL, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            (busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            db.close()
        if busy:
            raise OSError(f"it failed before, and others have used the log for {_RENEWAL:g} s")
