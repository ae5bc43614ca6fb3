"""Jobs, as functions that run inside a transaction."""

from __future__ import annotations

import sqlite3
from typing import Any

from busline.stores.base import JobRecord

_COLUMNS = "id, topic, sent_at, message, claim, progress, cancel_requested, expires_at"
_FIND = f"SELECT {_COLUMNS} FROM busline_job WHERE id = ? AND expires_at > ?"
_HOLDER = f"SELECT {_COLUMNS} FROM busline_job WHERE unique_key = ? AND unique_until > ? AND expires_at > ? LIMIT 1"
_ADD = (
    f"INSERT OR REPLACE INTO busline_job ({_COLUMNS}, unique_key, unique_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_LIST = f"SELECT {_COLUMNS} FROM busline_job WHERE expires_at > ? ORDER BY sent_at DESC LIMIT ?"
_LIST_TOPIC = f"SELECT {_COLUMNS} FROM busline_job WHERE topic = ? AND expires_at > ? ORDER BY sent_at DESC LIMIT ?"
_SWEEP = "DELETE FROM {0} WHERE rowid IN (SELECT rowid FROM {0} WHERE expires_at <= ?{1} ORDER BY expires_at LIMIT ?)"
_SWEEP_CLAIMS = _SWEEP.format("busline_claim", " AND message = x''")  # one that keeps a message has no end
_SWEEP_JOBS = _SWEEP.format("busline_job", "")


def _record(row: tuple[Any, ...]) -> JobRecord:
    id, topic, sent_at, message, claim, progress, cancel_requested, expires_at = row
    return JobRecord(id, topic, sent_at, message, claim, progress, bool(cancel_requested), expires_at)


def find(db: sqlite3.Connection, id: str, now: float) -> JobRecord | None:
    """See `Store.job`."""
    row = db.execute(_FIND, (id, now)).fetchone()
    return _record(row) if row else None


def add(db: sqlite3.Connection, job: JobRecord, ttl: float, unique: str, unique_for: float, now: float) -> JobRecord:
    """See `Store.add_job`."""
    if known := find(db, job.id, now):
        return known
    if unique and (row := db.execute(_HOLDER, (unique, now, now)).fetchone()):
        return _record(row)
    values = (job.id, job.topic, job.sent_at, job.message, job.claim, job.progress, job.cancel_requested, now + ttl)
    db.execute(_ADD, (*values, unique or None, now + unique_for))
    return _record(values)


def drop(db: sqlite3.Connection, id: str) -> None:
    """See `Store.drop_job`."""
    db.execute("DELETE FROM busline_job WHERE id = ?", (id,))


def latest(db: sqlite3.Connection, limit: int, topic: str, now: float) -> list[JobRecord]:
    """See `Store.jobs`."""
    rows = db.execute(_LIST_TOPIC, (topic, now, limit)) if topic else db.execute(_LIST, (now, limit))
    return [_record(row) for row in rows]


def set_progress(db: sqlite3.Connection, id: str, progress: bytes, now: float) -> None:
    """See `Store.set_progress`."""
    db.execute("UPDATE busline_job SET progress = ? WHERE id = ? AND expires_at > ?", (progress, id, now))


def request_cancel(db: sqlite3.Connection, id: str, now: float) -> JobRecord | None:
    """See `Store.request_cancel`."""
    db.execute("UPDATE busline_job SET cancel_requested = 1 WHERE id = ? AND expires_at > ?", (id, now))
    return find(db, id, now)


def sweep(db: sqlite3.Connection, limit: int, now: float) -> int:
    """See `Store.sweep`."""
    swept = db.execute(_SWEEP_CLAIMS, (now, limit)).rowcount
    return swept + db.execute(_SWEEP_JOBS, (now, limit - swept)).rowcount
