"""Work that comes to its end, although whoever asked for it may be cancelled at any moment.

The client library closes a channel when a method on it is cancelled: with the channel go the messages that others hold
on it, and a lock that was just being taken stays taken. So whatever needs more than one frame is run in a task of ours;
a caller that is cancelled goes, and the task goes on to its end, which is bounded in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from busline.errors import ConnectionLost
from busline.transports.amqp.faults import was_cancelled
from busline.transports.amqp.silence import silence

T = TypeVar("T")

END_TIMEOUT = 2.0
"""Seconds that errands have to end when what they belong to is closed; then they are cancelled."""


class Errands:
    """Those of one connection, consumer or transport. `where` is for error texts."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(
        self, work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, None]] | None = None
    ) -> T:
        """Its result. If the caller is cancelled, the work goes on, and then `undo` is called with its result."""
        return await self.wait(self.start(work), undo)

    async def wait(self, task: asyncio.Task[T], undo: Callable[[T], Coroutine[Any, Any, None]] | None = None) -> T:
        """As `run`, for one that was started."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if was_cancelled(error):
                if undo is not None:
                    self.start(_undone(task, undo))
                raise
            raise ConnectionLost(f"the connection to {self._where} has ended") from None

    async def end(self, timeout: float = END_TIMEOUT) -> None:
        """Returns when none is left."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Nobody need wait for it."""
        with silence():
            task = asyncio.create_task(work, name="busline amqp errand")
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: its caller may have gone, and then there is nobody to tell


async def _undone(task: asyncio.Task[T], undo: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        await undo(task.result())
