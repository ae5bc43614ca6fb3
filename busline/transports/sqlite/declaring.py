"""Queues, topics and patterns in the file. Every function is for use inside a transaction."""

from __future__ import annotations

import sqlite3

from busline.errors import ConfigurationError
from busline.message import QueueSpec
from busline.transports.sqlite import statements as sql
from busline.transports.sqlite.ledger import Ledger

_ALL = -1
"""As a LIMIT: none."""


def declare(db: sqlite3.Connection, ledger: Ledger, spec: QueueSpec, where: str) -> None:
    """Make the queue and its topics and patterns exactly what `spec` says."""
    _check_owners(db, spec, where)
    row = db.execute("SELECT id, service, ephemeral FROM queue WHERE name = ?", (spec.name,)).fetchone()
    owner = ledger.process if spec.ephemeral else None
    if row is None:
        values = (spec.name, spec.service, spec.ephemeral, owner)
        cursor = db.execute("INSERT INTO queue (name, service, ephemeral, owner) VALUES (?, ?, ?, ?)", values)
        queue = int(cursor.lastrowid or 0)
    else:
        queue = row[0]
        if not spec.ephemeral and row[1:] == (spec.service, 0) and names_of(db, queue) == (spec.topics, spec.patterns):
            return
        changes = (spec.service, spec.ephemeral, owner, queue)
        db.execute("UPDATE queue SET service = ?, ephemeral = ?, owner = ? WHERE id = ?", changes)
    _set_names(db, queue, spec)
    ledger.names.changed()


def remove(db: sqlite3.Connection, ledger: Ledger, queue: int) -> None:
    """Delete the queue with all that belongs to it, and let those know that consume it."""
    ledger.wake_all(queue)
    for statement in (sql.DELETE_READY, sql.DELETE_DELAYED, sql.DELETE_LEASED):
        db.execute(statement, (queue, _ALL))
    for table in ("topic", "pattern", "consumer"):
        db.execute(f"DELETE FROM {table} WHERE queue = ?", (queue,))
    db.execute("DELETE FROM queue WHERE id = ?", (queue,))
    ledger.names.changed()


def forget_process(db: sqlite3.Connection, ledger: Ledger, process: int, *, in_peace: bool) -> None:
    """Everything that a process held goes back, and its ephemeral queues and its row go.

    What it was working on counts as a delivery, unless it left `in_peace`.
    """
    for (queue,) in db.execute(sql.END_LEASES_OF_OWNER, (int(in_peace), process)).fetchall():
        ledger.arrived(queue, 1)
    # It may have been woken for a message and gone before it claimed that.
    for (queue,) in db.execute("DELETE FROM consumer WHERE process = ? RETURNING queue", (process,)).fetchall():
        ledger.arrived(queue, 1)
    for (queue,) in db.execute("SELECT id FROM queue WHERE ephemeral AND owner = ?", (process,)).fetchall():
        remove(db, ledger, queue)
    db.execute("DELETE FROM process WHERE id = ?", (process,))


def _check_owners(db: sqlite3.Connection, spec: QueueSpec, where: str) -> None:
    for topic in spec.topics:
        row = db.execute(
            "SELECT queue.name, service FROM topic JOIN queue ON queue.id = topic.queue"
            " WHERE topic = ? AND service <> ? AND queue.name <> ?",
            (topic, spec.service, spec.name),
        ).fetchone()
        if row is not None:
            raise ConfigurationError(
                f"topic {topic!r} belongs to queue {row[0]!r} of service {row[1]!r} at {where};"
                f" queue {spec.name!r} of service {spec.service!r} cannot have it"
            )


def names_of(db: sqlite3.Connection, queue: int) -> tuple[frozenset[str], frozenset[str]]:
    """The topics and the patterns of a queue."""
    topics = db.execute("SELECT topic FROM topic WHERE queue = ?", (queue,))
    patterns = db.execute("SELECT pattern FROM pattern WHERE queue = ?", (queue,))
    return frozenset(topic for (topic,) in topics), frozenset(pattern for (pattern,) in patterns)


def _set_names(db: sqlite3.Connection, queue: int, spec: QueueSpec) -> None:
    db.execute("DELETE FROM topic WHERE queue = ?", (queue,))
    db.execute("DELETE FROM pattern WHERE queue = ?", (queue,))
    db.executemany("INSERT OR REPLACE INTO topic (topic, queue) VALUES (?, ?)", [(t, queue) for t in spec.topics])
    db.executemany("INSERT INTO pattern (pattern, queue) VALUES (?, ?)", [(p, queue) for p in spec.patterns])
