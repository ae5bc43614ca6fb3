"""Who waits for which job, and the one connection that hears of changes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from busline.stores.redis.link import Link, farewell


class Ears:
    """Listens from the first time that somebody waits. If the connection ends, all who wait are woken to look."""

    def __init__(self, link: Link, channel: str, timeout: float) -> None:
        self._link = link
        self._channel = channel
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    async def listen(self) -> None:
        """Hear, from now on. Raises StoreUnavailable."""
        if self._task is None or self._task.done():
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._ready), name="busline-store-ears")
        assert self._ready is not None
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wait([self._ready])
        except TimeoutError as error:
            self._task.cancel()
            raise self._link.unavailable(error) from error
        if problem := self._ready.exception():
            raise self._link.unavailable(problem) from problem

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
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._ring_all()

    async def _run(self, ready: asyncio.Future[None]) -> None:
        client = self._link.make_client(socket_timeout=None)
        pubsub = client.pubsub()
        try:
            await pubsub.subscribe(self._channel)
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is not None:
                    self._heard(message, ready)
        except Exception as error:  # whoever waits for `ready` or for a job looks for himself, and is told
            _refuse(ready, error)
        finally:
            _refuse(ready, TimeoutError())
            self._ring_all()
            with contextlib.suppress(Exception):  # it is of no use any more, whatever it says
                await pubsub.aclose()
            await farewell(client)

    def _heard(self, message: dict[str, Any], ready: asyncio.Future[None]) -> None:
        if message["type"] == "subscribe" and not ready.done():
            ready.set_result(None)
        elif message["type"] == "message":
            _ring(self._waiting.pop(message["data"].decode(errors="replace"), set()))

    def _ring_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for futures in waiting.values():
            _ring(futures)


def _refuse(ready: asyncio.Future[None], error: Exception) -> None:
    if not ready.done():
        ready.set_exception(error)
        ready.exception()  # seen, also if nobody waits for it


def _ring(futures: set[asyncio.Future[None]]) -> None:
    for future in futures:
        with contextlib.suppress(asyncio.InvalidStateError):  # it has been rung already
            future.set_result(None)
