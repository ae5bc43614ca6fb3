"""The one connection, in a thread of its own: whatever waits is carried out in one transaction, and synced at once.

Not on the event loop's thread: a store's answer is waited for anyway, and neither a lock nor a slow disk may hold up
the loop. A commit with synchronous=NORMAL has written the write-ahead log and not synced it; syncing it afterwards,
without the write lock, makes it durable all the same, and the transport in the same file goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

from busline.errors import BuslineError, StoreUnavailable
from busline.stores.sqlite.faults import is_busy, unavailable
from busline.stores.sqlite.schema import connect

T = TypeVar("T")

_datasync = getattr(os, "fdatasync", os.fsync)
_MAX_BATCH = 200
_PAUSES = (0.0, 20e-6, 50e-6, 100e-6, 200e-6)
"""Seconds between the first attempts to get the lock; then up to `_LONG_PAUSE`."""
_LONG_PAUSE = 0.005


class Operation:
    """One thing to do. A BuslineError out of `apply` promises that it changed nothing."""

    __slots__ = ("apply", "durable", "error", "future", "result", "until", "writes")

    def __init__(
        self, apply: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any], writes: bool, durable: bool
    ) -> None:
        self.apply = apply
        self.future = future
        self.writes = writes
        self.durable = durable
        self.until = 0.0
        self.result: Any = None
        self.error: BuslineError | None = None

    def settle(self) -> None:
        """Tell whoever waits, if anybody still does."""
        if self.future.done():
            return
        if self.error:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def begin(db: sqlite3.Connection, until: float) -> None:
    """Take the write lock, before the `time.monotonic()` of `until`. Blocks. Raises sqlite3.Error."""
    patiently(lambda: db.execute("BEGIN IMMEDIATE"), until)


def connected(path: str, until: float) -> sqlite3.Connection:
    """As `connect`, and waits in the same way: nobody else has the file while its last other user closes it."""
    return patiently(lambda: connect(path), until)


def patiently(step: Callable[[], T], until: float) -> T:
    """What `step` returns, once others have unlocked the file, before the `time.monotonic()` of `until`. Blocks."""
    pauses = iter(_PAUSES)
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > until:
                raise
        time.sleep(next(pauses, None) or random.uniform(0.0, _LONG_PAUSE))


class Syncer:
    """Makes durable what was committed to the file, by whichever connection. For any thread, one at a time, and to be
    closed with the connection that keeps the log where it is.

    After a sync that failed, the kernel takes what it could not write for written, so that the next one would succeed
    behind a hole in the log: the log is moved into the database and begun anew before.

    It never asks for the log's status: a kernel that was asked for a file's time stamps gives the next write new ones,
    and where the file system has no journal the sync has to write those, too.
    """

    def __init__(self, path: str) -> None:
        self._path = path + "-wal"
        self._fd = -1
        self._has_failed = False

    def sync(self, db: sqlite3.Connection) -> None:
        """Raises OSError, sqlite3.Error. `db` is in no transaction."""
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR)
        self._has_failed, had_failed = True, self._has_failed
        if had_failed:
            _renew(db)
        _datasync(self._fd)
        self._has_failed = False

    def close(self) -> None:
        """Let go of the log."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _renew(db: sqlite3.Connection) -> None:
    """Move all that is in the log, from memory, and empty it."""
    (busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise OSError("a sync of the log failed before, and others use the log")


class Desk:
    """Carries out operations, in the order in which they come."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Operation | None] = SimpleQueue()
        self._syncer = Syncer(path)
        self._ended = self._loop.create_future()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="busline-store", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def run(self, apply: Callable[[sqlite3.Connection], T], *, writes: bool = True, durable: bool = False) -> T:
        """What `apply` returns, once that is committed, and synced if `durable`. Raises what it raises, and
        StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable(f"the store {self._path} is closed")
        operation = Operation(apply, self._loop.create_future(), writes, durable)
        operation.until = time.monotonic() + self._timeout
        self._queue.put(operation)
        try:
            async with asyncio.timeout(self._timeout + 0.5):  # the lock has been given up by then
                result: T = await operation.future
                return result
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._path} did not answer within {self._timeout:g} s") from error

    async def aclose(self) -> None:
        """What was begun is finished, then the thread has ended."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _work(self) -> None:
        db: sqlite3.Connection | None = None
        ended = False
        while not ended:
            batch, ended = self._gather()
            try:
                if db is None and batch:
                    db = connected(self._path, min(operation.until for operation in batch))
                if db is not None:
                    self._carry_out(db, batch)
            except BaseException as error:  # the thread must live, and nobody may wait for ever
                self._refuse(batch, error)
                if db is not None and not is_busy(error):
                    db.close()  # perhaps it is another file by now, or a better disk
                    self._syncer.close()
                    db = None
            self._tell(_settle_all, batch)
        if db is not None:
            db.close()
        self._syncer.close()
        self._tell(self._end)

    def _gather(self) -> tuple[list[Operation], bool]:
        batch: list[Operation] = []
        while len(batch) < _MAX_BATCH and (not batch or not self._queue.empty()):
            operation = self._queue.get()
            if operation is None:
                return batch, True
            if not operation.future.cancelled():
                batch.append(operation)
        return batch, False

    def _carry_out(self, db: sqlite3.Connection, batch: Sequence[Operation]) -> None:
        if not batch:
            return
        try:
            self._transaction(db, batch)
        except sqlite3.Error as error:
            if is_busy(error) or len(batch) == 1:
                raise
            for operation in batch:  # one of them fails: each alone
                try:
                    self._transaction(db, [operation])
                except sqlite3.Error as its_own:
                    self._refuse([operation], its_own)
        if any(operation.durable and operation.error is None for operation in batch):
            self._sync(db, batch)

    def _transaction(self, db: sqlite3.Connection, batch: Sequence[Operation]) -> None:
        if any(operation.writes for operation in batch):
            begin(db, min(operation.until for operation in batch))
        else:
            db.execute("BEGIN")
        try:
            for operation in batch:
                operation.error = None
                try:
                    operation.result = operation.apply(db)
                except BuslineError as error:
                    operation.error = error
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _sync(self, db: sqlite3.Connection, batch: Sequence[Operation]) -> None:
        try:
            self._syncer.sync(db)
        except (OSError, sqlite3.Error) as error:
            for operation in batch:
                if operation.durable and operation.error is None:
                    operation.error = unavailable(error, self._path)

    def _refuse(self, batch: Sequence[Operation], error: BaseException) -> None:
        for operation in batch:
            operation.error = error if isinstance(error, BuslineError) else unavailable(error, self._path)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is gone, and with it everybody who waited
            self._queue.put(None)


def _settle_all(batch: Sequence[Operation]) -> None:
    for operation in batch:
        operation.settle()
