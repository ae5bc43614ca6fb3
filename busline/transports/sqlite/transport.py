"""The transport itself: checks what it is given, and hands it to its session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import parse_qsl, quote, unquote

from busline.errors import ConfigurationError, MessageTooLarge, QueueNotFound, TransportClosed
from busline.message import Destination, Health, Limits, Message, QueueSpec, QueueStats
from busline.transports.sqlite.connecting import connect
from busline.transports.sqlite.consumer import SqliteConsumer
from busline.transports.sqlite.declaring import PRIORITIES, check_options, declare, remove, verify
from busline.transports.sqlite.ledger import MAX_BATCH
from busline.transports.sqlite.session import Session

DEFAULT_LEASE = 10.0
"""Seconds. Only for a process that hangs: one that dies is noticed by its file lock."""
MAX_BYTES = 16 * 1024 * 1024


def from_url(url: str) -> SqliteTransport:
    """`sqlite:///relative.db` or `sqlite:////absolute.db`, with `?lease=` seconds. Raises ConfigurationError."""
    location, _, query = url.partition("?")
    _, _, path = location.partition("://")
    if not path.startswith("/") or len(path) < 2:
        raise ConfigurationError(f"{url!r} names no file; write sqlite:///busline.db or sqlite:////srv/app/busline.db")
    lease = DEFAULT_LEASE
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "lease":
            raise ConfigurationError(f"{url!r}: there is no option {name!r}; known is lease")
        lease = _seconds(url, value)
    return SqliteTransport(unquote(path[1:]), lease=lease)


def _seconds(url: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigurationError(f"{url!r}: lease is {value!r}, and must be a number of seconds above 0")
    return seconds


class SqliteTransport:
    """A client of the broker that is the file `path`; a message is leased for `lease` seconds at a time."""

    def __init__(self, path: str | os.PathLike[str], *, lease: float = DEFAULT_LEASE) -> None:
        self._path = os.path.abspath(path)
        self._lease = lease
        self._session: Session | None = None
        self._gate = asyncio.Lock()
        self._closed = False
        self._limits = Limits(
            max_delay=float("inf"),
            max_release_delay=float("inf"),
            lease=lease,
            max_lease=float("inf"),
            priorities=PRIORITIES,
            max_bytes=MAX_BYTES,
            max_batch=MAX_BATCH,
            counts_deliveries=True,
            counts_releases=False,
            fanout=True,
            ordered=True,
        )

    @property
    def where(self) -> str:
        return self._path

    @property
    def store_url(self) -> str:
        return f"sqlite:///{quote(self._path)}"

    @property
    def shared_clock(self) -> bool:
        return True

    async def open(self) -> None:
        async with self._gate:
            if self._session is None:
                session = Session(self._path, await connect(self._path), self._lease)
                try:
                    await session.start()
                except (OSError, sqlite3.Error) as error:
                    await session.aclose()
                    raise ConfigurationError(f"{self._path} cannot be used: {error}") from error
                except BaseException:
                    session.die()
                    raise
                self._session = session

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        session = self._opened()

        def attach() -> Limits:
            if queue.passive:
                verify(session.db, queue, self._path)
            elif create:
                declare(session.db, session.ledger, queue, self._path)
            bounds = session.ledger.names.bounds(session.ledger.names.queue(queue.name))
            highest = bounds.max_priority if bounds else None
            return self._limits if highest is None else replace(self._limits, priorities=highest)

        check_options(queue, self._path)
        return await session.engine.run(attach, durable=create and not queue.passive)

    async def detach(self, queue: str, *, delete: bool = False) -> None:
        session = self._opened()
        if not delete:
            return

        def find() -> int:
            row = session.db.execute("SELECT id FROM queue WHERE name = ?", (queue,)).fetchone()
            return row[0] if row else 0

        if number := await session.engine.run(find):
            with contextlib.suppress(QueueNotFound):  # somebody else was quicker
                await session.inspection.purge(queue)
            await session.engine.run(lambda: remove(session.db, session.ledger, number), durable=True)

    async def send(self, to: Destination, *messages: Message) -> None:
        session = self._opened()
        for message in messages:
            _check(message)
        done = 0
        while done < len(messages):
            done = await session.engine.run(session.ledger.send, to, messages, done, None, durable=True)

    async def publish(self, topic: str, *messages: Message) -> bool:
        session = self._opened()
        for message in messages:
            _check(message)
        if session.is_unheard(topic):
            return False
        done = 0
        while done < len(messages):
            stored = await session.engine.run(session.ledger.publish, topic, messages, done, durable=True)
            if not stored:
                break
            done = stored
        return done > 0

    async def consume(self, queue: str, *, slots: int, prefetch: int = 1) -> SqliteConsumer:
        return await self._opened().consume(queue, slots, prefetch)

    async def open_inbox(self, on_reply: Callable[[Message], None], on_lost: Callable[[], None]) -> SqliteInbox:
        return SqliteInbox(self._opened(), on_reply)

    async def reply(self, address: str, message: Message) -> bool:
        session = self._opened()
        _check(message)
        return await session.reply(address, message)

    def health(self) -> Health:
        if self._session is None:
            return Health("down" if self._closed else "unknown", detail="closed" if self._closed else "not opened")
        return self._session.engine.health()

    async def stats(self) -> Sequence[QueueStats]:
        return await self._opened().inspection.stats()

    async def peek(self, queue: str, limit: int) -> Sequence[Message]:
        return await self._opened().inspection.peek(queue, limit)

    async def purge(self, queue: str) -> int:
        return await self._opened().inspection.purge(queue)

    async def move(self, source: str, to: str, limit: int) -> int:
        return await self._opened().inspection.move(source, to, limit)

    async def aclose(self) -> None:
        async with self._gate:
            session, self._session = self._session, None
            self._closed = True
            if session is not None:
                await session.aclose()

    def _opened(self) -> Session:
        if self._session is None:
            raise TransportClosed(f"{self._path} is not open")
        return self._session

    def _die(self) -> None:
        """For tests: end as SIGKILL would."""
        session, self._session = self._session, None
        if session is not None:
            session.die()


class SqliteInbox:
    """See `Inbox`. Replies come straight from the process that replies, over its stream to us."""

    def __init__(self, session: Session, on_reply: Callable[[Message], None]) -> None:
        self._session = session
        self._number, self._address = session.add_inbox(on_reply)
        self._closed = False

    @property
    def address(self) -> str:
        return self._address

    async def send(self, to: Destination, message: Message) -> None:
        if self._closed:
            raise TransportClosed(f"the inbox {self._address} is closed")
        _check(message)
        await self._session.engine.run(self._session.ledger.send, to, (message,), 0, self._address)

    async def aclose(self) -> None:
        self._closed = True
        self._session.remove_inbox(self._number)


def _check(message: Message) -> None:
    meta = message.meta
    size = len(message.body) + (len(meta) if meta.isascii() else len(meta.encode(errors="surrogatepass")))
    if size > MAX_BYTES:
        raise MessageTooLarge(size, MAX_BYTES)
    if not 0 <= message.priority <= PRIORITIES:
        raise ConfigurationError(f"priority {message.priority} of {message.topic!r} is not in 0 to {PRIORITIES}")
