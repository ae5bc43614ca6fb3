"""Whether those that were woken have come: they may be blocked by a handler, stopped, or very busy.

A transaction wakes no more processes than are needed. Whoever leaves others asleep looks a moment later whether the
message at the queue's head is still the same, and if so wakes one more: nothing is held up by who was woken first.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection

from busline.transports.sqlite import statements as sql

PATIENCE = 0.01
"""Seconds within which a process that was woken has usually claimed."""


class Looks:
    """One timer for each queue at most, and only where somebody was left asleep."""

    def __init__(self, db: sqlite3.Connection, wake: Callable[[int], None]) -> None:
        self._db = db
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._armed: dict[int, asyncio.TimerHandle] = {}
        self._since: set[int] = set()

    def spared(self, queue: int) -> None:
        """Somebody who waits for messages of the queue was left asleep by the transaction that was just committed."""
        if queue in self._armed:
            self._since.add(queue)
        else:
            self._arm(queue, self._head(queue))

    def end(self) -> Collection[int]:
        """No more looks; for which queues were they?"""
        for timer in self._armed.values():
            timer.cancel()
        queues = list(self._armed)
        self._armed.clear()
        return queues

    def _arm(self, queue: int, head: int) -> None:
        self._since.discard(queue)
        if head:
            self._armed[queue] = self._loop.call_later(PATIENCE, self._look, queue, head)

    def _look(self, queue: int, before: int) -> None:
        del self._armed[queue]
        head = self._head(queue)
        if head == before:
            self._wake(queue)
        elif queue in self._since:
            self._arm(queue, head)

    def _head(self, queue: int) -> int:
        try:
            row = self._db.execute(sql.PEEK_HEAD, (queue,)).fetchone()
        except sqlite3.Error:
            return -1  # to be woken for, if it cannot be read the next time either
        return row[0] if row else 0
