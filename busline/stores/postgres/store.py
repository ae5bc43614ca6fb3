"""The store itself: each operation is one statement, but for the jobs that have to be unique."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from busline.errors import ClaimLost, ConfigurationError, StoreUnavailable
from busline.stores.base import (
    Claimed,
    ClaimRecord,
    ClaimResult,
    Completed,
    Failed,
    InProgress,
    JobRecord,
    Mismatch,
    Orphan,
    check_text,
    looks,
)
from busline.stores.postgres.ears import Ears
from busline.stores.postgres.faults import FAULTS, at_startup, unavailable
from busline.stores.postgres.link import Link, ended
from busline.stores.postgres.sql import TABLES, VERSION, escape, statements, unescape
from busline.stores.postgres.url import Settings, read

_LOOK_ANYWAY = 5.0
"""Seconds after which somebody who waits looks although nothing was heard: silence of a pooler is no news."""


def from_url(url: str) -> PostgresStore:
    """`postgresql://user:password@host:5432/database`, with `?schema=public&pool=10&timeout=5`, and with what libpq
    knows: sslmode, sslrootcert, sslcert, sslkey, host (a socket's folder), passfile, application_name,
    target_session_attrs. Raises ConfigurationError."""
    return PostgresStore(read(url))


class PostgresStore:
    """A client of the store in one schema of a database. Its tables' names begin with `busline_`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._link = Link(settings)
        self._ears = Ears(self._link)
        self._sql = statements(settings.schema)
        self._gate = asyncio.Lock()
        self._open = False

    def __repr__(self) -> str:
        return f"PostgresStore({self.where})"

    @property
    def where(self) -> str:
        return self._settings.where

    async def open(self) -> None:
        async with self._gate:
            if self._open:
                return
            try:
                async with asyncio.timeout(self._settings.timeout):
                    await self._link.open()
                    await self._prepare()
            except FAULTS as error:
                await self._link.aclose()
                raise at_startup(error, self.where, self._settings.timeout) from None  # it may have the password
            except BaseException:
                await self._link.aclose()
                raise
            self._open = True

    async def aclose(self) -> None:
        async with self._gate:
            self._open = False
            await self._ears.aclose()
            await self._link.aclose()

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
        token = secrets.token_hex(16)
        named = [_text(each) for each in (key, fingerprint)]
        id, replaced = _text(job), _text(replaces)
        kept = (_text(message_id), message) if message else ("", None)
        values = (*named, token, lease, ttl, id, *kept, *([replaced] if replaces else []))
        statement = self._sql.replace if replaces else self._sql.take
        until = time.monotonic() + self._settings.timeout
        while time.monotonic() < until:
            if row := await self._one(statement, *values):
                return Claimed(key, token, row["fence"], row["attempt"], row["cancelled"])
            found = await self._row(self._sql.look, named[0])
            result = _refusal(found, key, fingerprint, replaces)
            if result is None:
                continue  # it has come free between the two looks
            if id and not isinstance(result, Mismatch):
                await self._execute(self._sql.point, named[0], id)
            return result
        raise StoreUnavailable(f"{self.where}: {key!r} changes too fast")

    async def extend(self, claim: Claimed, *, lease: float) -> bool:
        return bool((await self._guarded(self._sql.extend, claim, lease))["cancelled"])

    async def complete(self, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        await self._guarded(self._sql.finish, claim, "COMPLETED", result, b"", outgoing, ttl)

    async def fail(self, claim: Claimed, error: bytes, *, ttl: float, cancelled: bool = False) -> None:
        state = "CANCELLED" if cancelled else "FAILED"
        await self._guarded(self._sql.finish, claim, state, b"", error, b"", ttl)

    async def release(self, claim: Claimed) -> None:
        await self._guarded(self._sql.release, claim)

    async def reopen(self, key: str) -> bool:
        return await self._one(self._sql.reopen, _text(key)) is not None

    async def read(self, key: str) -> ClaimRecord | None:
        return _claim_record(await self._row(self._sql.read, _text(key)))

    async def orphans(self, limit: int, *, scopes: Collection[str] = ()) -> Sequence[Orphan]:
        rows = await self._rows(self._sql.orphans, limit, [escape(each) for each in scopes])
        return [
            Orphan(
                unescape(row["key"]),
                unescape(row["fingerprint"]),
                unescape(row["message_id"]),
                row["message"],
                row["attempt"],
            )
            for row in rows
        ]

    async def add_job(self, job: JobRecord, *, ttl: float, unique: str = "", unique_for: float = 0.0) -> JobRecord:
        id, claim, name = _text(job.id), _text(job.claim), _text(unique)
        fields = (job.sent_at, job.message, claim, job.progress, job.cancel_requested)
        values = (id, escape(job.topic), *fields, ttl, name or None, unique_for)

        async def add(connection: Any) -> Any:
            if not unique:
                return await self._add(connection, values)
            async with connection.transaction():
                await connection.execute(self._sql.lock_unique, name)
                return await self._add(connection, values, name)

        return _job_record(await self._link.write(add))

    async def _add(self, connection: Any, values: tuple[object, ...], unique: str = "") -> Any:
        if unique:
            same = await connection.fetchrow(self._sql.job, values[0])
            if found := same or await connection.fetchrow(self._sql.holder, unique):
                return found
        added = await connection.fetchrow(self._sql.add, *values)
        return added or await connection.fetchrow(self._sql.job, values[0])

    async def drop_job(self, id: str) -> None:
        await self._execute(self._sql.drop, _text(id))

    async def job(self, id: str) -> JobRecord | None:
        row = await self._row(self._sql.job, _text(id))
        return _job_record(row) if row else None

    async def jobs(self, limit: int, *, topic: str = "") -> Sequence[JobRecord]:
        check_text("topic", topic)
        rows = (
            await self._rows(self._sql.jobs_of, limit, escape(topic))
            if topic
            else await self._rows(self._sql.jobs, limit)
        )
        return [_job_record(row) for row in rows]

    async def set_progress(self, id: str, progress: bytes) -> None:
        await self._execute(self._sql.progress, _text(id), progress)

    async def request_cancel(self, id: str) -> JobRecord | None:
        row = await self._one(self._sql.cancel, _text(id))
        return _job_record(row) if row else None

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        seen, until = looks(job, claim), time.monotonic() + timeout
        while True:
            await self._ears.listen()
            said = self._ears.wait(job.id)
            try:
                if await self._looks(job.id) != seen:
                    return
                left = until - time.monotonic()
                if left <= 0:
                    return
                await asyncio.wait([said], timeout=min(left, _LOOK_ANYWAY))
            finally:
                self._ears.forget(job.id, said)

    async def sweep(self, limit: int) -> int:
        swept = await self._delete(self._sql.sweep_claims, limit)
        return swept + await self._delete(self._sql.sweep_jobs, limit - swept)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """An `asyncpg.Connection` inside a READ COMMITTED transaction, from a pool of its own of `pool=` connections.
        Do not commit. Raises StoreUnavailable; what the handler's own statements raise comes out as it is."""
        async with self._link.transaction() as connection:
            yield connection
            self._check(connection)

    async def complete_in(self, connection: Any, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        guard = (_text(claim.key), claim.token, claim.fence)
        self._check(connection)
        try:
            async with asyncio.timeout(self._settings.timeout):
                row = await connection.fetchrow(self._sql.finish, *guard, "COMPLETED", result, b"", outgoing, ttl)
        except FAULTS as error:
            raise unavailable(error, self.where, self._settings.timeout) from error
        if row is None:
            raise ClaimLost(claim.key)

    def _check(self, connection: Any) -> None:
        """The handler has left us our transaction."""
        if ended(connection):
            raise StoreUnavailable(f"{self.where}: the connection ended inside the transaction, which is undone")
        if not connection.is_in_transaction():
            raise ConfigurationError("the handler has ended the transaction itself; leave that to the block")

    async def _prepare(self) -> None:
        async def prepare(connection: Any) -> None:
            if not await self._exists(connection):
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('busline', 0))")
                    if not await self._exists(connection):
                        await self._create(connection)
            version = await connection.fetchval(f'SELECT version FROM "{self._settings.schema}".busline_store')
            if version != VERSION:
                raise ConfigurationError(
                    f"{self.where} has a store of version {version}, this busline knows {VERSION};"
                    " upgrade busline or use another schema"
                )

        await self._link.prepare(prepare)

    async def _exists(self, connection: Any) -> bool:
        # Not to_regclass, which may answer from a cache that is older than the lock which we have waited for.
        table = "SELECT FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = 'busline_store'"
        return await connection.fetchval(f"SELECT EXISTS ({table})", self._settings.schema) is True

    async def _create(self, connection: Any) -> None:
        encoding = await connection.fetchval("SHOW server_encoding")
        if encoding != "UTF8":
            raise ConfigurationError(f"{self.where}: the database's encoding is {encoding}, and must be UTF8")
        schema = f'"{self._settings.schema}"'
        there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)"
        if not await connection.fetchval(there, self._settings.schema):
            await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.execute(TABLES.replace("{s}", schema))

    async def _looks(self, id: str) -> tuple[object, ...]:
        job = await self.job(id)
        return looks(job, await self.read(job.claim) if job and job.claim else None)

    async def _guarded(self, statement: str, claim: Claimed, *values: object) -> Any:
        row = await self._one(statement, _text(claim.key), claim.token, claim.fence, *values)
        if row is None:
            raise ClaimLost(claim.key)
        return row

    async def _one(self, statement: str, *values: object) -> Any:
        return await self._link.write(lambda connection: connection.fetchrow(statement, *values))

    async def _execute(self, statement: str, *values: object) -> None:
        await self._link.write(lambda connection: connection.execute(statement, *values))

    async def _delete(self, statement: str, limit: int) -> int:
        done = await self._link.write(lambda connection: connection.execute(statement, limit))
        return int(done.rpartition(" ")[2])

    async def _row(self, statement: str, *values: object) -> Any:
        return await self._link.read(lambda connection: connection.fetchrow(statement, *values))

    async def _rows(self, statement: str, *values: object) -> Any:
        return await self._link.read(lambda connection: connection.fetch(statement, *values))


def _text(text: str) -> str:
    check_text("key or id", text)
    return escape(text)


def _refusal(row: Any, key: str, fingerprint: str, replaces: str) -> ClaimResult | None:
    """Why the key was not given; None if it is free by now."""
    if row is None:
        return InProgress(0.0) if replaces else None
    if unescape(row["fingerprint"]) != fingerprint:
        return Mismatch()
    state, message, message_id = row["state"], row["message"], unescape(row["message_id"])
    if state == "COMPLETED":
        return Completed(row["result"], row["outgoing"])
    if state in ("FAILED", "CANCELLED"):
        return Failed(row["error"], state == "CANCELLED")
    if replaces and (message is None or message_id != replaces):
        return InProgress(0.0)
    if state == "PROCESSING" and row["left"] > 0:
        return InProgress(row["left"])
    if message is not None and not replaces:
        return Orphan(key, fingerprint, message_id, message, row["attempt"])
    return None


def _claim_record(row: Any) -> ClaimRecord | None:
    if row is None:
        return None
    key, state, fingerprint, attempt, lease_until, result, error = row
    return ClaimRecord(unescape(key), state, unescape(fingerprint), attempt, lease_until, result, error)


def _job_record(row: Any) -> JobRecord:
    names = ("id", "topic", "sent_at", "message", "claim", "progress", "cancel_requested", "expires_at")
    job = JobRecord(*(row[name] for name in names))
    return replace(job, id=unescape(job.id), topic=unescape(job.topic), claim=unescape(job.claim))
