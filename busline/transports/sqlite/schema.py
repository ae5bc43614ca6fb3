"""The tables, and making or checking them.

A message is *ready* (no due, no token), *delayed* (due, no token) or *leased* (token; due is the lease's end), and is
in exactly one of three partial indexes accordingly: with a million delayed ones a claim costs what it costs with none.
Ids may be used again after the newest message was deleted; a receipt stays unambiguous by its random token.
"""

from __future__ import annotations

import sqlite3

from busline.errors import ConfigurationError

VERSION = 2

_TABLES = """
CREATE TABLE broker (version INTEGER NOT NULL, epoch INTEGER NOT NULL);
CREATE TABLE queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, service TEXT NOT NULL,
    ephemeral INTEGER NOT NULL, owner INTEGER, max_priority INTEGER, max_length INTEGER,
    waiting INTEGER NOT NULL DEFAULT 0);
CREATE TABLE topic (topic TEXT PRIMARY KEY, queue INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE pattern (pattern TEXT NOT NULL, queue INTEGER NOT NULL, PRIMARY KEY (pattern, queue)) WITHOUT ROWID;
CREATE TABLE process (
    id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, pid INTEGER NOT NULL, address TEXT NOT NULL);
CREATE TABLE consumer (
    queue INTEGER NOT NULL, process INTEGER NOT NULL,
    waiting REAL NOT NULL DEFAULT 0,
    UNIQUE (queue, process));
CREATE TABLE message (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, priority INTEGER NOT NULL, due REAL, token INTEGER, owner INTEGER,
    deliveries INTEGER NOT NULL DEFAULT 0, topic TEXT NOT NULL, meta TEXT NOT NULL, headers TEXT,
    correlation_id TEXT, reply_to TEXT, ttl REAL, expendable INTEGER NOT NULL DEFAULT 0, expires REAL,
    body BLOB NOT NULL);
CREATE INDEX ready ON message (queue, priority DESC, id) WHERE due IS NULL;
CREATE INDEX delayed ON message (queue, due) WHERE due IS NOT NULL AND token IS NULL;
CREATE INDEX leased ON message (queue, due, owner) WHERE token IS NOT NULL;
CREATE INDEX expiring ON message (expires) WHERE expendable;
"""

_UPGRADES = {
    1: """
ALTER TABLE queue ADD COLUMN max_priority INTEGER;
ALTER TABLE queue ADD COLUMN max_length INTEGER;
ALTER TABLE queue ADD COLUMN waiting INTEGER NOT NULL DEFAULT 0;
ALTER TABLE message ADD COLUMN expendable INTEGER NOT NULL DEFAULT 0;
ALTER TABLE message ADD COLUMN expires REAL;
CREATE INDEX expiring ON message (expires) WHERE expendable;
""",
}
"""What makes a file of each older version one of the next."""

_IS_BOUNDED = "(SELECT max_length FROM queue WHERE id = {}.queue) IS NOT NULL"
_COUNTING = (
    f"""
CREATE TRIGGER IF NOT EXISTS count_stored AFTER INSERT ON message
WHEN NEW.token IS NULL AND {_IS_BOUNDED.format("NEW")}
BEGIN UPDATE queue SET waiting = waiting + 1 WHERE id = NEW.queue; END""",
    f"""
CREATE TRIGGER IF NOT EXISTS count_changed AFTER UPDATE OF token, queue ON message
WHEN {_IS_BOUNDED.format("OLD")} OR {_IS_BOUNDED.format("NEW")}
BEGIN
    UPDATE queue SET waiting = waiting - 1 WHERE id = OLD.queue AND OLD.token IS NULL;
    UPDATE queue SET waiting = waiting + 1 WHERE id = NEW.queue AND NEW.token IS NULL;
END""",
    f"""
CREATE TRIGGER IF NOT EXISTS count_deleted AFTER DELETE ON message
WHEN OLD.token IS NULL AND {_IS_BOUNDED.format("OLD")}
BEGIN UPDATE queue SET waiting = waiting - 1 WHERE id = OLD.queue; END""",
)


def count_waiting(db: sqlite3.Connection) -> None:
    """Keep `queue.waiting` for every queue that has a max_length, whoever changes messages from now on.

    In triggers, which are made when a queue is bounded first: a file without such a queue does not pay for counting.
    """
    for statement in _COUNTING:
        db.execute(statement)


def prepare(db: sqlite3.Connection, where: str) -> None:
    """Make the tables, or bring those of before to our version. Raises ConfigurationError, sqlite3.Error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if "broker" in tables:
            _upgrade(db, where)
        else:
            _create(db, tables, where)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _upgrade(db: sqlite3.Connection, where: str) -> None:
    row = db.execute("SELECT version FROM broker").fetchone()
    found = row[0] if row else None
    if not isinstance(found, int) or (found != VERSION and found not in _UPGRADES):
        raise ConfigurationError(
            f"{where} has schema version {found or 'none'}, this busline knows {VERSION};"
            " upgrade busline or use another file"
        )
    for version in range(found, VERSION):
        _execute_all(db, _UPGRADES[version])
    if found != VERSION:
        db.execute("UPDATE broker SET version = ?, epoch = epoch + 1", (VERSION,))


def _create(db: sqlite3.Connection, tables: set[str], where: str) -> None:
    if foreign := tables & {"queue", "topic", "pattern", "process", "consumer", "message"}:
        raise ConfigurationError(f"{where} has a table {min(foreign)!r} of another program; use a file of its own")
    _execute_all(db, _TABLES)
    db.execute("INSERT INTO broker (version, epoch) VALUES (?, 0)", (VERSION,))


def _execute_all(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):  # executescript would commit
        db.execute(statement)
