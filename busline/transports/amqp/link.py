"""One connection, kept alive: desired state above, generations of sessions below.

A session is one connection with its channels. It breaks as a whole: when the connection ends, or when one of its
lasting channels does, because the client library lets most channel errors end the connection anyway. Then everything
that lives on the link is told, and the supervisor makes the next session.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import aio_pika
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.channel import Channel

from busline.errors import ConnectionLost, TransportClosed
from busline.transports.amqp.errands import Errands
from busline.transports.amqp.faults import LIBRARY, refusal, translate, was_cancelled
from busline.transports.amqp.silence import silence
from busline.transports.amqp.url import Settings
from busline.transports.amqp.wire import Lane, Socket, Turn

BACK_OFF = (0.1, 3.0)
"""First and longest pause between two attempts to connect, seconds."""
PATIENCE = 3.0
"""Seconds for which an operation waits for a connection that has ended; a longer outage is told."""
CLOSE_TIMEOUT = 2.0
"""Seconds for the closing handshake; then the socket is cut."""


class Resident(Protocol):
    """What lives on a link and is set up anew in each session, in the order in which it moved in."""

    async def up(self, session: Session) -> None:
        """A new session. What it raises ends the session again, and is seen in `health()`."""

    def down(self) -> None:
        """The session is gone. Plain and quick."""


class Session:
    """One generation of a link."""

    def __init__(self, generation: int, settings: Settings, turn: Turn, sends: bool) -> None:
        self.generation = generation
        self.blocked: str | None = None
        """Why the broker takes no messages from this connection now: an alarm."""
        self._settings = settings
        self._socket = Socket(settings.tls, turn, sends, self._on_blocked)
        self._connection: aio_pika.Connection | None = None
        self._errands = Errands(settings.where)
        self._lasting: set[Channel] = set()
        """Channels whose end is the session's."""
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self.broken: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def connect(self, context: ssl.SSLContext | None, name: str) -> None:
        """Raises what the library raises."""
        connection = aio_pika.Connection(self._settings.wire_url(name), ssl_context=context)
        connection.kwargs["transport_factory"] = self._socket
        try:
            with silence():
                await connection.connect()
        finally:
            # The class closes itself when collected, in a task that nobody would know of.
            if connection.transport is None and not connection.is_closed:
                connection._closed.set_result(True)
        self._connection = connection
        if (stream := self._socket.stream) is not None:
            stream.frame_max = self.wire.connection_tune.frame_max or stream.frame_max
        self.wire.closing.add_done_callback(self._on_closing)
        _name_tasks()

    @property
    def wire(self) -> AbstractConnection:
        """The library's connection."""
        assert self._connection is not None
        assert self._connection.transport is not None
        return self._connection.transport.connection

    @property
    def farewell(self) -> str:
        """Why the broker closed the connection; "" if it did not."""
        return self._socket.farewell

    @property
    def version(self) -> tuple[int, ...]:
        """The broker's."""
        properties = getattr(self.wire, "server_properties", None) or {}
        return tuple(int(part) for part in str(properties.get("version", "0")).split(".")[:2] if part.isdigit())

    async def channel(self, *, confirms: bool = False, lasting: bool = True) -> Channel:
        """A new one. If it is `lasting`, its end is the session's."""
        channel = await self._errands.run(self._open_channel(confirms), self._close_channel)
        if lasting:
            self._lasting.add(channel)
            channel.closing.add_done_callback(partial(self._on_channel_closing, channel))
        return channel

    async def lane(self, *, confirms: bool = False, lasting: bool = True) -> Lane:
        """A new channel with the fast way past the library."""
        channel = await self.channel(confirms=confirms, lasting=lasting)
        assert self._socket.stream is not None
        return Lane(channel, self._socket.stream)

    async def give_up(self, channel: Channel) -> None:
        """Close a channel, and keep the session. What was delivered on it and not settled goes back."""
        self._lasting.discard(channel)
        if not self.broken.done() and not channel.is_closed:
            await self._errands.run(self._close_channel(channel))

    async def _close_channel(self, channel: Channel) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout):
                await channel.close()
        except LIBRARY as error:
            self.fail(error)

    @asynccontextmanager
    async def scratch(self, *, patient: bool = True) -> AsyncIterator[Channel]:
        """One for operations that the broker may answer by closing the channel.

        `patient`: return when it is closed, and so all that it was told without an answer has been done.
        """
        channel = await self.channel(lasting=False)
        try:
            yield channel
        finally:
            if patient:
                await self.give_up(channel)
            elif not self.broken.done() and not channel.is_closed:
                self._errands.start(self._close_channel(channel))

    async def _open_channel(self, confirms: bool) -> Channel:
        if self.broken.done():
            raise ConnectionLost(f"the connection to {self._settings.where} has ended")
        with silence():
            channel: AbstractChannel = await self.wire.channel(publisher_confirms=confirms, frame_buffer_size=100)
        _name_tasks()
        assert isinstance(channel, Channel)
        return channel

    async def unblocked(self) -> None:
        """Until the broker takes messages from this connection."""
        await self._unblocked.wait()

    def _on_blocked(self, why: str | None) -> None:
        self.blocked = why
        if why is None:
            self._unblocked.set()
        else:
            self._unblocked.clear()

    def _on_channel_closing(self, channel: Channel, closing: asyncio.Future[object]) -> None:
        if channel in self._lasting:
            self._lasting.discard(channel)
            self._on_closing(closing)

    def _on_closing(self, closing: asyncio.Future[object]) -> None:
        if not self.broken.done():
            cancelled = closing.cancelled()
            self.broken.set_result(None if cancelled else closing.exception())
            self._unblocked.set()

    def fail(self, error: BaseException | None) -> None:
        """It cannot be used any more."""
        if not self.broken.done():
            self.broken.set_result(error)

    def cut(self) -> None:
        """End the socket now, saying nothing."""
        self.fail(None)
        self._socket.cut()

    async def close(self) -> None:
        """End it, within a bounded time, whatever state the broker is in."""
        self.fail(None)
        await self._close_connection()
        await self._errands.end()

    async def _close_connection(self) -> None:
        if self._connection is None:
            self._socket.cut()
            return
        closing = asyncio.ensure_future(self._connection.close())
        closing.set_name("busline amqp close")
        await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
        if not closing.done():
            self._socket.cut()
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
        if not closing.done():
            closing.cancel()
            await asyncio.wait([closing])
        if not closing.cancelled():
            closing.exception()


