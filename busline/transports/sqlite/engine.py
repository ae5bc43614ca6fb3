"""The one connection, on the event loop's thread: whatever one loop tick asks for is one transaction."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, TypeVarTuple

from busline.errors import BuslineError, TransportClosed, TransportError
from busline.message import Health
from busline.transports.sqlite.checkpoints import Checkpoints
from busline.transports.sqlite.faults import as_transport_error, is_busy
from busline.transports.sqlite.ledger import Ledger
from busline.transports.sqlite.walsync import WalSync

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_BATCH = 500
"""Operations in one transaction; more would hold up the event loop and the other processes."""
PATIENCE = 30.0
"""Seconds for which the file may be locked by others before operations fail."""
RETRY_AFTER = 0.4
"""Seconds until acks and claims are tried again after the file failed."""
LINGER = 0.01
"""Seconds for which what is in no hurry waits for a transaction that something else needs."""
_HOPEFUL = 0.002
"""Seconds of being locked out after which timers, which are no finer than milliseconds, are fine enough."""
_STREAK = 3
"""Durable operations, each alone in its transaction, after which the next is taken for one more of a single sender."""
_SPIN = (0.0, 0.0, 0.0, 20e-6, 20e-6, 50e-6, 50e-6)


class Operation:
    """One thing to do in the next transaction. A BuslineError out of `apply` promises that it changed nothing."""

    __slots__ = ("apply", "arguments", "durable", "error", "future", "result")

    def __init__(
        self, apply: Callable[..., Any], arguments: tuple[Any, ...], future: asyncio.Future[Any] | None, durable: bool
    ) -> None:
        self.apply = apply
        self.arguments = arguments
        self.future = future
        self.durable = durable
        self.result: Any = None
        self.error: BuslineError | None = None

    def settle(self, error: BuslineError | None = None) -> None:
        """Tell whoever waits, if anybody still does."""
        if self.future is None or self.future.done():
            return
        if error := error or self.error:
            self.future.set_exception(error)
        else:
            self.future.set_result(self.result)


class Engine:
    """Collects operations and carries them out; `database is locked` ends here."""

    def __init__(
        self, db: sqlite3.Connection, ledger: Ledger, sync: WalSync, checkpoints: Checkpoints, where: str
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._sync = sync
        self._checkpoints = checkpoints
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Operation] = deque()
        self._suspects = 0  # how many of the pending ones are to be tried alone, because one of them fails
        self._handle: asyncio.Handle | None = None
        self._lingers = False
        self._streak = 0
        self._busy_since: float | None = None
        self._since = time.time()
        self._trouble: Health | None = None
        self.closed = False

    def run(self, apply: Callable[[*Ts], T], *arguments: *Ts, durable: bool = False) -> asyncio.Future[T]:
        """Call `apply` inside the next transaction; return what it returned once that is committed, or synced too
        if `durable`. Raises what `apply` raised, TransportClosed, or TransportError if the file failed. A future rather
        than a coroutine, and arguments rather than a closure, of which each message would pay for one more."""
        if self.closed:
            raise TransportClosed(f"{self._where} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending.append(Operation(apply, arguments, future, durable))
        if durable and self._streak >= _STREAK and not self._sync.unsettled and self._handle is None:
            self._flush()  # most likely nobody is coming whose operation could go along
        else:
            self.schedule()
        return future

    def post(self, apply: Callable[[], object]) -> None:
        """The same when nobody waits for it."""
        if not self.closed:
            self._pending.append(Operation(apply, (), None, durable=False))
            self.schedule()

    def schedule(self) -> None:
        """There is something to do: have a transaction at the end of this loop tick."""
        if self._handle is None and not self.closed:
            self._handle = self._loop.call_soon(self._flush)

    def linger(self) -> None:
        """The same, and it may as well be the next transaction of something else that comes soon."""
        if self._handle is None and not self._lingers and not self.closed:
            self._lingers = True
            self._loop.call_later(LINGER, self._end_lingering)

    def _end_lingering(self) -> None:
        self._lingers = False
        if self._ledger.has_work():
            self.schedule()

    def health(self) -> Health:
        """Can the file be written, and its log be moved?"""
        return self._trouble or self._checkpoints.trouble or Health("healthy", self._since)

    def report(self, error: Exception | None) -> None:
        """Something that reads the file beside the operations has failed, or works again."""
        if error is not None:
            self._in_trouble(as_transport_error(error, self._where))
        elif self._trouble is not None:
            self._trouble, self._since = None, time.time()

    def close(self) -> None:
        """Nothing is carried out any more; what was pending raises TransportClosed."""
        self.closed = True
        if self._handle is not None:
            self._handle.cancel()
        while self._pending:
            self._pending.popleft().settle(TransportClosed(f"{self._where} is closed"))

    def _flush(self) -> None:
        self._handle = None
        if not (self._pending or self._ledger.has_work()):
            return
        batch: list[Operation] = []
        try:
            if not self._begin():
                self._wait_for_the_lock()
                return
            batch = self._take()
            self._carry_out(batch)
        except Exception as error:
            self._undo()
            self._failed(batch, error)
        except BaseException:
            self._undo()
            raise
        else:
            self._succeeded(batch)

    def _begin(self) -> bool:
        for pause in _SPIN:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                time.sleep(pause)
            else:
                self._busy_since = None
                return True
        return False

    def _wait_for_the_lock(self) -> None:
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since > PATIENCE:
            error = TransportError(f"{self._where} has been locked by another program for {PATIENCE:g} s")
            self._in_trouble(error)
            while self._pending:
                self._pending.popleft().settle(error)
            self._suspects = 0
        waited = now - self._busy_since
        if waited < _HOPEFUL:
            self._handle = self._loop.call_soon(self._flush)
        else:
            self._handle = self._loop.call_later(random.uniform(0.0005, min(0.02, 0.002 + waited / 10)), self._flush)

    def _take(self) -> list[Operation]:
        size = 1 if self._suspects else MAX_BATCH
        if len(self._pending) <= size:
            batch = list(self._pending)
            self._pending.clear()
            return batch
        return [self._pending.popleft() for _ in range(size)]

    def _carry_out(self, batch: Iterable[Operation]) -> None:
        alone = self._suspects > 0
        self._ledger.begin(settle=not alone)
        for operation in batch:
            try:
                operation.result = operation.apply(*operation.arguments)
            except BuslineError as error:
                operation.error = error
        self._ledger.finish(claim=not alone)
        self._db.execute("COMMIT")

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._ledger.rolled_back()

    def _succeeded(self, batch: list[Operation]) -> None:
        self._suspects = max(0, self._suspects - len(batch))
        if self._trouble is not None:
            self.report(None)
        self._ledger.committed()
        self._checkpoints.committed(len(batch))
        self._streak = self._streak + 1 if len(batch) == 1 and batch[0].durable else 0
        durable = []
        for operation in batch:
            if operation.durable and operation.error is None:
                durable.append(operation)
            else:
                operation.settle()
        if durable:
            self._sync.submit(durable)
        if self._pending or self._ledger.has_work():
            self.schedule()

    def _failed(self, batch: list[Operation], error: Exception) -> None:
        trouble = as_transport_error(error, self._where)
        self._in_trouble(trouble)
        if batch and not self._suspects:
            self._suspects = len(batch)
            for operation in reversed(batch):
                operation.error = None
                self._pending.appendleft(operation)
        elif batch:
            self._suspects -= 1
            batch[0].settle(trouble)
        elif self._pending:  # not even BEGIN works
            self._pending.popleft().settle(trouble)
        if self._pending:
            self.schedule()
        elif self._handle is None:
            self._ledger.drop_late_acks()
            self._handle = self._loop.call_later(RETRY_AFTER, self._flush)

    def _in_trouble(self, error: BuslineError) -> None:
        since = self._trouble.since if self._trouble else time.time()
        self._trouble = Health("degraded", since, str(error))
