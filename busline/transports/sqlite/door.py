"""What a queue with bounds takes and what it refuses. For use inside a transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace

from busline.errors import ConfigurationError, QueueFull
from busline.message import Message
from busline.transports.sqlite import statements as sql
from busline.transports.sqlite.names import Bounds

SLICE = 500
"""Messages deleted or moved in one transaction."""


def expire(db: sqlite3.Connection) -> int:
    """Delete a slice of the expendable messages whose ttl has passed and that nobody holds; how many?"""
    return db.execute(sql.EXPIRE, (time.time(), SLICE)).rowcount


def check_priorities(bounds: Bounds, messages: Sequence[Message]) -> None:
    """Raise ConfigurationError for a priority that the queue does not know."""
    highest = bounds.max_priority
    if highest is None:
        return
    for message in messages:
        if message.priority > highest:
            raise ConfigurationError(
                f"priority {message.priority} is above the max_priority {highest} of queue {bounds.name!r}"
            )


def fitted(bounds: Bounds, messages: Sequence[Message]) -> Sequence[Message]:
    """The same messages, each with the highest priority that the queue knows at most."""
    highest = bounds.max_priority
    if highest is None:
        return messages
    return [m if m.priority <= highest else replace(m, priority=highest) for m in messages]


class Door:
    """How many messages bounded queues let in. `queue.waiting` counts what is in the table already."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._let_in: dict[int, int] = {}

    def check_room(self, queue: int, bounds: Bounds, number: int) -> None:
        """Raise QueueFull if not so many more may wait."""
        most = bounds.max_length
        while most is not None and self._waiting(queue) + number > most:
            if not expire(self._db):
                raise QueueFull(bounds.name, most)

    def let_in(self, queue: int, number: int) -> None:
        """So many are stored at the end of this transaction."""
        self._let_in[queue] = self._let_in.get(queue, 0) + number

    def reset(self) -> None:
        """The transaction is over."""
        self._let_in.clear()

    def _waiting(self, queue: int) -> int:
        (waiting,) = self._db.execute(sql.COUNT_WAITING, (queue,)).fetchone()
        return int(waiting) + self._let_in.get(queue, 0)
