"""Where engines and in-process transports take the time from, so that a test can turn it."""

# A method of a Protocol is its docstring; pyright would have it return something all the same.
# pyright: reportReturnType=false
from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Timer(Protocol):
    """A callback that is due at some instant and can be called off."""

    def cancel(self) -> None:
        """Call it off; calling off what has run is harmless."""


class Clock(Protocol):
    """Wall-clock seconds since the epoch, and callbacks at such instants."""

    def time(self) -> float:
        """Now, in seconds since the epoch."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` in the event loop at `when`, or very soon if that has passed."""


async def sleep(clock: Clock, seconds: float) -> None:
    """Let `seconds` of this clock pass."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_at(clock.time() + seconds, partial(_end, over))
    try:
        await over
    finally:
        timer.cancel()


def _end(sleep: asyncio.Future[None]) -> None:
    if not sleep.done():
        sleep.set_result(None)


class SystemClock:
    """The machine's clock and the running event loop's timers."""

    time = staticmethod(time.time)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, when - time.time()), callback)
