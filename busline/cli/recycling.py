"""When a worker process has done its share and another one should take its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from busline.process import resident_memory

MEMORY_PERIOD = 1.0
"""Seconds between two looks at the memory of a process that takes no messages."""
SHORTEST_MEMORY_PERIOD = 0.05
"""Seconds between two looks at it while messages are taken."""
MEGABYTE = 1_000_000


class Recycling:
    """Calls `retire`, once, with the reason: so many messages were taken, or so much memory is in use."""

    def __init__(self, messages: int | None, megabytes: int | None, retire: Callable[[str], None]) -> None:
        self._messages = messages
        self._megabytes = megabytes
        self._retire = retire
        self._taken = 0
        self._look_at = 0.0
        self._done = False

    def on_message(self) -> None:
        """A message was taken."""
        self._taken += 1
        if self._messages is not None and self._taken >= self._messages:
            self._end(self._share)
        elif self._megabytes is not None and time.monotonic() >= self._look_at:
            self._look()

    async def run(self) -> None:
        """Look at the memory from time to time, until cancelled."""
        while self._megabytes is not None:
            await asyncio.sleep(MEMORY_PERIOD)
            if self._taken:  # what its imports alone take, another process would take as well
                self._look()

    def _look(self) -> None:
        self._look_at = time.monotonic() + SHORTEST_MEMORY_PERIOD
        used = resident_memory() / MEGABYTE
        if self._megabytes is not None and used > self._megabytes:
            self._end(f"{self._share}, with {used:.0f} MB in use")

    @property
    def _share(self) -> str:
        return f"{self._taken} message{'' if self._taken == 1 else 's'}"

    def _end(self, why: str) -> None:
        if not self._done:
            self._done = True
            self._retire(why)