class Link:
    """A connection for one purpose, `role`, with a supervisor. Of those that share a `turn`, that which `sends` writes
    first."""

    def __init__(self, settings: Settings, role: str, turn: Turn, *, sends: bool) -> None:
        self._settings = settings
        self._turn = turn
        self._sends = sends
        self._role = role
        self._residents: list[Resident] = []
        self._session: Session | None = None
        self._generation = 0
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._context: ssl.SSLContext | None = None
        self._closed = False
        self.since = time.time()
        self.fault = ""
        """Why there is no session now; "" while there is one."""

    @property
    def generation(self) -> int:
        """How many sessions there have been."""
        return self._generation

    @property
    def where(self) -> str:
        """For error texts."""
        return self._settings.where

    def current(self) -> Session | None:
        """The session, if there is one now."""
        return self._session

    async def open(self) -> None:
        """The first session; once. Raises ConfigurationError, ConnectionLost."""
        if self._task is not None:
            return
        self._context = self._settings.ssl_context()
        session = await self._begin()
        self._task = asyncio.create_task(self._supervise(session), name=f"busline amqp {self._role}")

    async def move_in(self, resident: Resident) -> None:
        """Set it up in the current session, and in each that follows."""
        session = await self.session()
        self._residents.append(resident)
        try:
            async with asyncio.timeout(self._settings.timeout):
                await resident.up(session)
        except BaseException as error:
            self.move_out(resident)
            if isinstance(error, LIBRARY) and not was_cancelled(error):
                raise translate(error, self.where) from error
            raise

    def move_out(self, resident: Resident) -> None:
        """Forget it."""
        if resident in self._residents:
            self._residents.remove(resident)

    async def session(self) -> Session:
        """The current one; waits a little for it, then raises ConnectionLost."""
        if self._session is not None:
            return self._session
        try:
            async with asyncio.timeout(min(PATIENCE, self._settings.timeout)):
                return await self._next_session()
        except TimeoutError:
            raise ConnectionLost(f"no connection to {self.where}: {self.fault}") from None

    async def _next_session(self) -> Session:
        while not self._closed:
            if (session := self._session) is not None:
                return session
            await self._up.wait()
        raise TransportClosed(f"the connection to {self.where} was closed")

    async def close(self) -> None:
        """End the session and its supervisor."""
        self._closed = True
        self._up.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._session is not None:
            await self._end(self._session)

    # -- the supervisor -----------------------------------------------------------------------------------------

    async def _supervise(self, session: Session) -> None:
        while True:
            error = await asyncio.shield(session.broken)
            self.fault = session.farewell or (str(translate(error, self.where)) if error else "the connection ended")
            await self._end(session)
            session = await self._next()

    async def _next(self) -> Session:
        pause, longest = BACK_OFF
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)
            try:
                return await self._begin()
            except Exception as error:  # whatever it is, giving up would leave everybody waiting
                self.fault = str(translate(error, self.where))

    async def _begin(self) -> Session:
        session = Session(self._generation + 1, self._settings, self._turn, self._sends)
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                await session.connect(self._context, f"busline {self._role}")
        except BaseException as error:
            await session.close()
            if isinstance(error, LIBRARY) and not was_cancelled(error):
                raise refusal(error, self.where, self._settings.user, session.farewell) from error
            raise
        try:
            await self._furnish(session)
        except BaseException:
            await session.close()
            for resident in self._residents:
                resident.down()
            raise
        self._generation = session.generation
        self._session, self.fault, self.since = session, "", time.time()
        self._up.set()
        return session

    async def _furnish(self, session: Session) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout):
                for resident in list(self._residents):
                    await resident.up(session)
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            raise translate(error, self.where) from error

    async def _end(self, session: Session) -> None:
        if self._session is session:
            self._session, self.since = None, time.time()
            if not self._closed:
                self._up.clear()
            for resident in list(self._residents):
                resident.down()
        await session.close()


def _name_tasks() -> None:
    """The library starts tasks without names; they end with their connection."""
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        if task.get_name().startswith("Task-") and getattr(coroutine, "__qualname__", "").startswith(_OF_THE_LIBRARY):
            task.set_name(f"busline amqp {coroutine.__qualname__.rpartition('.')[2].strip('_')}")  # type: ignore[union-attr]  # it has one


_OF_THE_LIBRARY = ("Connection.", "Channel.", "OneShotCallback")
