"""A clock that stands still until a test turns it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from busline.clock import Timer

TURNS = 20
"""Turns of the event loop in which everything that a callback set off is taken to have happened."""


class _Due:
    """A callback in the queue of a `VirtualClock`."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    @property
    def waits(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class VirtualClock:
    """A `busline.clock.Clock` whose time passes only in `advance`. `start` is in seconds since the epoch.

    It turns what asks this clock; `asyncio.sleep` and the loop's own timers keep the machine's time.
    """

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self._now = start
        self._due: list[tuple[float, int, _Due]] = []
        self._sequence = count()

    def time(self) -> float:
        """Now, in seconds since the epoch."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` in the `advance` that reaches `when`; in the loop's next turn if that has passed."""
        if when <= self._now:
            return asyncio.get_running_loop().call_soon(callback)
        due = _Due(callback)
        heappush(self._due, (when, next(self._sequence), due))
        return due

    @property
    def next_due(self) -> float | None:
        """The instant of the next callback; None if nothing asks for one."""
        while self._due and not self._due[0][2].waits:
            heappop(self._due)
        return self._due[0][0] if self._due else None

    def turn_to(self, instant: float) -> None:
        """Let it be `instant`, the next at which something is due or one before, and run what is due then. What that
        sets off has not happened when this returns."""
        self._now = max(self._now, instant)
        while self._due and self._due[0][0] <= self._now:
            heappop(self._due)[2].run()

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: what falls due runs in order, each at its own instant, and is settled before the next."""
        await self.advance_to(self._now + seconds)

    async def advance_to(self, target: float) -> None:
        """The same until the instant `target`; nothing happens if that has passed."""
        await _settle()
        while self._due and self._due[0][0] <= target:
            when, _, due = heappop(self._due)
            self._now = when
            due.run()
            await _settle()
        self._now = max(self._now, target)


async def _settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
