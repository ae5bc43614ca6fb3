"""Who waits for which job, and the one connection that hears of changes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from busline.stores.postgres.faults import FAULTS
from busline.stores.postgres.link import Link
from busline.stores.postgres.sql import CHANNEL, unescape

_FAREWELL = 2.0


class Ears:
    """Listens from the first time that somebody waits. If the connection ends, all who wait are woken to look."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._connection: Any = None
        self._gate = asyncio.Lock()
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    async def listen(self) -> None:
        """Hear, from now on. Raises StoreUnavailable."""
        async with self._gate:
            if self._connection is not None and not self._connection.is_closed():
                return
            connection = await self._link.connect()
            try:
                await self._link.bounded(connection.add_listener(CHANNEL, self._heard))
            except BaseException:
                connection.terminate()
                raise
            connection.add_termination_listener(self._lost)
            self._connection = connection

    def wait(self, id: str) -> asyncio.Future[None]:
        """Done when something was said of the job. To be given to `forget` afterwards."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, set()).add(future)
        return future

    def forget(self, id: str, future: asyncio.Future[None]) -> None:
        """Nobody waits for it any more."""
        futures = self._waiting.get(id, set())
        futures.discard(future)
        if not futures:
            self._waiting.pop(id, None)

    async def aclose(self) -> None:
        """Hear nothing any more; wake whoever waits."""
        connection, self._connection = self._connection, None
        self._lost(None)
        if connection is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL):
                await connection.close()
        except FAULTS:
            connection.terminate()  # the server does not answer, and need not

    def _heard(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        _ring(self._waiting.pop(unescape(str(payload)), ()))

    def _lost(self, connection: Any) -> None:
        waiting, self._waiting = self._waiting, {}
        for futures in waiting.values():
            _ring(futures)


def _ring(futures: set[asyncio.Future[None]] | tuple[()]) -> None:
    for future in futures:
        with contextlib.suppress(asyncio.InvalidStateError):  # it has been rung already
            future.set_result(None)
