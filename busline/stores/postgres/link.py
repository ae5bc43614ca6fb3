"""The way to the server: connections that are used within a time limit, and thrown away where anything went wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg

from busline.errors import StoreUnavailable
from busline.stores.postgres.faults import CONFUSED, FAULTS, LOST, unavailable
from busline.stores.postgres.url import Settings

T = TypeVar("T")

_FAREWELL = 2.0
"""Seconds for saying goodbye to the server when closing."""


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg comes without types
    """Whose state nobody changes between two uses, so that nothing need be reset, which takes a round trip."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        return ""


class Link:
    """Two pools: the store's own operations never wait for handlers that hold a transaction open."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own: Any = None
        self._lent: Any = None

    async def open(self) -> None:
        """Connect. Raises what asyncpg raises."""
        common = {"dsn": self._settings.dsn, "min_size": 0, "max_size": self._settings.pool}
        # So that what we have given up does not happen later all the same, when a lock comes free, say.
        limit = {"statement_timeout": str(max(1, int(self._settings.timeout * 900)))}
        self._own = asyncpg.create_pool(**common, connection_class=_Connection, server_settings=limit)
        self._lent = asyncpg.create_pool(**common)
        for pool in (self._own, self._lent):
            await pool

    async def aclose(self) -> None:
        """End all connections, whatever their users are doing."""
        pools, self._own, self._lent = (self._own, self._lent), None, None
        for pool in pools:
            if pool is None:
                continue
            try:
                async with asyncio.timeout(_FAREWELL):
                    await pool.close()
            except FAULTS:
                pool.terminate()  # the server does not answer, and need not
            except BaseException:
                pool.terminate()
                raise

    async def read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """What `work` makes of a connection. Begun anew on another one, once, if the first one had ended: a server that
        was restarted has closed all that were kept. Raises StoreUnavailable."""
        return await self._within(self._repeat(work))

    async def write(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """The same, once: nobody knows what became of a write whose answer is missing."""
        return await self._within(self._once(work))

    async def prepare(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """The same without a time limit, and with asyncpg's own errors."""
        return await self._once(work)

    async def bounded(self, work: Awaitable[T]) -> T:
        """Its result within the time limit. Raises StoreUnavailable."""
        return await self._within(work)

    async def _repeat(self, work: Callable[[Any], Awaitable[T]]) -> T:
        try:
            return await self._once(work)
        except LOST:
            return await self._once(work)

    async def _once(self, work: Callable[[Any], Awaitable[T]]) -> T:
        async with self._borrowed(self._opened(self._own)) as connection:
            return await work(connection)

    async def _within(self, work: Awaitable[T]) -> T:
        timeout = self._settings.timeout
        try:
            async with asyncio.timeout(timeout):
                return await work
        except FAULTS as error:
            raise unavailable(error, self._settings.where, timeout) from error

    @asynccontextmanager
    async def _borrowed(self, pool: Any) -> AsyncIterator[Any]:
        connection = await pool.acquire()
        try:
            yield connection
        except BaseException as error:
            if isinstance(error, LOST):
                await pool.expire_connections()  # its brothers have ended with it
            if isinstance(error, (asyncio.CancelledError, *CONFUSED)):
                drop(connection)  # what it is doing, or waits for, is no longer known
            raise
        finally:
            await pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection inside a transaction. Faults of what is done with it come out as they are."""
        pool = self._opened(self._lent)
        connection, transaction = await self._within(self._begin(pool))
        try:
            try:
                yield connection
            except BaseException:
                await self._undo(connection, transaction)
                raise
            await self._within(transaction.commit())
        finally:
            if not ended(connection) and connection.is_in_transaction():
                drop(connection)  # the commit was cut short: nobody knows what the server does
            with contextlib.suppress(*FAULTS):  # then it is not used again
                await pool.release(connection, timeout=_FAREWELL)

    async def _begin(self, pool: Any) -> tuple[Any, Any]:
        try:
            return await self._begin_once(pool)
        except LOST:
            await pool.expire_connections()
            return await self._begin_once(pool)

    async def _begin_once(self, pool: Any) -> tuple[Any, Any]:
        connection = await pool.acquire()
        try:
            transaction = connection.transaction()
            await transaction.start()
        except BaseException:
            drop(connection)
            await pool.release(connection)
            raise
        return connection, transaction

    async def _undo(self, connection: Any, transaction: Any) -> None:
        try:
            async with asyncio.timeout(_FAREWELL):
                await transaction.rollback()
        except FAULTS:
            drop(connection)  # the server rolls back when the connection has gone

    async def connect(self) -> Any:
        """A connection of one's own. Raises StoreUnavailable."""
        return await self._within(asyncpg.connect(self._settings.dsn))

    def _opened(self, pool: Any) -> Any:
        if pool is None:
            raise StoreUnavailable(f"the store {self._settings.where} is not open")
        return pool


def ended(connection: Any) -> bool:
    """Has it ended, as far as we have heard?"""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # its pool has forgotten it
        return True


def drop(connection: Any) -> None:
    """End it without saying goodbye."""
    with contextlib.suppress(asyncpg.InterfaceError):  # it has ended already
        connection.terminate()
