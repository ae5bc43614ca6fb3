"""The tables, and making or checking them.

A message is *ready* (no due, no token), *delayed* (due, no token) or *leased* (token; due is the lease's end), and is
in exactly one of three partial indexes accordingly: with a million delayed ones a claim costs what it costs with none.
Ids may be used again after the newest message was deleted; a receipt stays unambiguous by its random token.
"""

from __future__ import annotations

import sqlite3

from busline.errors import ConfigurationError

VERSION = 1

_TABLES = """
CREATE TABLE broker (version INTEGER NOT NULL, epoch INTEGER NOT NULL);
CREATE TABLE queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, service TEXT NOT NULL,
    ephemeral INTEGER NOT NULL, owner INTEGER);
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
    correlation_id TEXT, reply_to TEXT, ttl REAL, body BLOB NOT NULL);
CREATE INDEX ready ON message (queue, priority DESC, id) WHERE due IS NULL;
CREATE INDEX delayed ON message (queue, due) WHERE due IS NOT NULL AND token IS NULL;
CREATE INDEX leased ON message (queue, due, owner) WHERE token IS NOT NULL;
"""


def prepare(db: sqlite3.Connection, where: str) -> None:
    """Make the tables in an empty file, or check those that are there. Raises ConfigurationError, sqlite3.Error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if "broker" in tables:
            _check_version(db, where)
        else:
            _create(db, tables, where)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _check_version(db: sqlite3.Connection, where: str) -> None:
    row = db.execute("SELECT version FROM broker").fetchone()
    if row is None or row[0] != VERSION:
        found = row[0] if row else "no"
        raise ConfigurationError(
            f"{where} has schema version {found}, this busline knows {VERSION}; upgrade busline or use another file"
        )


def _create(db: sqlite3.Connection, tables: set[str], where: str) -> None:
    if foreign := tables & {"queue", "topic", "pattern", "process", "consumer", "message"}:
        raise ConfigurationError(f"{where} has a table {min(foreign)!r} of another program; use a file of its own")
    for statement in _TABLES.split(";\n"):
        db.execute(statement)
    db.execute("INSERT INTO broker (version, epoch) VALUES (?, 0)", (VERSION,))
