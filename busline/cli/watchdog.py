"""A thread that ends its process, when its time is up or when its event loop does not turn any more."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue

from busline.cli.exits import Exit
from busline.telemetry import log

PULSES = 8
"""Signs of life within the time after which a loop counts as blocked."""
STACK_LINES = 15
"""Innermost frames of the main thread that are logged."""
LAST_WORDS = 1.0
"""Seconds for saying why the process ends: whoever blocks the loop may hold the lock of the log."""


def end(code: Exit) -> None:
    """End the process here and now, without waiting for its threads."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


class Pulse:
    """For how long an event loop has not turned, asked from another thread.

    The time is counted in the steps in which it is asked, none longer than twice `pace`: a machine that slept, or a
    process that was stopped as a whole, was not blocked for that long.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        """Seconds after which the loop counts as blocked."""
        self.pace = limit / PULSES
        """Seconds between two beats, and between two questions."""
        self.beats = 0
        """Counted by the loop."""
        self._seen = 0
        self._asked_at = time.monotonic()
        self._silence = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Beat, from within the loop."""
        self.beats += 1
        self._timer = asyncio.get_running_loop().call_later(self.pace, self.begin)

    def end(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()

    def silence(self, now: float) -> float:
        """Seconds since the last beat, as far as they were watched; `now` is of the monotonic clock."""
        step, self._asked_at = now - self._asked_at, now
        if self._seen != self.beats:
            self._seen, self._silence = self.beats, 0.0
        else:
            self._silence += min(step, 2 * self.pace)
        return self._silence


class Watchdog:
    """The thread. It obeys orders even if nothing else in the process makes progress."""

    def __init__(self) -> None:
        # Signal handlers give orders, and SimpleQueue.put is the one hand-over that they may interrupt anywhere.
        self._orders: SimpleQueue[tuple[float, Exit]] = SimpleQueue()
        self._pulse: Pulse | None = None

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="busline watchdog", daemon=True).start()

    def end_within(self, seconds: float, code: Exit) -> None:
        """End the process with `code` unless it has ended by itself by then. The earliest order counts."""
        self._orders.put((time.monotonic() + seconds, code))

    def guard(self, limit: float) -> None:
        """From now on, end the process when the running event loop does not turn for `limit` seconds."""
        self._pulse = Pulse(limit)
        self._pulse.begin()
        self.end_within(inf, Exit.OK)  # no order, but it wakes the thread

    def unguard(self) -> None:
        """The loop is about to end, or may take its time."""
        if self._pulse is not None:
            self._pulse.end()
            self._pulse = None

    def _watch(self) -> None:
        ends_at, code = inf, Exit.OK
        while (now := time.monotonic()) < ends_at:
            pulse = self._pulse
            pause = min(pulse.pace if pulse is not None else inf, ends_at - now)
            try:
                order = self._orders.get(timeout=None if pause == inf else pause)
                ends_at, code = min((ends_at, code), order)
            except Empty:
                if pulse is not None and pulse.silence(time.monotonic()) >= pulse.limit and pulse is self._pulse:
                    _end_blocked(pulse)
        end(code)


def _end_blocked(pulse: Pulse) -> None:
    last_words = threading.Timer(LAST_WORDS, os._exit, (Exit.BLOCKED,))
    last_words.daemon = True
    last_words.start()
    log.critical(
        "the event loop has not turned for %.1f s, so this process ends; what blocks it:\n%s",
        *(pulse.limit, _stack_of_the_main_thread()),
        extra={"event": "blocked"},
    )
    end(Exit.BLOCKED)


def _stack_of_the_main_thread() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)[-STACK_LINES:]).rstrip()
