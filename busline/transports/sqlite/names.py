"""What this process remembers of queues, topics and patterns, so that a send looks nothing up."""

from __future__ import annotations

import sqlite3

from busline.errors import NoHandler, QueueNotFound
from busline.message import Destination, ToTopic
from busline.structs import value
from busline.topics import matches

_MOST = 10_000
"""Names remembered at most."""


@value
class Bounds:
    """What a queue was told not to take."""

    name: str
    max_priority: int | None
    max_length: int | None


class Names:
    """Exact inside a transaction: any change of names bumps the epoch, which is read once per transaction.

    All methods are for use inside one.
    """

    def __init__(self, db: sqlite3.Connection, where: str) -> None:
        self._db = db
        self._where = where
        self._epoch = -1
        self._checked = False
        self._queues: dict[str, int] = {}
        self._topics: dict[str, int] = {}
        self._patterns: list[tuple[str, int]] | None = None
        self._subscribers: dict[str, tuple[int, ...]] = {}
        self._bounds: dict[int, Bounds] | None = None

    def begin(self) -> None:
        """A transaction begins; others may have changed anything."""
        self._checked = False

    def forget(self) -> None:
        """What was remembered may never have been true: the transaction was rolled back."""
        self._epoch = -1
        self._clear()

    def changed(self) -> None:
        """This transaction changes names."""
        self._db.execute("UPDATE broker SET epoch = epoch + 1")
        self._checked = False

    def queue(self, name: str) -> int:
        """The id of the queue, or QueueNotFound."""
        self._check()
        found = self._queues.get(name)
        if found is None:
            row = self._db.execute("SELECT id FROM queue WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise QueueNotFound(name, self._where)
            found = self._queues[name] = row[0]
        return found

    def destination(self, to: Destination) -> int:
        """The id of the queue that it means, or NoHandler or QueueNotFound."""
        if not isinstance(to, ToTopic):
            return self.queue(to.queue)
        self._check()
        found = self._topics.get(to.topic)
        if found is None:
            row = self._db.execute("SELECT queue FROM topic WHERE topic = ?", (to.topic,)).fetchone()
            if row is None:
                raise NoHandler(to.topic, self._where)
            found = self._topics[to.topic] = row[0]
        return found

    def subscribers(self, topic: str) -> tuple[int, ...]:
        """The ids of all queues that are bound to a pattern which matches."""
        self._check()
        found = self._subscribers.get(topic)
        if found is None:
            if self._patterns is None:
                self._patterns = self._db.execute("SELECT pattern, queue FROM pattern").fetchall()
            found = tuple({queue for pattern, queue in self._patterns if matches(pattern, topic)})
            self._subscribers[topic] = found
        return found

    def is_unheard(self, topic: str) -> bool:
        """Is nobody bound to a pattern that matches, by what is committed at this moment? For use outside.

        Somebody who was bound when we looked last is taken to be there still; the transaction will tell.
        """
        if self._subscribers.get(topic):
            return False
        self.begin()
        return not self.subscribers(topic)

    def bounds(self, queue: int) -> Bounds | None:
        """Of the queue with this id, which was just found by one of the others."""
        if self._bounds is None:
            columns = "id, name, max_priority, max_length"
            bounded = "max_priority IS NOT NULL OR max_length IS NOT NULL"
            rows = self._db.execute(f"SELECT {columns} FROM queue WHERE {bounded}")
            self._bounds = {id_: Bounds(*bounds) for id_, *bounds in rows}
        return self._bounds.get(queue)

    def _check(self) -> None:
        if self._checked:
            return
        (epoch,) = self._db.execute("SELECT epoch FROM broker").fetchone()
        if epoch != self._epoch or len(self._queues) + len(self._topics) + len(self._subscribers) > _MOST:
            self._clear()
            self._epoch = epoch
        self._checked = True

    def _clear(self) -> None:
        self._queues.clear()
        self._topics.clear()
        self._subscribers.clear()
        self._patterns = None
        self._bounds = None
