"""A transport between `open` and `aclose`: its connection and everything that lives on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence

from busline.errors import BuslineError, TransportClosed
from busline.message import Delivery, Message
from busline.transports.sqlite import frames
from busline.transports.sqlite.checkpoints import Checkpoints
from busline.transports.sqlite.consumer import Feed, SqliteConsumer
from busline.transports.sqlite.declaring import forget_process
from busline.transports.sqlite.engine import Engine
from busline.transports.sqlite.faults import as_transport_error
from busline.transports.sqlite.inspection import Inspection
from busline.transports.sqlite.ledger import Ledger
from busline.transports.sqlite.liveness import RunFiles
from busline.transports.sqlite.looking import Looks
from busline.transports.sqlite.names import Names
from busline.transports.sqlite.peers import Peers
from busline.transports.sqlite.walsync import WalSync
from busline.transports.sqlite.watch import Watch

_ADDRESS = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})")
"""Of an inbox: the number of its process in the file, and its own in the process."""
_KNOCKING = 10.0
"""Seconds for which a process that lets nobody in is tried again before its reply is given up."""
_LEAVING = 2.0
"""Seconds within which a closing transport wants to give its messages back; else others find its lock free."""


class Session:
    """What the parts share, and what takes several of them."""

    def __init__(self, where: str, db: sqlite3.Connection, lease: float) -> None:
        self.where = where
        self.db = db
        self.files = RunFiles(where)
        self._file = _identity(where)
        self.loop = asyncio.get_running_loop()
        """In which it lives; asking for the running one is a system call."""
        self.ledger = Ledger(db, Names(db, where), lease)
        self.sync = WalSync(where)
        self.checkpoints = Checkpoints(where)
        self.engine = Engine(db, self.ledger, self.sync, self.checkpoints, where)
        self.inspection = Inspection(db, self.ledger, self.engine, where)
        self.peers = Peers(self._address_of, self._receive)
        self._inboxes: dict[int, Callable[[Message], None]] = {}
        self._inbox_numbers = itertools.count(1)
        self.watch = Watch(self)
        self.ledger.tell = self._tell
        self.looks = Looks(db, lambda queue: self.engine.post(lambda: self.ledger.pass_on(queue)))
        self.ledger.spared = self.looks.spared

    async def start(self) -> None:
        """Become visible to the other processes, and clear up after those that died. Raises OSError, sqlite3.Error."""
        self.files.take()
        self.checkpoints.open()
        await self.peers.listen(self.files.address, self.files.mode)
        self.ledger.process = await self.engine.run(self._register)
        await self.watch.reap()
        self.watch.clear_up()
        self.watch.start()

    async def consume(self, queue: str, slots: int, prefetch: int) -> SqliteConsumer:
        """A new consumer. Raises QueueNotFound."""

        def register() -> tuple[int, float]:
            number = self.ledger.names.queue(queue)
            values = (number, self.ledger.process)
            self.db.execute("INSERT OR IGNORE INTO consumer (queue, process) VALUES (?, ?)", values)
            return number, self.ledger.next_due(number)

        number, due = await self.engine.run(register)
        feed = self.ledger.feeds.get(number)
        if feed is None:
            feed = self.ledger.feeds[number] = Feed(number, queue, self)
        consumer = SqliteConsumer(feed, self, slots, prefetch, feed.consumers.remove)
        feed.consumers.append(consumer)
        feed.arm(due)
        return consumer

    def add_inbox(self, on_reply: Callable[[Message], None]) -> tuple[int, str]:
        """A new inbox: its number here, and its address for everybody."""
        number = next(self._inbox_numbers)
        self._inboxes[number] = on_reply
        return number, f"{self.ledger.process}.{number}"

    def remove_inbox(self, number: int) -> None:
        """Its replies are dropped from now on."""
        self._inboxes.pop(number, None)

    def check_open(self) -> None:
        """Raise TransportClosed if it is closed."""
        if self.engine.closed:
            raise TransportClosed(f"{self.where} is closed")

    async def release(self, queue: int, deliveries: Sequence[Delivery], delay: float) -> None:
        """Give back, uncounted."""
        await self.engine.run(lambda: self.ledger.release(queue, deliveries, delay))

    def give_back(self, feed: Feed, deliveries: Sequence[Delivery]) -> None:
        """The same at once, for what nobody has received."""
        self.engine.post(lambda: self.ledger.release(feed.queue, deliveries, 0.0))

    async def leave(self, feed: Feed, unsettled: Sequence[Delivery]) -> None:
        """A consumer has closed: its messages go back; with the last one the queue's wake-ups go to others."""

        def leave() -> None:
            self.ledger.release(feed.queue, unsettled, 0.0)
            if not feed.consumers:
                values = (feed.queue, self.ledger.process)
                self.db.execute("DELETE FROM consumer WHERE queue = ? AND process = ?", values)
                self.ledger.arrived(feed.queue, 1)

        if not feed.consumers:
            feed.stop()
            self.ledger.feeds.pop(feed.queue, None)
        await self.engine.run(leave)

    async def reply(self, address: str, message: Message) -> bool:
        """Send a reply to the process that the address means; False if there is none."""
        parts = _ADDRESS.fullmatch(address)
        if parts is None:
            return False
        process, inbox = int(parts[1]), int(parts[2])
        if process == self.ledger.process:
            if inbox not in self._inboxes:
                return False
            self.loop.call_soon(self._replied, inbox, message)
            return True
        if not (self.peers.knows(process) or await self._reach(process)):
            return False
        try:
            frame = frames.reply(inbox, message)
        except UnicodeEncodeError as error:
            raise as_transport_error(error, self.where) from error
        return self.peers.send(process, frame)

    async def _reach(self, process: int) -> bool:
        """Have a stream to it; one that lets nobody in, because its loop is busy, is tried again for a while."""
        until = time.monotonic() + _KNOCKING
        while (found := await self.engine.run(lambda: self.peers.reach(process))) is None:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(random.uniform(0.005, 0.05))
        return found

    def is_unheard(self, topic: str) -> bool:
        """Is nobody bound, as far as that can be seen without a transaction?"""
        try:
            return self.ledger.names.is_unheard(topic)
        except sqlite3.Error:
            return False

    def check_file(self) -> None:
        """Raises OSError if others find none in its place, or another one: it was moved, deleted or replaced."""
        if _identity(self.where) != self._file:
            raise OSError("somebody has put another file in its place; restart to use that")

    async def restore_files(self) -> None:
        """If somebody has deleted our lock or our socket, be visible again. Raises OSError."""
        if self.files.restore():
            await self.peers.listen(self.files.address, self.files.mode)

    def next_due(self, queue: int) -> float:
        """When the clock alone makes a message of the queue ready; 0.0 if that cannot be read now."""
        try:
            return self.ledger.next_due(queue)
        except sqlite3.Error:
            return 0.0

    async def aclose(self) -> None:
        """Give everything back, tell nobody to wait for us, end whatever runs."""
        self._end_consumers()
        await self.watch.aclose()
        with contextlib.suppress(BuslineError, TimeoutError):
            async with asyncio.timeout(_LEAVING):
                await self.engine.run(self._unregister)
                if unlooked := self.looks.end():
                    await self.engine.run(lambda: self._wake_all(unlooked))
        self.engine.close()
        self.peers.close()
        await self.sync.aclose()
        await _beside(self._close_file)
        self.files.remove()

    def _close_file(self) -> None:
        self.checkpoints.end()
        self.db.close()  # the last one to close moves what is in the log

    def die(self) -> None:
        """End as SIGKILL would: locks, sockets and connection go, the file stays as it is."""
        self.engine.close()
        self.looks.end()
        self._end_consumers()
        self.watch.abandon()
        self.sync.abandon()
        self.checkpoints.end()
        self.peers.close()
        self.db.close()
        self.files.let_go()

    def _end_consumers(self) -> None:
        for feed in list(self.ledger.feeds.values()):
            feed.stop()
            for consumer in list(feed.consumers):
                consumer.end(TransportClosed(f"{self.where} is closed"))

    def _register(self) -> int:
        values = (self.files.token, os.getpid(), self.files.address)
        cursor = self.db.execute("INSERT INTO process (token, pid, address) VALUES (?, ?, ?)", values)
        return int(cursor.lastrowid or 0)

    def _unregister(self) -> None:
        forget_process(self.db, self.ledger, self.ledger.process, in_peace=True)

    def _wake_all(self, queues: Collection[int]) -> None:
        for queue in queues:
            self.ledger.wake_all(queue)

    def _replied(self, inbox: int, message: Message) -> None:
        if on_reply := self._inboxes.get(inbox):
            on_reply(message)

    def _address_of(self, process: int) -> str | None:
        row = self.db.execute("SELECT address FROM process WHERE id = ?", (process,)).fetchone()
        return row[0] if row else None

    def _tell(self, process: int, queue: int, due: float) -> None:
        if process == self.ledger.process:
            self._woken(queue, due)
        else:
            with contextlib.suppress(sqlite3.Error):  # a wake-up that gets lost is made up for by the watch
                self.peers.send(process, frames.wake(queue, due), now=True)

    def _woken(self, queue: int, due: float) -> None:
        feed = self.ledger.feeds.get(queue)
        if feed is None:
            if not due:
                self.engine.post(lambda: self.ledger.arrived(queue, 1))
        elif due:
            feed.arm(due)
        else:
            feed.wake()

    def _receive(self, frame: bytes) -> None:
        if frame[0] == frames.WAKE:
            self._woken(*frames.read_wake(frame))
        elif frame[0] == frames.REPLY:
            self._replied(*frames.read_reply(frame))


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


async def _beside(work: Callable[[], None]) -> None:
    """Do it in a thread; or here when the program ends, and no thread is to be had: nobody is held up then."""
    try:
        done = asyncio.get_running_loop().run_in_executor(None, work)
    except RuntimeError:
        work()
    else:
        await done
