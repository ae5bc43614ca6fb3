"""What people ask for: statistics, a look into a queue, purging, moving. In slices, so that others go on meanwhile."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from busline.message import Message, QueueStats
from busline.transports.sqlite import statements as sql
from busline.transports.sqlite.declaring import names_of
from busline.transports.sqlite.door import SLICE, expire
from busline.transports.sqlite.engine import Engine
from busline.transports.sqlite.ledger import Ledger

_COLUMNS = "due, topic, meta, headers, correlation_id, reply_to, priority, ttl, expendable, body"
_PEEK_READY = (
    f"SELECT {_COLUMNS} FROM message INDEXED BY ready"
    " WHERE queue = ? AND due IS NULL ORDER BY priority DESC, id LIMIT ?"
)
_PEEK_DELAYED = (
    f"SELECT {_COLUMNS} FROM message INDEXED BY delayed"
    " WHERE queue = ? AND due IS NOT NULL AND token IS NULL ORDER BY due LIMIT ?"
)
_COUNTS = (
    "SELECT count(*) FROM message INDEXED BY ready WHERE queue = ? AND due IS NULL",
    "SELECT count(*) FROM message INDEXED BY delayed WHERE queue = ? AND due IS NOT NULL AND token IS NULL",
    "SELECT count(*) FROM message INDEXED BY leased WHERE queue = ? AND token IS NOT NULL",
    "SELECT count(*) FROM consumer WHERE queue = ?",
)
_MOVE_READY = (
    "UPDATE message SET queue = ? WHERE id IN ("
    " SELECT id FROM message INDEXED BY ready WHERE queue = ? AND due IS NULL ORDER BY priority DESC, id LIMIT ?)"
)
_MOVE_DELAYED = (
    "UPDATE message SET queue = ? WHERE id IN ("
    " SELECT id FROM message INDEXED BY delayed"
    " WHERE queue = ? AND due IS NOT NULL AND token IS NULL ORDER BY due LIMIT ?)"
)


def read_stats(path: str) -> Sequence[QueueStats]:
    """Every queue, by name. Blocks (counting a million messages takes some 30 ms), so not for the loop's thread."""
    db = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        db.execute("BEGIN")
        queues = db.execute("SELECT id, name, ephemeral FROM queue ORDER BY name").fetchall()
        return [_stats(db, *queue) for queue in queues]
    finally:
        db.close()


def _stats(db: sqlite3.Connection, queue: int, name: str, ephemeral: int) -> QueueStats:
    ready, delayed, leased, consumers = (db.execute(count, (queue,)).fetchone()[0] for count in _COUNTS)
    return QueueStats(name, ready, delayed, leased, consumers, *names_of(db, queue), bool(ephemeral))


class Inspection:
    """Peek, purge and move, each step a transaction of the engine."""

    def __init__(self, db: sqlite3.Connection, ledger: Ledger, engine: Engine, where: str) -> None:
        self._db = db
        self._ledger = ledger
        self._engine = engine
        self._where = where

    async def sweep(self) -> None:
        """Delete what has outlived its ttl; looks first, which costs a read."""
        while self._finds_expired():
            await self._engine.run(lambda: expire(self._db))

    async def stats(self) -> Sequence[QueueStats]:
        """See `Inspectable`."""
        await self.sweep()
        return await asyncio.to_thread(read_stats, self._where)

    async def peek(self, queue: str, limit: int) -> Sequence[Message]:
        """See `Inspectable`. A delayed message has what is left of its delay."""

        def read() -> list[tuple[Any, ...]]:
            number = self._ledger.names.queue(queue)
            rows = self._db.execute(_PEEK_READY, (number, limit)).fetchall()
            return rows + self._db.execute(_PEEK_DELAYED, (number, limit - len(rows))).fetchall()

        await self.sweep()
        now = time.time()
        return [_message(row, now) for row in await self._engine.run(read)]

    async def purge(self, queue: str) -> int:
        """See `Inspectable`."""

        def purge() -> int:
            parameters = (self._ledger.names.queue(queue), SLICE)
            return sum(
                self._db.execute(delete, parameters).rowcount for delete in (sql.DELETE_READY, sql.DELETE_DELAYED)
            )

        await self.sweep()
        return await self._in_slices(purge)

    async def move(self, source: str, to: str, limit: int) -> int:
        """See `Inspectable`."""
        await self.sweep()
        moved = 0
        while moved < limit:
            size = min(SLICE, limit - moved)
            step = await self._engine.run(lambda: self._move(source, to, size))  # noqa: B023  # run before the next turn
            moved += step
            if step < size:
                break
        return moved

    def _move(self, source: str, to: str, limit: int) -> int:
        giving, taking = self._ledger.names.queue(source), self._ledger.names.queue(to)
        if giving == taking:
            return 0
        ready = self._db.execute(_MOVE_READY, (taking, giving, limit)).rowcount
        delayed = self._db.execute(_MOVE_DELAYED, (taking, giving, limit - ready)).rowcount
        if ready:
            self._ledger.arrived(taking, ready)
        if delayed:
            self._ledger.delayed(taking, self._ledger.next_due(taking))
        return ready + delayed

    def _finds_expired(self) -> bool:
        try:
            return self._db.execute(sql.PEEK_EXPIRED, (time.time(),)).fetchone() is not None
        except sqlite3.Error:  # the next round looks again
            return False

    async def _in_slices(self, step: Callable[[], int]) -> int:
        total = 0
        while done := await self._engine.run(step):
            total += done
        return total


def _message(row: tuple[Any, ...], now: float) -> Message:
    due, topic, meta, headers, correlation_id, reply_to, priority, ttl, expendable, body = row
    delay = max(0.0, due - now) if due is not None else 0.0
    decoded = json.loads(headers) if headers else {}
    return Message(topic, body, meta, decoded, correlation_id, reply_to, priority, delay, ttl, expendable == 1)
