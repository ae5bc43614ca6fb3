"""How a worker process ends, whatever state it is in.

asked once          drain: stop fetching, finish what runs, leave
asked twice         abort: cancel what runs, give its messages back, leave
asked three times   end at once; the broker sees a dead process and gives its messages to others
it doesn't leave    a thread ends the process: the event loop may be blocked, or a plain function may never return
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType

from busline.cli.exits import Exit
from busline.telemetry import log
from busline.worker import CANCEL_TIMEOUT, Worker

MARGIN = 2.0
"""Seconds beyond what draining may take, for closing the transport."""
ABORT_PATIENCE = 3.0
"""Seconds that an aborted worker has to leave by itself."""
LAST_PATIENCE = 1.0
"""Seconds that threads which still run have once the worker has left."""


def patience(drain_timeout: float) -> float:
    """Seconds in which a worker that was asked once has left by itself, unless it is stuck."""
    return drain_timeout + CANCEL_TIMEOUT + MARGIN


class Watchdog:
    """A thread that ends the process when its time is up, even if nothing else in it makes progress."""

    def __init__(self) -> None:
        # Signal handlers give orders, and SimpleQueue.put is the one hand-over that they may interrupt anywhere.
        self._orders: SimpleQueue[tuple[float, Exit]] = SimpleQueue()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="busline watchdog", daemon=True).start()

    def end_within(self, seconds: float, code: Exit) -> None:
        """End the process with `code` unless it has ended by itself by then. The earliest order counts."""
        self._orders.put((time.monotonic() + seconds, code))

    def _watch(self) -> None:
        ends_at, code = self._orders.get()
        with suppress(Empty):
            while True:
                order = self._orders.get(timeout=max(0.0, ends_at - time.monotonic()))
                ends_at, code = min((ends_at, code), order)
        end(code)


def end(code: Exit) -> None:
    """End the process here and now, without waiting for its threads."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


class Leaving:
    """Takes requests to leave, from signals and from the parent's death, and passes them on to the worker."""

    def __init__(self, drain_timeout: float) -> None:
        self._patience = patience(drain_timeout)
        self._watchdog = Watchdog()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Task[object] | None = None
        self._worker: Worker | None = None
        self.requests = 0
        """How often it was asked."""

    def watch(self, lifeline: int | None) -> None:
        """Begin, before anything that takes time. `lifeline` is a pipe that ends when the parent process does."""
        self._watchdog.start()
        if lifeline is not None:
            os.set_inheritable(lifeline, False)
            threading.Thread(target=self._hold, args=(lifeline,), name="busline lifeline", daemon=True).start()

    def connecting(self) -> None:
        """From the task that is about to enter the worker: a request now cancels it."""
        self._loop = asyncio.get_running_loop()
        self._connecting = asyncio.current_task()
        # Not loop.add_signal_handler: that one is never called while a handler blocks the loop.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def serving(self, worker: Worker) -> None:
        """The worker is entered: a request now drains it."""
        self._worker = worker

    def left(self, code: Exit) -> Exit:
        """The worker has left: from here on the process ends soon, with `code`, whatever its threads still do."""
        self._watchdog.end_within(LAST_PATIENCE, code)
        return code

    def request(self) -> None:
        """Leave; each further request presses harder. Safe in signal handlers and in any thread."""
        self.requests += 1
        if self._loop is None or self.requests > 2:
            end(Exit.OK if self._loop is None else Exit.ABORTED)
            return
        self._watchdog.end_within(self._patience if self.requests == 1 else ABORT_PATIENCE, Exit.ABORTED)
        with suppress(RuntimeError):  # the loop is closed: the process is ending anyway
            self._loop.call_soon_threadsafe(self._pass_on, self.requests)

    def _pass_on(self, requests: int) -> None:
        worker = self._worker
        if worker is None:
            if self._connecting is not None:
                self._connecting.cancel()
        elif requests == 1:
            log.info(
                "stopping: %d messages are being handled; a second signal stops at once",
                worker.running,
                extra={"event": "draining", "running": worker.running},
            )
            worker.stop()
        else:
            log.warning(
                "stopping at once: %d messages are given back",
                worker.running,
                extra={"event": "aborting", "running": worker.running},
            )
            worker.abort()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request()

    def _hold(self, lifeline: int) -> None:
        while os.read(lifeline, 1):  # until the last process that could write to it is gone
            continue
        self.request()
