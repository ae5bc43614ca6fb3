"""Claims, as functions that run inside a transaction."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Collection
from itertools import islice

from busline.errors import ClaimLost
from busline.stores.base import (
    Claimed,
    ClaimRecord,
    ClaimResult,
    Completed,
    Failed,
    InProgress,
    Mismatch,
    Orphan,
    in_scopes,
)
from busline.structs import value

_LIVES = "(expires_at > ? OR message != x'')"
_FIND = (
    "SELECT state, fingerprint, fence, attempt, lease_until, result, error, outgoing, message_id, message"
    f" FROM busline_claim WHERE key = ? AND {_LIVES}"
)
_TAKE = (
    "INSERT INTO busline_claim (key, state, fingerprint, token, fence, attempt, lease_until, expires_at, message_id,"
    " message) VALUES (?, 'PROCESSING', ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
    " state = 'PROCESSING', fingerprint = excluded.fingerprint, token = excluded.token, fence = excluded.fence,"
    " attempt = excluded.attempt, lease_until = excluded.lease_until,"
    " expires_at = max(expires_at, excluded.expires_at), message_id = excluded.message_id,"
    " message = excluded.message, result = x'', error = x'', outgoing = x''"
)
_IN_FORCE = f" WHERE key = ? AND token = ? AND fence = ? AND state = 'PROCESSING' AND {_LIVES}"
_EXTEND = "UPDATE busline_claim SET lease_until = ?, expires_at = max(expires_at, ?)" + _IN_FORCE
_FINISH = (
    "UPDATE busline_claim SET state = ?, lease_until = 0.0, token = '', message_id = '', message = x'',"
    " result = ?, error = ?, outgoing = ?, expires_at = ?" + _IN_FORCE
)
_RELEASE = (
    "UPDATE busline_claim SET state = 'PENDING', lease_until = 0.0, token = '', message_id = '', message = x''"
    + _IN_FORCE
)
_REOPEN = (
    "UPDATE busline_claim SET state = 'PENDING', attempt = 0, error = x''"
    " WHERE key = ? AND state IN ('FAILED', 'CANCELLED') AND expires_at > ?"
)
_FORGET_CANCEL = "UPDATE busline_job SET cancel_requested = 0 WHERE claim = ?"
_READ = (
    f"SELECT key, state, fingerprint, attempt, lease_until, result, error FROM busline_claim WHERE key = ? AND {_LIVES}"
)
_ORPHANS = (
    "SELECT key, fingerprint, message_id, message, attempt FROM busline_claim INDEXED BY busline_claim_orphans"
    " WHERE state = 'PROCESSING' AND message != x'' AND lease_until <= ?"
    " ORDER BY lease_until"
)
_POINT = "UPDATE busline_job SET claim = ? WHERE id = ? AND expires_at > ?"
_IS_CANCELLED = "SELECT 1 FROM busline_job WHERE claim = ? AND cancel_requested AND expires_at > ? LIMIT 1"


@value
class Wish:
    """What `Store.claim` was asked for."""

    key: str
    fingerprint: str
    lease: float
    ttl: float
    job: str
    message_id: str
    message: bytes
    replaces: str


def claim(db: sqlite3.Connection, wish: Wish, now: float) -> ClaimResult:
    """See `Store.claim`."""
    row = db.execute(_FIND, (wish.key, now)).fetchone()
    if row and row[1] != wish.fingerprint:
        return Mismatch()
    if wish.job:
        db.execute(_POINT, (wish.key, wish.job, now))
    if row is None:
        return InProgress(0.0) if wish.replaces else _take(db, wish, now, 1, 1)
    state, _, fence, attempt, lease_until, result, error, outgoing, message_id, message = row
    if state == "COMPLETED":
        return Completed(result, outgoing)
    if state in ("FAILED", "CANCELLED"):
        return Failed(error, state == "CANCELLED")
    if wish.replaces and not (message and message_id == wish.replaces):
        return InProgress(0.0)
    if state == "PROCESSING" and lease_until > now:
        return InProgress(lease_until - now)
    if message and not wish.replaces:
        return Orphan(wish.key, wish.fingerprint, message_id, message, attempt)
    return _take(db, wish, now, fence + 1, attempt + 1)


def _take(db: sqlite3.Connection, wish: Wish, now: float, fence: int, attempt: int) -> Claimed:
    token = secrets.token_hex(16)
    until = now + wish.lease
    ends = (until, max(until, now + wish.ttl))
    kept = (wish.message_id, wish.message) if wish.message else ("", b"")
    db.execute(_TAKE, (wish.key, wish.fingerprint, token, fence, attempt, *ends, *kept))
    return Claimed(wish.key, token, fence, attempt, is_cancelled(db, wish.key, now))


def is_cancelled(db: sqlite3.Connection, key: str, now: float) -> bool:
    """Does somebody want a job cancelled that points to the key?"""
    return db.execute(_IS_CANCELLED, (key, now)).fetchone() is not None


def extend(db: sqlite3.Connection, claimed: Claimed, lease: float, now: float) -> bool:
    """See `Store.extend`."""
    _guarded(db, _EXTEND, (now + lease, now + lease), claimed, now)
    return is_cancelled(db, claimed.key, now)


def complete(db: sqlite3.Connection, claimed: Claimed, result: bytes, outgoing: bytes, ttl: float, now: float) -> None:
    """See `Store.complete`."""
    _guarded(db, _FINISH, ("COMPLETED", result, b"", outgoing, now + ttl), claimed, now)


def fail(db: sqlite3.Connection, claimed: Claimed, error: bytes, ttl: float, cancelled: bool, now: float) -> None:
    """See `Store.fail`."""
    state = "CANCELLED" if cancelled else "FAILED"
    _guarded(db, _FINISH, (state, b"", error, b"", now + ttl), claimed, now)


def release(db: sqlite3.Connection, claimed: Claimed, now: float) -> None:
    """See `Store.release`."""
    _guarded(db, _RELEASE, (), claimed, now)


def _guarded(db: sqlite3.Connection, statement: str, values: tuple[object, ...], claimed: Claimed, now: float) -> None:
    guard = (claimed.key, claimed.token, claimed.fence, now)
    if db.execute(statement, (*values, *guard)).rowcount != 1:
        raise ClaimLost(claimed.key)


def reopen(db: sqlite3.Connection, key: str, now: float) -> bool:
    """See `Store.reopen`."""
    if db.execute(_REOPEN, (key, now)).rowcount != 1:
        return False
    db.execute(_FORGET_CANCEL, (key,))
    return True


def read(db: sqlite3.Connection, key: str, now: float) -> ClaimRecord | None:
    """See `Store.read`."""
    row = db.execute(_READ, (key, now)).fetchone()
    return ClaimRecord(*row) if row else None


def orphans(db: sqlite3.Connection, limit: int, scopes: Collection[str], now: float) -> list[Orphan]:
    """See `Store.orphans`."""
    found = (Orphan(*row) for row in db.execute(_ORPHANS, (now,)) if in_scopes(row[0], scopes))
    return list(islice(found, limit))
