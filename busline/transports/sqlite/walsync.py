"""Durability beside the loop: one fdatasync of the write-ahead log for all the sends that wait for one.

A commit with synchronous=NORMAL has written the log and not synced it. Syncing it afterwards, from a thread and
without the write lock, makes it durable all the same: if the log was reset in between, the checkpoint that allowed
that had synced both files.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Protocol

from busline.errors import BuslineError, OutcomeUnknown

_datasync = getattr(os, "fdatasync", os.fsync)

QUICK = 0.0005
"""Seconds. A disk that usually syncs faster than that is not worth two changes of thread for a single send."""


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
        self._at_work = 0
        self._usual = float("inf")

    def submit(self, committed: Sequence[Waiting]) -> None:
        """Settle them, in the loop, once what was committed until now cannot be lost."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="busline-sqlite-sync", daemon=True)
            self._thread.start()
        if len(committed) == 1 and not self._at_work and self._usual < QUICK:
            self._settle(committed, self._sync())
        else:
            self._at_work += 1
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
            ended, turns, batch = self._gather()
            if batch:
                self._tell(self._done, turns, batch, self._sync())
        if self._fd >= 0:
            os.close(self._fd)
        self._tell(self._ended.set_result, None)

    def _gather(self) -> tuple[bool, int, list[Waiting]]:
        """Is this the end, how many submissions, and what they hold."""
        turns, batch = 0, list[Waiting]()
        while not turns or not self._queue.empty():
            more = self._queue.get()
            if more is None:
                return True, turns, batch
            turns += 1
            batch.extend(more)
        return False, turns, batch

    def _sync(self) -> BuslineError | None:
        try:
            if self._fd < 0 or not os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                self._reopen()
            began = time.perf_counter()
            _datasync(self._fd)
            self._note(time.perf_counter() - began)
        except OSError as error:
            return OutcomeUnknown(f"{self._path} could not be synced to disk: {error}")
        return None

    def _note(self, seconds: float) -> None:
        self._usual = seconds if self._usual == float("inf") else 0.8 * self._usual + 0.2 * seconds

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

    def _done(self, turns: int, batch: Sequence[Waiting], error: BuslineError | None) -> None:
        self._at_work -= turns
        self._settle(batch, error)

    @staticmethod
    def _settle(batch: Sequence[Waiting], error: BuslineError | None) -> None:
        for waiting in batch:
            waiting.settle(error)
