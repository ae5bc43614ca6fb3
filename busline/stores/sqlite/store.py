"""The store itself: checks what it is given, and hands it to its desk."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from busline.clock import Clock, SystemClock
from busline.errors import ConfigurationError, StoreUnavailable
from busline.stores.base import Claimed, ClaimRecord, ClaimResult, JobRecord, Orphan, check_text, looks
from busline.stores.sqlite import claims, jobs
from busline.stores.sqlite.desk import Desk, Syncer, begin, connected, patiently
from busline.stores.sqlite.faults import HOPELESS, code_of, meaning, unavailable
from busline.stores.sqlite.schema import connect, prepare
from busline.stores.urls import DEFAULT_TIMEOUT, options, seconds

T = TypeVar("T")

_FIRST_LOOK = 0.01
_LONGEST_PAUSE = 1.0
"""Seconds between two looks at a job that somebody waits for; the pauses grow from the first to the last."""
_ENDED = "the handler has ended the transaction itself; leave that to the block"
_KNOWN = {"timeout": f"{DEFAULT_TIMEOUT}", "lease": ""}
"""`lease` is the transport's: the URL of a bus is the URL of its store, too."""


def from_url(url: str) -> SqliteStore:
    """`sqlite:///relative.db` or `sqlite:////absolute.db`, with `?timeout=` seconds. Raises ConfigurationError."""
    path = urlsplit(url).path
    if not path.startswith("/") or len(path) < 2:
        raise ConfigurationError(f"{url!r} names no file; write sqlite:///busline.db or sqlite:////srv/app/busline.db")
    chosen = options(url, _KNOWN)
    return SqliteStore(unquote(path[1:]), timeout=seconds(url, "timeout", chosen["timeout"]))


