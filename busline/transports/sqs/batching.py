"""Requests of ten entries at most. A lone entry leaves in the same tick of the loop; what comes while requests are
on their way is gathered for a few milliseconds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 10
"""Entries of one request."""
GATHER = 0.003
"""Seconds for which entries are gathered while other requests are on their way."""


@dataclass(slots=True, eq=False)
class Item:
    """One entry, and what became of it."""

    entry: dict[str, Any]
    size: int
    done: asyncio.Future[None]

    def end(self, error: BaseException | None = None) -> None:
        """It has been carried out, or has failed; nobody may be waiting any more."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
            self.done.exception()  # Seen: whoever waited may have been cancelled meanwhile.


class Batcher:
    """Gathers entries for `send`, which ends each item. At most `most_at_once` requests at the same time."""

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[None]],
        *,
        name: str,
        most_bytes: int = 1_048_576,
        most_at_once: int = 8,
    ) -> None:
        self._send = send
        self._name = name
        self._most_bytes = most_bytes
        self._most_at_once = most_at_once
        self._waiting: deque[Item] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing waits, nothing is on its way."""
        return not self._waiting and not self._tasks

    def put(self, entry: dict[str, Any], size: int = 0) -> asyncio.Future[None]:
        """Add an entry; the future ends as it does."""
        loop = asyncio.get_running_loop()
        item = Item(entry, size, loop.create_future())
        self._waiting.append(item)
        if len(self._waiting) == MOST:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(GATHER, self._flush) if self._tasks else loop.call_soon(self._flush)
        return item.done

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._tasks) < self._most_at_once:
            task = asyncio.create_task(self._run(self._next()), name=f"busline sqs {self._name}")
            self._tasks.add(task)

    def _next(self) -> list[Item]:
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while self._waiting and len(batch) < MOST and size + self._waiting[0].size <= self._most_bytes:
            size += self._waiting[0].size
            batch.append(self._waiting.popleft())
        return batch

    async def _run(self, batch: Sequence[Item]) -> None:
        task = asyncio.current_task()
        try:
            await self._send(batch)
        except Exception as error:  # whatever it is, it belongs to those who wait for it
            for item in batch:
                item.end(error)
        except asyncio.CancelledError:
            for item in batch:
                item.done.cancel()
            raise
        finally:
            if task is not None:
                self._tasks.discard(task)
            if self._waiting and self._timer is None:
                self._flush()

    async def drain(self, timeout: float) -> None:
        """Let everything leave, within `timeout` seconds; then nothing runs any more."""
        end = asyncio.get_running_loop().time() + timeout
        while not self.is_idle and (left := end - asyncio.get_running_loop().time()) > 0:
            self._flush()
            await asyncio.wait(self._tasks, timeout=left)
        await self.stop()

    async def stop(self) -> None:
        """Drop what waits, end what is on its way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for item in self._waiting:
            item.done.cancel()
        self._waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
