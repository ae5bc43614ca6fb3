"""Queues, topics and patterns in the file. Every function is for use inside a transaction."""

from __future__ import annotations

import sqlite3

from busline.errors import ConfigurationError, QueueNotFound
from busline.message import QueueSpec
from busline.transports.sqlite import statements as sql
from busline.transports.sqlite.ledger import Ledger
from busline.transports.sqlite.schema import count_waiting

_ALL = -1
"""As a LIMIT: none."""
_FIND = "SELECT id, service, ephemeral, max_priority, max_length FROM queue WHERE name = ?"
_ADD = "INSERT INTO queue (name, service, ephemeral, owner, max_priority, max_length) VALUES (?, ?, ?, ?, ?, ?)"
_CHANGE = "UPDATE queue SET service = ?, ephemeral = ?, owner = ?, max_priority = ?, max_length = ? WHERE id = ?"
_RECOUNT = "UPDATE queue SET waiting = (SELECT count(*) FROM message WHERE queue = ?1 AND token IS NULL) WHERE id = ?1"

PRIORITIES = 10


def check_options(spec: QueueSpec, where: str) -> None:
    """Raise ConfigurationError for what no queue here can be."""
    for option in ("kind", "bindings"):
        if getattr(spec, option):
            raise ConfigurationError(f"queue {spec.name!r}: only RabbitMQ has {option}, {where} has not")
    if spec.max_priority is not None and not 0 <= spec.max_priority <= PRIORITIES:
        raise ConfigurationError(f"queue {spec.name!r}: max_priority is {spec.max_priority}, not 0 to {PRIORITIES}")
    if spec.max_length is not None and spec.max_length < 1:
        raise ConfigurationError(f"queue {spec.name!r}: max_length is {spec.max_length}, not 1 or more")


def verify(db: sqlite3.Connection, spec: QueueSpec, where: str) -> None:
    """Raise QueueNotFound, or ConfigurationError if the queue is not what `spec` says."""
    row = db.execute(_FIND, (spec.name,)).fetchone()
    if row is None:
        raise QueueNotFound(spec.name, where)
    queue, _, *found = row
    topics, patterns = names_of(db, queue)
    if unknown := (spec.topics - topics) | (spec.patterns - patterns):
        raise ConfigurationError(f"queue {spec.name!r} is passive, and its owner gave it no {sorted(unknown)}")
    for option, value in zip(("ephemeral", "max_priority", "max_length"), found, strict=True):
        if getattr(spec, option) not in (None, False, value):
            raise ConfigurationError(f"queue {spec.name!r} is passive, with {option}={value}")


def declare(db: sqlite3.Connection, ledger: Ledger, spec: QueueSpec, where: str) -> None:
    """Make the queue and its patterns what `spec` says, and its topics at least that."""
    _check_owners(db, spec, where)
    row = db.execute(_FIND, (spec.name,)).fetchone()
    values = (spec.service, spec.ephemeral, ledger.process if spec.ephemeral else None)
    options = (spec.max_priority, spec.max_length)
    if row is None:
        queue = int(db.execute(_ADD, (spec.name, *values, *options)).lastrowid or 0)
    else:
        queue = row[0]
        same = not spec.ephemeral and row[1:] == (spec.service, 0, *options)
        topics, patterns = names_of(db, queue)
        if same and topics >= spec.topics and patterns == spec.patterns:
            return
        db.execute(_CHANGE, (*values, *options, queue))
    if spec.max_length is not None and (row is None or row[4] is None):
        count_waiting(db)
        db.execute(_RECOUNT, (queue,))
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
    db.execute("DELETE FROM pattern WHERE queue = ?", (queue,))
    db.executemany("INSERT OR REPLACE INTO topic (topic, queue) VALUES (?, ?)", [(t, queue) for t in spec.topics])
    db.executemany("INSERT INTO pattern (pattern, queue) VALUES (?, ?)", [(p, queue) for p in spec.patterns])