class SqliteStore:
    """A client of the store in the file `path`. An operation ends within `timeout` seconds, also of a locked file."""

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = DEFAULT_TIMEOUT, clock: Clock | None = None
    ) -> None:
        self._path = os.path.abspath(path)
        self._timeout = timeout
        self._now = (clock or SystemClock()).time
        self._gate = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._spare: sqlite3.Connection | None = None
        self._syncer = Syncer(self._path)
        self._desk: Desk | None = None

    @property
    def where(self) -> str:
        return self._path

    async def open(self) -> None:
        async with self._gate:
            if self._desk is None:
                await asyncio.to_thread(self._prepare)
                self._desk = Desk(self._path, self._timeout)
                self._desk.start()

    async def aclose(self) -> None:
        async with self._gate:
            desk, self._desk = self._desk, None
            if desk is not None:
                await desk.aclose()
        async with self._turn:
            if self._spare is not None:
                self._spare.close()
                self._spare = None
            self._syncer.close()

    async def claim(
        self,
        key: str,
        fingerprint: str,
        *,
        lease: float,
        ttl: float,
        job: str = "",
        message_id: str = "",
        message: bytes = b"",
        replaces: str = "",
    ) -> ClaimResult:
        check_text("key", key)
        for text in (fingerprint, job, message_id, replaces):
            check_text("id", text)
        wish = claims.Wish(key, fingerprint, lease, ttl, job, message_id, message, replaces)
        return await self._write(lambda db: claims.claim(db, wish, self._now()), durable=bool(message or replaces))

    async def extend(self, claim: Claimed, *, lease: float) -> bool:
        return await self._write(lambda db: claims.extend(db, claim, lease, self._now()))

    async def complete(self, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        await self._write(lambda db: claims.complete(db, claim, result, outgoing, ttl, self._now()), durable=True)

    async def fail(self, claim: Claimed, error: bytes, *, ttl: float, cancelled: bool = False) -> None:
        await self._write(lambda db: claims.fail(db, claim, error, ttl, cancelled, self._now()), durable=True)

    async def release(self, claim: Claimed) -> None:
        await self._write(lambda db: claims.release(db, claim, self._now()))

    async def reopen(self, key: str) -> bool:
        check_text("key", key)
        return await self._write(lambda db: claims.reopen(db, key, self._now()), durable=True)

    async def read(self, key: str) -> ClaimRecord | None:
        check_text("key", key)
        return await self._look(lambda db: claims.read(db, key, self._now()))

    async def orphans(self, limit: int, *, scopes: Collection[str] = ()) -> Sequence[Orphan]:
        return await self._look(lambda db: claims.orphans(db, limit, scopes, self._now()))

    async def add_job(self, job: JobRecord, *, ttl: float, unique: str = "", unique_for: float = 0.0) -> JobRecord:
        for text in (job.id, job.claim, unique):
            check_text("id", text)
        return await self._write(lambda db: jobs.add(db, job, ttl, unique, unique_for, self._now()), durable=True)

    async def drop_job(self, id: str) -> None:
        check_text("id", id)
        await self._write(lambda db: jobs.drop(db, id), durable=True)

    async def job(self, id: str) -> JobRecord | None:
        check_text("id", id)
        return await self._look(lambda db: jobs.find(db, id, self._now()))

    async def jobs(self, limit: int, *, topic: str = "") -> Sequence[JobRecord]:
        check_text("topic", topic)
        return await self._look(lambda db: jobs.latest(db, limit, topic, self._now()))

    async def set_progress(self, id: str, progress: bytes) -> None:
        check_text("id", id)
        await self._write(lambda db: jobs.set_progress(db, id, progress, self._now()))

    async def request_cancel(self, id: str) -> JobRecord | None:
        check_text("id", id)
        return await self._write(lambda db: jobs.request_cancel(db, id, self._now()), durable=True)

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        check_text("id", job.id)
        seen = looks(job, claim)
        until, pause = time.monotonic() + timeout, _FIRST_LOOK
        while await self._look(lambda db: self._looks(db, job.id)) == seen:
            left = until - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(pause, left))
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def sweep(self, limit: int) -> int:
        return await self._write(lambda db: jobs.sweep(db, limit, self._now()))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[sqlite3.Connection]:
        """A `sqlite3.Connection`, for this event loop's thread, inside `BEGIN IMMEDIATE`: until the block is left
        nobody else writes to the file, neither another process nor this one's transport and store. So keep it short,
        and await nothing of the bus in it. Do not commit. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._turn.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._path}: other transactions of this process last too long") from error
        try:
            db = await _whole(asyncio.to_thread(self._begin))
            yield db
            if not db.in_transaction:
                raise ConfigurationError(_ENDED)
            await _whole(asyncio.to_thread(self._commit, db))
        finally:
            if self._spare is not None and self._spare.in_transaction:
                self._spare.execute("ROLLBACK")
            self._turn.release()

    async def complete_in(
        self, connection: sqlite3.Connection, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float
    ) -> None:
        if not connection.in_transaction:
            raise ConfigurationError(_ENDED)
        try:
            claims.complete(connection, claim, result, outgoing, ttl, self._now())
        except sqlite3.Error as error:
            raise unavailable(error, self._path) from error

    async def _write(self, apply: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        return await self._opened().run(apply, durable=durable)

    async def _look(self, apply: Callable[[sqlite3.Connection], T]) -> T:
        return await self._opened().run(apply, writes=False)

    def _looks(self, db: sqlite3.Connection, id: str) -> tuple[object, ...]:
        job = jobs.find(db, id, self._now())
        return looks(job, claims.read(db, job.claim, self._now()) if job and job.claim else None)

    def _opened(self) -> Desk:
        if self._desk is None:
            raise StoreUnavailable(f"the store {self._path} is not open")
        return self._desk

    def _prepare(self) -> None:
        try:
            patiently(self._prepare_once, time.monotonic() + self._timeout)
        except (sqlite3.Error, OSError) as error:
            if code_of(error) in HOPELESS or isinstance(error, OSError):
                raise ConfigurationError(meaning(error, self._path)) from error
            raise unavailable(error, self._path) from error

    def _prepare_once(self) -> None:
        db = connect(self._path)
        try:
            prepare(db, self._path)
        finally:
            db.close()

    def _begin(self) -> sqlite3.Connection:
        self._opened()
        try:
            until = time.monotonic() + self._timeout
            if self._spare is None:
                self._spare = connected(self._path, until)
            begin(self._spare, until)
        except sqlite3.Error as error:
            raise unavailable(error, self._path) from error
        return self._spare

    def _commit(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("COMMIT")
            self._syncer.sync(db)
        except (sqlite3.Error, OSError) as error:
            raise unavailable(error, self._path) from error


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Its result, also if we are cancelled meanwhile: a thread that works on a connection cannot be left alone."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled:
        raise cancelled
    return result
