"""The store itself: checks what it is given, and hands it to claims and jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from busline.clock import Clock, SystemClock
from busline.stores.base import (
    Claimed,
    ClaimRecord,
    ClaimResult,
    JobRecord,
    Mismatch,
    Orphan,
    check_text,
    looks,
)
from busline.stores.dynamodb.claims import Claims, Wish
from busline.stores.dynamodb.jobs import Jobs
from busline.stores.dynamodb.link import FAULTS, Link
from busline.stores.dynamodb.tables import prepare
from busline.stores.dynamodb.url import Settings, read

_FIRST_LOOK = 0.05
_LONGEST_PAUSE = 1.0
"""Seconds between two looks at a job that somebody waits for; the pauses grow from the first to the last."""


def from_url(url: str) -> DynamoStore:
    """`dynamodb://REGION?table=busline`; docs/stores.md has the options. Raises ConfigurationError."""
    return DynamoStore(read(url))


class DynamoStore:
    """A client of the store in one table. Leases are told by `clock`: keep the machines' clocks together."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._link = Link(settings)
        self._claims = Claims(self._link, (clock or SystemClock()).time)
        self._jobs = Jobs(self._link, self._claims)
        self._gate = asyncio.Lock()
        self._open = False

    def __repr__(self) -> str:
        return f"DynamoStore({self.where})"

    @property
    def where(self) -> str:
        return self._settings.where

    async def open(self) -> None:
        async with self._gate:
            if self._open:
                return
            client = await self._link.open()
            try:
                await prepare(client, self._settings)
            except FAULTS as error:
                await self._link.aclose()
                raise self._link.fault(error) from error
            except BaseException:
                await self._link.aclose()
                raise
            self._open = True

    async def aclose(self) -> None:
        async with self._gate:
            self._open = False
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
        check_text("key", key)
        for text in (fingerprint, job, message_id, replaces):
            check_text("id", text)
        result = await self._claims.claim(Wish(key, fingerprint, lease, ttl, message_id, message, replaces))
        if job and not isinstance(result, Mismatch):
            cancelled = await self._jobs.point(job, key)
            if cancelled and isinstance(result, Claimed):
                return replace(result, cancel_requested=True)
        return result

    async def extend(self, claim: Claimed, *, lease: float) -> bool:
        return await self._claims.extend(claim, lease)

    async def complete(self, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        await self._claims.finish(claim, "COMPLETED", ttl, result=result, outgoing=outgoing)

    async def fail(self, claim: Claimed, error: bytes, *, ttl: float, cancelled: bool = False) -> None:
        await self._claims.finish(claim, "CANCELLED" if cancelled else "FAILED", ttl, error=error)

    async def release(self, claim: Claimed) -> None:
        await self._claims.release(claim)

    async def reopen(self, key: str) -> bool:
        check_text("key", key)
        jobs = await self._claims.reopen(key)
        for id in jobs or ():
            await self._jobs.change(id, "SET #cancel = :no", "#claim = :key", no=False, key=key)
        return jobs is not None

    async def read(self, key: str) -> ClaimRecord | None:
        check_text("key", key)
        return await self._claims.read(key)

    async def orphans(self, limit: int, *, scopes: Collection[str] = ()) -> Sequence[Orphan]:
        """From an index that is a moment late."""
        return await self._claims.orphans(limit, scopes)

    async def add_job(self, job: JobRecord, *, ttl: float, unique: str = "", unique_for: float = 0.0) -> JobRecord:
        for text in (job.id, job.claim, unique):
            check_text("id", text)
        return await self._jobs.add(job, ttl, unique, unique_for)

    async def drop_job(self, id: str) -> None:
        check_text("id", id)
        await self._jobs.drop(id)

    async def job(self, id: str) -> JobRecord | None:
        check_text("id", id)
        return await self._jobs.find(id)

    async def jobs(self, limit: int, *, topic: str = "") -> Sequence[JobRecord]:
        """From an index that is a moment late."""
        check_text("topic", topic)
        return await self._jobs.latest(limit, topic)

    async def set_progress(self, id: str, progress: bytes) -> None:
        check_text("id", id)
        await self._jobs.change(id, "SET #progress = :progress", progress=progress)

    async def request_cancel(self, id: str) -> JobRecord | None:
        check_text("id", id)
        return await self._jobs.request_cancel(id)

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        check_text("id", job.id)
        seen = looks(job, claim)
        until, pause = time.monotonic() + timeout, _FIRST_LOOK
        while await self._looks(job.id) == seen:
            left = until - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(pause, left))
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def sweep(self, limit: int) -> int:
        """DynamoDB deletes what has expired by itself."""
        return 0

    async def _looks(self, id: str) -> tuple[object, ...]:
        job = await self._jobs.find(id)
        return looks(job, await self._claims.read(job.claim) if job and job.claim else None)
