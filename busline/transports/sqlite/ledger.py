"""What happens to messages inside the one transaction of a loop tick: acks, inserts, promotion, claims, wake-ups.

Wake-ups are precise. A claim that finds too few messages marks its process as waiting, for how many, in the same
transaction; a transaction that makes n messages ready un-marks as many waiting processes as take n and, once committed,
sends each a wake-up. Whoever is woken claims what is there, and passes the wake-up on if that is more than it can take.
So nobody polls, and hardly anybody is woken for nothing; whether those that were woken have come, see `Looks`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from busline.message import Delivery, Destination, Message
from busline.transports.sqlite import statements as sql
from busline.transports.sqlite.consumer import Feed, Row
from busline.transports.sqlite.door import SLICE, Door, check_priorities, fitted
from busline.transports.sqlite.names import Names

PROMOTE_AT_MOST = 500
"""Due messages made ready in one transaction; the rest in the next."""
MAX_BATCH = 500
"""Messages of one send that are stored in one transaction."""
_FOREVER = float("inf")
_EXPIRES = 10
"""The place of that column in a `Row`."""

Send = Callable[[int, int, float], None]
"""(process, queue, due): a wake-up if due is 0, else word of a message that will be due then."""


class Ledger:
    """The rows. `begin`, any number of changes, `finish`, COMMIT, `committed`; or `rolled_back`."""

    def __init__(self, db: sqlite3.Connection, names: Names, lease: float) -> None:
        self.names = names
        self.process = 0
        self.feeds: dict[int, Feed] = {}
        self.acks: list[Delivery] = []
        """Settled by their handlers, and not yet deleted."""
        self.tell: Send = lambda process, queue, due: None
        self.spared: Callable[[int], None] = lambda queue: None
        """Not all that wait for messages of the queue were woken."""
        self._db = db
        self._lease = lease
        self._door = Door(db)
        self._acked = 0
        self._rows: list[tuple[Any, ...]] = []
        self._arrived: dict[int, int] = {}
        self._delayed: dict[int, float] = {}
        self._claimed: list[tuple[Feed, list[Row], int, float]] = []
        self._promoted: list[tuple[Feed, float]] = []
        self._marked: set[Feed] = set()
        self._gone: list[Feed] = []
        self._frames: list[tuple[int, int, float]] = []
        self._passed_on: set[int] = set()
        self._spared: list[int] = []

    def has_work(self) -> bool:
        """Is there anything that a transaction would do on its own?"""
        return bool(self.acks) or any(feed.is_restless() for feed in self.feeds.values())

    def begin(self, *, settle: bool) -> None:
        """The transaction has begun; `settle` means that acks are part of it."""
        self.names.begin()
        if settle and self.acks:
            self._db.executemany(sql.ACK, [delivery.receipt for delivery in self.acks])
            self._acked = len(self.acks)

    def send(self, to: Destination, messages: Sequence[Message], done: int, reply_to: str | None) -> int:
        """Store those behind the first `done`, a batch at most; how many are done now? `reply_to` replaces theirs.

        A queue with bounds takes all at once or none.
        """
        queue = self.names.destination(to)
        if bounds := self.names.bounds(queue):
            part = messages[done:]
            check_priorities(bounds, part)
            self._door.check_room(queue, bounds, len(part))
            self._door.let_in(queue, len(part))
        else:
            part = messages[done : done + MAX_BATCH]
        self._insert(queue, part, reply_to)
        return done + len(part)

    def publish(self, topic: str, messages: Sequence[Message], done: int) -> int:
        """The same for every queue that is bound; 0 if none is."""
        queues = self.names.subscribers(topic)
        bounded = [(queue, bounds) for queue in queues if (bounds := self.names.bounds(queue))]
        part = messages[done:] if bounded else messages[done : done + MAX_BATCH]
        for queue, bounds in bounded:
            self._door.check_room(queue, bounds, len(part))
        for queue, _ in bounded:
            self._door.let_in(queue, len(part))
        for queue in queues:
            own = self.names.bounds(queue)
            self._insert(queue, fitted(own, part) if own else part)
        return done + len(part) if queues else 0

    def _insert(self, queue: int, messages: Iterable[Message], reply_to: str | None = None) -> None:
        rows, count, now = self._rows, 0, 0.0
        for message in messages:
            due = expires = None
            if message.delay > 0:
                now = now or time.time()
                due = now + message.delay
                self.delayed(queue, due)
            else:
                count += 1
            if message.ttl is not None and (message.expendable or reply_to or message.reply_to):
                now = now or time.time()
                expires = now + message.ttl
            headers = json.dumps(dict(message.headers), ensure_ascii=False) if message.headers else None
            text = (message.topic, message.meta, headers, message.correlation_id, reply_to or message.reply_to)
            flag = 1 if message.expendable else 0  # sqlite3 takes 0.6 µs to find out what a bool is
            rows.append((queue, message.priority, due, *text, message.ttl, flag, expires, message.body))
        if count:
            self.arrived(queue, count)

    def release(self, queue: int, deliveries: Iterable[Delivery], delay: float) -> None:
        """Give back those that are still ours; not counted as delivered."""
        due = time.time() + delay if delay > 0 else None
        parameters = [(due, *delivery.receipt) for delivery in deliveries]
        count = self._db.executemany(sql.RELEASE, parameters).rowcount
        if due is not None:
            self.delayed(queue, due)
        elif count > 0:
            self.arrived(queue, count)

    def arrived(self, queue: int, count: int) -> None:
        """`count` messages of the queue are ready by this transaction, or as many wake-ups may have been lost."""
        self._arrived[queue] = self._arrived.get(queue, 0) + count

    def pass_on(self, queue: int) -> None:
        """Wake one more process that waits for messages of the queue, whoever claims some in this transaction."""
        self._passed_on.add(queue)

    def delayed(self, queue: int, due: float) -> None:
        """A message of the queue is delayed by this transaction."""
        self._delayed[queue] = min(due, self._delayed.get(queue, _FOREVER))

    def wake_all(self, queue: int) -> None:
        """Whatever they wait for: something about the queue itself has changed."""
        for (process,) in self._db.execute("SELECT process FROM consumer WHERE queue = ?", (queue,)):
            self._frames.append((process, queue, 0.0))

    def next_due(self, queue: int) -> float:
        """When the next message of the queue becomes ready by the clock alone: a delay or a lease ends."""
        delayed = self._db.execute(sql.NEXT_DELAYED, (queue,)).fetchone()
        leased = self._db.execute(sql.NEXT_LEASED, (queue,)).fetchone()
        return min(delayed[0] if delayed else _FOREVER, leased[0] if leased else _FOREVER)

    def finish(self, *, claim: bool) -> None:
        """The last part of the transaction: what the changes of before lead to."""
        if self._rows:
            self._db.executemany(sql.INSERT, self._rows)
        for queue, due in self._delayed.items():
            self._announce(queue, due)
        if claim:
            for feed in self.feeds.values():
                self._serve(feed)
        for queue, count in self._arrived.items():
            self._wake(queue, count - self._claimed_of(queue), claim)
        for queue in self._passed_on:
            self._wake(queue, 1, claim=False)

    def committed(self) -> None:
        """It is done: wake others, hand out what was claimed."""
        del self.acks[: self._acked]
        for frame in self._frames:
            self.tell(*frame)
        for queue in self._spared:
            self.spared(queue)
        for feed, due in self._promoted:
            feed.promoted(due)
        for feed in self._marked:
            feed.waiting = True
            feed.woken = False
        for feed in self._gone:
            feed.gone()
        claimed = self._claimed
        self._claimed = []
        self._reset()
        for feed, rows, token, until in claimed:
            feed.woken = False
            feed.deliver([_delivery(feed.name, row, token, until) for row in rows])

    def rolled_back(self) -> None:
        """Nothing of it has happened."""
        self.names.forget()
        self._claimed.clear()
        self._reset()

    def drop_late_acks(self) -> None:
        """Acks that the file would not take until their lease had ended are of no use any more."""
        now = time.time()
        self.acks = [delivery for delivery in self.acks if delivery.leased_until > now]

    def _reset(self) -> None:
        self._acked = 0
        self._door.reset()
        self._rows.clear()
        self._arrived.clear()
        self._delayed.clear()
        self._promoted.clear()
        self._marked.clear()
        self._gone.clear()
        self._frames.clear()
        self._passed_on.clear()
        self._spared.clear()

    def _serve(self, feed: Feed) -> None:
        if feed.ripe:
            self._promote(feed)
        if feed.waiting and not feed.ripe:
            return
        if feed.wanted():
            self._claim(feed)
        elif feed.woken:
            self.arrived(feed.queue, 1)
            feed.woken = False

    def _promote(self, feed: Feed) -> None:
        parameters = (feed.queue, time.time(), PROMOTE_AT_MOST)
        count = 0
        for statement in (sql.PROMOTE_DELAYED, sql.END_LEASES):
            count += self._db.execute(statement, parameters).rowcount
        if count:
            self.arrived(feed.queue, count)
        self._promoted.append((feed, self.next_due(feed.queue)))

    def _claim(self, feed: Feed) -> None:
        wanted = feed.wanted()
        rows: list[Row] = []
        if self._db.execute(sql.PEEK_READY, (feed.queue,)).fetchone():
            token, now = secrets.randbits(63), time.time()
            until = now + self._lease
            rows = self._db.execute(sql.CLAIM, (token, self.process, until, feed.queue, wanted)).fetchall()
            rows.sort(key=_place)
            self._claimed.append((feed, self._without_late(feed.queue, rows, token, now), token, until))
        if len(rows) < wanted:
            self._wait(feed, wanted - len(rows))
        elif self._db.execute(sql.PEEK_READY, (feed.queue,)).fetchone():
            self.pass_on(feed.queue)

    def _without_late(self, queue: int, rows: list[Row], token: int, now: float) -> list[Row]:
        """Those that are still of use; the others, calls and expendable messages, are dropped.

        So are others like them at the head of the queue. What comes behind is for the next transaction to claim.
        """
        late = [(row[0], token) for row in rows if row[_EXPIRES] is not None and row[_EXPIRES] <= now]
        if not late:
            return rows
        self._db.executemany(sql.ACK, late)
        self._db.execute(sql.DROP_LATE, (now, queue, SLICE))
        return [row for row in rows if (row[0], token) not in late]

    def _wait(self, feed: Feed, wanted: int) -> None:
        marked = self._db.execute(sql.SET_WAITING, (wanted, feed.queue, self.process))
        if marked.rowcount:
            self._marked.add(feed)
        else:  # our row went together with the queue
            self._gone.append(feed)

    def _claimed_of(self, queue: int) -> int:
        return sum(len(rows) for feed, rows, _, _ in self._claimed if feed.queue == queue)

    def _wake(self, queue: int, count: int, claim: bool) -> None:
        """Processes that take so many, first those that take most: they have least to do. We come last."""
        if count <= 0:
            return
        for process, wanted in self._db.execute(sql.FIND_WAITING, (queue, self.process, count + 1)).fetchall():
            if count <= 0:
                self._spared.append(queue)
                return
            count -= wanted
            self._db.execute(sql.SET_WAITING, (0, queue, process))
            if process != self.process:
                self._frames.append((process, queue, 0.0))
            else:
                self._wake_ourselves(self.feeds.get(queue), claim)

    def _wake_ourselves(self, feed: Feed | None, claim: bool) -> None:
        if feed is None:
            return
        self._marked.discard(feed)
        if claim and feed.wanted():
            self._claim(feed)
        if feed not in self._marked:
            self._frames.append((self.process, feed.queue, 0.0))

    def _announce(self, queue: int, due: float) -> None:
        """If nothing of the queue is due earlier, somebody who consumes it must set his clock."""
        first = self._db.execute(sql.NEXT_DELAYED, (queue,)).fetchone()
        if first is None or first[0] < due:
            return
        keeper = self._db.execute(sql.PICK_TIMEKEEPER, (queue, self.process)).fetchone()
        if keeper is not None:
            self._frames.append((keeper[0], queue, due))


def _place(row: Row) -> tuple[int, int]:
    return (-row[2], row[0])


def _delivery(queue: str, row: Row, token: int, until: float) -> Delivery:
    id_, deliveries, priority, topic, meta, headers, correlation_id, reply_to, ttl, expendable, _, body = row
    decoded = json.loads(headers) if headers else {}
    message = Message(topic, body, meta, decoded, correlation_id, reply_to, priority, 0.0, ttl, expendable == 1)
    return Delivery(message, queue, (id_, token), deliveries, until)
