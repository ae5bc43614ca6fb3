"""A store inside one process, for tests and for programs that are one process: what it holds ends with the process.

`MemoryVault` holds the records; each `MemoryStore` is one client of it, and stands for one process. A vault belongs to
one event loop at a time. It passes the checks that every store passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from secrets import token_hex
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from busline.clock import Clock, SystemClock
from busline.errors import ClaimLost, ConfigurationError, StoreUnavailable
from busline.stores.base import (
    Claimed,
    ClaimRecord,
    ClaimResult,
    ClaimState,
    Completed,
    Failed,
    InProgress,
    JobRecord,
    Mismatch,
    Orphan,
    check_text,
    in_scopes,
    looks,
)

_MACHINE = SystemClock()
_NOTHING_KEPT = InProgress(0.0)


def from_url(url: str) -> MemoryStore:
    """A client of a new vault (`memory://`), or of the one that this process knows by a name (`memory://name`).

    A named vault lives as long as a store of it.
    """
    parts = urlsplit(url)
    if parts.query:
        raise ConfigurationError(f"memory:// as a store has no options, {parts.query!r} was given")
    name = parts.netloc + parts.path
    vault = _named.get(name) if name else None
    if vault is None:
        vault = MemoryVault(name=name)
        if name:
            _named[name] = vault
    return MemoryStore(vault)


def share(vault: MemoryVault, name: str) -> str:
    """Let a name stand for this vault, for as long as somebody has it; returns the URL by which it is found."""
    _named[name] = vault
    return f"memory://{name}"


@dataclass(slots=True, eq=False)
class _Record:
    """A claim. It is held while it is PROCESSING."""

    key: str
    fingerprint: str
    state: ClaimState = "PENDING"
    token: str = ""
    fence: int = 0
    attempt: int = 0
    lease_until: float = 0.0
    expires_at: float = 0.0
    result: bytes = b""
    outgoing: bytes = b""
    error: bytes = b""
    message_id: str = ""
    message: bytes = b""
    jobs: set[str] = field(default_factory=set)
    """Ids of those that point here."""

    def exists(self, now: float) -> bool:
        """Its time is not over; what is held, or keeps a message, has no end."""
        held = self.state == "PROCESSING" and (self.lease_until > now or self.message_id != "")
        return held or self.expires_at > now

    def let_go(self, state: ClaimState) -> None:
        """Nobody holds it any more."""
        self.state = state
        self.token = self.message_id = ""
        self.message = b""
        self.lease_until = 0.0


class MemoryVault:
    """What in production is another machine."""

    def __init__(self, clock: Clock = _MACHINE, *, name: str = "") -> None:
        self.clock = clock
        self.where = f"memory://{name}"
        self._records: dict[str, _Record] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._unique: dict[str, tuple[str, float]] = {}
        self._watchers: dict[str, set[asyncio.Future[None]]] = {}

    # -- claims -------------------------------------------------------------------------------------------------

    def claim(
        self,
        key: str,
        fingerprint: str,
        *,
        lease: float,
        ttl: float,
        job: str,
        message_id: str,
        message: bytes,
        replaces: str,
    ) -> ClaimResult:
        """See `Store.claim`."""
        check_text("key", key)
        record = self.record(key)
        if record is not None and record.fingerprint != fingerprint:
            return Mismatch()
        if record is None and not replaces:
            record = self._records[key] = _Record(key, fingerprint)
        self._point(job, key, record)
        if record is None:
            return _NOTHING_KEPT
        now = self.clock.time()
        refused = _refusal(record, replaces, now)
        if refused is not None:
            return refused
        record.state, record.token = "PROCESSING", token_hex(16)
        record.fence += 1
        record.attempt += 1
        record.lease_until = now + lease
        record.expires_at = max(record.expires_at, now + ttl, record.lease_until)
        record.message_id, record.message = (message_id, message) if message else ("", b"")
        self._tell(record)
        return Claimed(key, record.token, record.fence, record.attempt, self.is_cancelled(record))

    def record(self, key: str) -> _Record | None:
        """The record that exists, or None."""
        record = self._records.get(key)
        if record is not None and not record.exists(self.clock.time()):
            del self._records[key]
            return None
        return record

    def read(self, key: str) -> ClaimRecord | None:
        """See `Store.read`."""
        record = self.record(key)
        if record is None:
            return None
        held = (key, record.state, record.fingerprint, record.attempt, record.lease_until)
        return ClaimRecord(*held, record.result, record.error)

    def held(self, claim: Claimed) -> _Record:
        """The record that this claim holds; raises `ClaimLost`."""
        record = self.record(claim.key)
        if record is None or record.state != "PROCESSING" or (record.token, record.fence) != (claim.token, claim.fence):
            raise ClaimLost(claim.key)
        return record

    def is_cancelled(self, record: _Record) -> bool:
        """Somebody wants a job that points here cancelled."""
        return any(job.cancel_requested for each in record.jobs if (job := self.job(each)) is not None)

    def extend(self, claim: Claimed, lease: float) -> bool:
        """See `Store.extend`."""
        record = self.held(claim)
        record.lease_until = self.clock.time() + lease
        record.expires_at = max(record.expires_at, record.lease_until)
        return self.is_cancelled(record)

    def end(self, claim: Claimed, state: ClaimState, ttl: float, **result: bytes) -> None:
        """It was done, or failed for good, or was cancelled."""
        record = self.held(claim)
        for name, value in result.items():
            setattr(record, name, value)
        record.let_go(state)
        record.expires_at = self.clock.time() + ttl
        self._tell(record)

    def release(self, claim: Claimed) -> None:
        """See `Store.release`."""
        record = self.held(claim)
        record.let_go("PENDING")
        self._tell(record)

    def reopen(self, key: str) -> bool:
        """See `Store.reopen`."""
        record = self.record(key)
        if record is None or record.state not in ("FAILED", "CANCELLED"):
            return False
        record.state, record.attempt, record.error = "PENDING", 0, b""
        for each in record.jobs:
            if (job := self.job(each)) is not None:
                self._jobs[each] = replace(job, cancel_requested=False)
        self._tell(record)
        return True

    def orphans(self, limit: int, scopes: Collection[str]) -> Sequence[Orphan]:
        """See `Store.orphans`."""
        now = self.clock.time()
        ended = [
            each
            for each in self._records.values()
            if each.message_id and each.lease_until <= now and in_scopes(each.key, scopes)
        ]
        ended.sort(key=lambda each: each.lease_until)
        return [_orphan(record) for record in ended[:limit]]

    # -- jobs ---------------------------------------------------------------------------------------------------

    def job(self, id: str) -> JobRecord | None:
        """The record that exists, or None."""
        job = self._jobs.get(id)
        if job is not None and job.expires_at <= self.clock.time():
            self.drop_job(id)
            return None
        return job

    def jobs(self, limit: int, topic: str) -> Sequence[JobRecord]:
        """See `Store.jobs`."""
        now = self.clock.time()
        found = [job for job in self._jobs.values() if job.expires_at > now and topic in ("", job.topic)]
        return sorted(found, key=lambda job: job.sent_at, reverse=True)[:limit]

    def add_job(self, job: JobRecord, ttl: float, unique: str, unique_for: float) -> JobRecord:
        """See `Store.add_job`."""
        check_text("id", job.id)
        now = self.clock.time()
        if (same := self.job(job.id)) is not None:
            return same
        if unique:
            holder, until = self._unique.get(unique, ("", 0.0))
            if until > now and (other := self.job(holder)) is not None:
                return other
            self._unique[unique] = (job.id, now + unique_for)
        added = self._jobs[job.id] = replace(job, expires_at=now + ttl)
        self._wake(job.id)
        return added

    def drop_job(self, id: str) -> None:
        """See `Store.drop_job`."""
        job = self._jobs.pop(id, None)
        if job is None:
            return
        if (record := self._records.get(job.claim)) is not None:
            record.jobs.discard(id)
        for unique in [unique for unique, (holder, _) in self._unique.items() if holder == id]:
            del self._unique[unique]
        self._wake(id)

    def change_job(self, id: str, **fields: object) -> JobRecord | None:
        """The record with other values for these fields, or None if there is none."""
        job = self.job(id)
        if job is not None:
            job = self._jobs[id] = replace(job, **fields)  # type: ignore[arg-type]  # fields of a JobRecord
            self._wake(id)
        return job

    def _point(self, id: str, key: str, record: _Record | None) -> None:
        job = self.job(id) if id else None
        if job is None:
            return
        if job.claim != key:
            if (before := self._records.get(job.claim)) is not None:
                before.jobs.discard(id)
            self.change_job(id, claim=key)
        if record is not None:
            record.jobs.add(id)

    def sweep(self, limit: int) -> int:
        """See `Store.sweep`."""
        now = self.clock.time()
        records = list(islice((r.key for r in self._records.values() if not r.exists(now)), limit))
        for key in records:
            del self._records[key]
        room = limit - len(records)
        jobs = list(islice((job.id for job in self._jobs.values() if job.expires_at <= now), room))
        for id in jobs:
            self.drop_job(id)
        for unique in [unique for unique, (_, until) in self._unique.items() if until <= now]:
            del self._unique[unique]
        return len(records) + len(jobs)

    # -- waiting ------------------------------------------------------------------------------------------------

    def _tell(self, record: _Record) -> None:
        for job in record.jobs:
            self._wake(job)

    def _wake(self, id: str) -> None:
        for watcher in self._watchers.pop(id, ()):
            _ring(watcher)

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        """See `Store.changed`."""
        now = self.job(job.id)
        if looks(now, self.read(now.claim) if now is not None else None) != looks(job, claim):
            return
        id = job.id
        watcher = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(id, set()).add(watcher)
        timer = self.clock.call_at(self.clock.time() + timeout, lambda: _ring(watcher))
        try:
            await watcher
        finally:
            timer.cancel()
            watchers = self._watchers.get(id, set())
            watchers.discard(watcher)
            if not watchers:
                self._watchers.pop(id, None)


def _ring(watcher: asyncio.Future[None]) -> None:
    if not watcher.done():
        watcher.set_result(None)


def _refusal(record: _Record, replaces: str, now: float) -> ClaimResult | None:
    """Why the key cannot be taken; None if it can."""
    if record.state == "COMPLETED":
        return Completed(record.result, record.outgoing)
    if record.state in ("FAILED", "CANCELLED"):
        return Failed(record.error, record.state == "CANCELLED")
    if replaces and record.message_id != replaces:
        return _NOTHING_KEPT
    if record.lease_until > now:
        return InProgress(record.lease_until - now)
    if record.message_id and not replaces:
        return _orphan(record)
    return None


def _orphan(record: _Record) -> Orphan:
    return Orphan(record.key, record.fingerprint, record.message_id, record.message, record.attempt)


_named: WeakValueDictionary[str, MemoryVault] = WeakValueDictionary()  # so that one URL means one vault


class MemoryStore:
    """A client of `vault` (a new one of its own by default); see `busline.stores.base.Store`. May be opened again
    after it was closed."""

    def __init__(self, vault: MemoryVault | None = None) -> None:
        self._vault = vault or MemoryVault()
        self._open = False

    @property
    def where(self) -> str:
        return self._vault.where

    async def open(self) -> None:
        self._open = True

    async def aclose(self) -> None:
        self._open = False

    def _reach(self) -> MemoryVault:
        if not self._open:
            raise StoreUnavailable(f"the store {self.where} is not open")
        return self._vault

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
        return self._reach().claim(
            key,
            fingerprint,
            lease=lease,
            ttl=ttl,
            job=job,
            message_id=message_id,
            message=message,
            replaces=replaces,
        )

    async def extend(self, claim: Claimed, *, lease: float) -> bool:
        return self._reach().extend(claim, lease)

    async def complete(self, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        self._reach().end(claim, "COMPLETED", ttl, result=result, outgoing=outgoing)

    async def fail(self, claim: Claimed, error: bytes, *, ttl: float, cancelled: bool = False) -> None:
        self._reach().end(claim, "CANCELLED" if cancelled else "FAILED", ttl, error=error)

    async def release(self, claim: Claimed) -> None:
        self._reach().release(claim)

    async def reopen(self, key: str) -> bool:
        return self._reach().reopen(key)

    async def read(self, key: str) -> ClaimRecord | None:
        return self._reach().read(key)

    async def orphans(self, limit: int, *, scopes: Collection[str] = ()) -> Sequence[Orphan]:
        return self._reach().orphans(limit, scopes)

    async def add_job(self, job: JobRecord, *, ttl: float, unique: str = "", unique_for: float = 0.0) -> JobRecord:
        return self._reach().add_job(job, ttl, unique, unique_for)

    async def drop_job(self, id: str) -> None:
        self._reach().drop_job(id)

    async def job(self, id: str) -> JobRecord | None:
        return self._reach().job(id)

    async def jobs(self, limit: int, *, topic: str = "") -> Sequence[JobRecord]:
        return self._reach().jobs(limit, topic)

    async def set_progress(self, id: str, progress: bytes) -> None:
        self._reach().change_job(id, progress=progress)

    async def request_cancel(self, id: str) -> JobRecord | None:
        return self._reach().change_job(id, cancel_requested=True)

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        await self._reach().changed(job, claim, timeout)

    async def sweep(self, limit: int) -> int:
        return self._reach().sweep(limit)
