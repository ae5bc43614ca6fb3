"""Durability beside the loop: one fdatasync of the write-ahead log for all the sends that wait for one.

A commit with synchronous=NORMAL has written the log and not synced it. Syncing it afterwards, from a thread and
without the write lock, makes it durable all the same: if the log was reset in between, the checkpoint that allowed
that had synced both files.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Protocol

from busline.errors import BuslineError, OutcomeUnknown

_datasync = getattr(os, "fdatasync", os.fsync)


class Waiting(Protocol):
    """Something that is told when it is durable."""

    def settle(self, error: BuslineError | None = None) -> None:
        """It is, or `error`."""


class WalSync:
    """The thread, and what waits for it. Starts with the first `submit`."""

    def __init__(self, database: str) -> None:
        self._path = database + "-wal"
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Sequence[Waiting] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = self._loop.create_future()
        self._fd = -1

    def submit(self, committed: Sequence[Waiting]) -> None:
        """Settle them, in the loop, once what was committed until now cannot be lost."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="busline-sqlite-sync", daemon=True)
            self._thread.start()
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
        self._queue.put(None)

    def _work(self) -> None:
        ended = False
        while not ended:
            ended, batch = self._gather()
            if batch:
                self._tell(self._settle, batch, self._sync())
        if self._fd >= 0:
            os.close(self._fd)
        self._tell(self._ended.set_result, None)

    def _gather(self) -> tuple[bool, list[Waiting]]:
        """Is this the end, and what was submitted until now."""
        batch: list[Waiting] = []
        while not batch or not self._queue.empty():
            more = self._queue.get()
            if more is None:
                return True, batch
            batch.extend(more)
        return False, batch

    def _sync(self) -> BuslineError | None:
        try:
            if self._fd < 0 or not os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                self._reopen()
            _datasync(self._fd)
        except OSError as error:
            return OutcomeUnknown(f"{self._path} could not be synced to disk: {error}")
        return None

    def _reopen(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._fd = os.open(self._path, os.O_RDWR)

    def _tell(self, callback: object, *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)  # type: ignore[arg-type]  # the two calls above
        except RuntimeError:  # the loop is gone, and with it everybody who waited
            self._queue.put(None)

    @staticmethod
    def _settle(batch: Sequence[Waiting], error: BuslineError | None) -> None:
        for waiting in batch:
            waiting.settle(error)
