"""The tables, whose names begin with `busline_` because they may stand in an application's own file."""

from __future__ import annotations

import os
import sqlite3

from busline.errors import ConfigurationError

VERSION = 1

_TABLES = (
    "CREATE TABLE busline_store (version INTEGER NOT NULL)",
    """CREATE TABLE busline_claim (
    key TEXT NOT NULL UNIQUE, state TEXT NOT NULL, fingerprint TEXT NOT NULL, token TEXT NOT NULL,
    fence INTEGER NOT NULL, attempt INTEGER NOT NULL, lease_until REAL NOT NULL, expires_at REAL NOT NULL,
    result BLOB NOT NULL DEFAULT x'', error BLOB NOT NULL DEFAULT x'', outgoing BLOB NOT NULL DEFAULT x'',
    message_id TEXT NOT NULL DEFAULT '', message BLOB NOT NULL DEFAULT x'')""",
    "CREATE INDEX busline_claim_expiry ON busline_claim (expires_at)",
    """CREATE INDEX busline_claim_orphans ON busline_claim (lease_until)
    WHERE state = 'PROCESSING' AND message != x''""",
    """CREATE TABLE busline_job (
    id TEXT NOT NULL UNIQUE, topic TEXT NOT NULL, sent_at REAL NOT NULL, claim TEXT NOT NULL,
    progress BLOB NOT NULL, cancel_requested INTEGER NOT NULL, expires_at REAL NOT NULL,
    unique_key TEXT, unique_until REAL NOT NULL, message BLOB NOT NULL)""",
    "CREATE INDEX busline_job_expiry ON busline_job (expires_at)",
    "CREATE INDEX busline_job_sent ON busline_job (sent_at)",
    "CREATE INDEX busline_job_topic ON busline_job (topic, sent_at)",
    "CREATE INDEX busline_job_claim ON busline_job (claim) WHERE claim != ''",
    "CREATE INDEX busline_job_unique ON busline_job (unique_key) WHERE unique_key IS NOT NULL",
)

_PRAGMAS = (
    "PRAGMA synchronous = NORMAL",  # what must be durable is synced after the commit, without the lock
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA secure_delete = OFF",  # some systems build SQLite with it on; it writes every page twice
    "PRAGMA temp_store = MEMORY",
)


def connect(path: str) -> sqlite3.Connection:
    """A connection in WAL mode, in autocommit, that any one thread at a time may use. Raises ConfigurationError,
    sqlite3.Error; also for a lock, which it does not wait for."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigurationError(f"{path}: the folder {folder} does not exist")
    if os.path.isdir(path):
        raise ConfigurationError(f"{path} is a folder, not a file")
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        _set_up(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _set_up(db: sqlite3.Connection, path: str) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigurationError(f"{path}: the file system cannot share memory between processes (WAL mode)")
    for pragma in _PRAGMAS:
        db.execute(pragma)


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Make the tables if they are missing. Raises ConfigurationError, sqlite3.Error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        _create_or_check(db, path)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    _sync_folder(os.path.dirname(path))


def _create_or_check(db: sqlite3.Connection, path: str) -> None:
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'busline_store'").fetchone() is None:
        for statement in _TABLES:
            db.execute(statement)
        db.execute("INSERT INTO busline_store (version) VALUES (?)", (VERSION,))
    row = db.execute("SELECT version FROM busline_store").fetchone()
    if row != (VERSION,):
        raise ConfigurationError(
            f"{path} has a store of version {row and row[0]}, this busline knows {VERSION};"
            " upgrade busline or use another file"
        )


def _sync_folder(folder: str) -> None:
    """The file's name must survive a power cut, too."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
