"""The store itself: each operation is one script."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Collection, Sequence
from typing import Any

from busline.errors import ClaimLost, StoreUnavailable
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
from busline.stores.redis.ears import Ears
from busline.stores.redis.link import Link
from busline.stores.redis.url import Settings, read

_LOOK_ANYWAY = 5.0
"""Seconds after which somebody who waits looks although nothing was heard: a dead connection says nothing either."""


def from_url(url: str) -> RedisStore:
    """`redis://:password@host:6379/0`, `rediss://…` for TLS; docs/stores.md has the options. Raises
    ConfigurationError."""
    return RedisStore(read(url))


class RedisStore:
    """A client of the store whose keys begin with one prefix, in one database of one Redis server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._link = Link(settings)
        self._ears = Ears(self._link, f"{settings.prefix}changed", settings.timeout)
        self._gate = asyncio.Lock()
        self._open = False

    def __repr__(self) -> str:
        return f"RedisStore({self.where})"

    @property
    def where(self) -> str:
        return self._settings.where

    async def open(self) -> None:
        async with self._gate:
            if not self._open:
                await self._link.open()
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
        check_text("key", key)
        for text in (fingerprint, job, message_id, replaces):
            check_text("id", text)
        token = secrets.token_hex(16)
        named = (key, fingerprint, token, _ms(lease), _ms(ttl), job)
        what, *more = await self._link.write("claim", *named, message_id, message, replaces)
        match what:
            case b"taken":
                fence, attempt, cancelled = more
                return Claimed(key, token, int(fence), int(attempt), bool(cancelled))
            case b"busy":
                return InProgress(int(more[0]) / 1000)
            case b"completed":
                return Completed(*more)
            case b"failed":
                return Failed(more[0], more[1] == b"CANCELLED")
            case b"orphan":
                kept_id, kept, attempt = more
                return Orphan(key, fingerprint, kept_id.decode(), kept, int(attempt))
        return Mismatch()

    async def extend(self, claim: Claimed, *, lease: float) -> bool:
        return await self._guarded("extend", claim, _ms(lease)) == 1

    async def complete(self, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        await self._guarded("finish", claim, "COMPLETED", result, b"", outgoing, _ms(ttl))

    async def fail(self, claim: Claimed, error: bytes, *, ttl: float, cancelled: bool = False) -> None:
        state = "CANCELLED" if cancelled else "FAILED"
        await self._guarded("finish", claim, state, b"", error, b"", _ms(ttl))

    async def release(self, claim: Claimed) -> None:
        await self._guarded("release", claim)

    async def reopen(self, key: str) -> bool:
        check_text("key", key)
        return int(await self._link.write("reopen", key)) == 1

    async def read(self, key: str) -> ClaimRecord | None:
        check_text("key", key)
        found = await self._link.read("read", key)
        if not found:
            return None
        state, fingerprint, attempt, lease, result, error = found
        held = (key, state.decode(), fingerprint.decode(), int(attempt), int(lease) / 1000)
        return ClaimRecord(*held, result or b"", error or b"")

    async def orphans(self, limit: int, *, scopes: Collection[str] = ()) -> Sequence[Orphan]:
        found = await self._link.read("orphans", limit, *scopes)
        return [
            Orphan(key.decode(), fingerprint.decode(), message_id.decode(), message, int(attempt))
            for key, fingerprint, message_id, message, attempt in found
        ]

    async def add_job(self, job: JobRecord, *, ttl: float, unique: str = "", unique_for: float = 0.0) -> JobRecord:
        for text in (job.id, job.claim, unique):
            check_text("id", text)
        values = (job.id, job.topic, repr(job.sent_at), job.message, job.claim, job.progress)
        cancel = int(job.cancel_requested)
        return _job(await self._link.write("add", *values, cancel, _ms(ttl), unique, _ms(unique_for)))

    async def drop_job(self, id: str) -> None:
        check_text("id", id)
        await self._link.write("drop", id)

    async def job(self, id: str) -> JobRecord | None:
        check_text("id", id)
        found = await self._link.read("job", id)
        return _job(found) if found else None

    async def jobs(self, limit: int, *, topic: str = "") -> Sequence[JobRecord]:
        check_text("topic", topic)
        return [_job(each) for each in await self._link.read("jobs", limit, f"jobs:{topic}" if topic else "jobs")]

    async def set_progress(self, id: str, progress: bytes) -> None:
        check_text("id", id)
        await self._link.write("progress", id, progress)

    async def request_cancel(self, id: str) -> JobRecord | None:
        check_text("id", id)
        found = await self._link.write("cancel", id)
        return _job(found) if found else None

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        if not self._open:
            raise StoreUnavailable(f"the store {self.where} is not open")
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
        """Redis deletes what has expired by itself; this only shortens the lists of jobs."""
        return int(await self._link.write("sweep", limit))

    async def _looks(self, id: str) -> tuple[object, ...]:
        job = await self.job(id)
        return looks(job, await self.read(job.claim) if job and job.claim else None)

    async def _guarded(self, script: str, claim: Claimed, *values: object) -> int:
        check_text("key", claim.key)
        result = int(await self._link.write(script, claim.key, claim.token, claim.fence, *values))
        if result < 0:
            raise ClaimLost(claim.key)
        return result


def _ms(seconds: float) -> int:
    """Whole milliseconds, which is how Redis counts; never less than was asked for."""
    return math.ceil(seconds * 1000)


def _job(found: Sequence[Any]) -> JobRecord:
    id, topic, sent_at, message, claim, progress, cancel, expires = found
    named = (id.decode(), topic.decode(), float(sent_at), message, claim.decode(), progress)
    return JobRecord(*named, cancel == b"1", int(expires) / 1000)
