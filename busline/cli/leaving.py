"""How a worker process ends, whatever state it is in.

asked once          drain: stop fetching, finish what runs, leave
asked twice         abort: cancel what runs, give its messages back, leave
asked three times   end at once; the broker sees a dead process and gives its messages to others
it doesn't leave    a thread ends the process: the event loop may be blocked, or a plain function may never return
a handler is stuck  abort, and end soon: what can be given back is, and the rest comes back as a dead process's
the loop is blocked the same thread ends the process before its leases do
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from busline.cli.exits import Exit
from busline.cli.watchdog import Watchdog, end
from busline.options import CANCEL_TIMEOUT
from busline.telemetry import log

if TYPE_CHECKING:
    from busline.worker import Worker

MARGIN = 2.0
"""Seconds beyond what draining may take, for closing the transport."""
ABORT_PATIENCE = 3.0
"""Seconds that an aborted worker has to leave by itself."""
LAST_PATIENCE = 1.0
"""Seconds that threads which still run have once the worker has left."""
STUCK_PATIENCE = 2.0
"""Seconds for giving back what others than a stuck handler work on."""
LONGEST_BLOCK = 5.0
"""Seconds after which a loop counts as blocked, unless its leases are shorter than twice that."""


def default_block_timeout(shortest_lease: float | None) -> float:
    """Seconds after which a loop counts as blocked: early enough for its process to end before its leases do."""
    return LONGEST_BLOCK if shortest_lease is None else min(LONGEST_BLOCK, shortest_lease / 2)


def patience(drain_timeout: float) -> float:
    """Seconds in which a worker that was asked once has left by itself, unless it is stuck."""
    return drain_timeout + CANCEL_TIMEOUT + MARGIN


class Leaving:
    """Takes requests to leave, from signals and from the parent's death, and passes them on to the worker."""

    def __init__(self, drain_timeout: float, block_timeout: float | None = None) -> None:
        self._patience = patience(drain_timeout)
        self._block_timeout = block_timeout
        self._watchdog = Watchdog()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Task[object] | None = None
        self._worker: Worker | None = None
        self.requests = 0
        """How often it was asked."""
        self._stuck = False
        self._retiring = False

    @property
    def code(self) -> Exit:
        """With what a worker ends that has left in good order."""
        if self._stuck:
            return Exit.STUCK
        if self._retiring and not self.requests:
            return Exit.RECYCLED
        return Exit.OK if self.requests < 2 else Exit.ABORTED

    def watch(self, lifeline: int | None) -> None:
        """Begin, before anything that takes time. `lifeline` is a stream that ends when the parent process does."""
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
        """The worker is entered: a request now drains it, and its loop has to turn."""
        self._worker = worker
        limit = self._block_timeout
        if limit is None:
            limit = default_block_timeout(worker.shortest_lease)
        if limit > 0:
            self._watchdog.guard(limit)
        if self._retiring:
            worker.retire()

    def retire(self, why: str) -> None:
        """The process has done its share: finish what runs, however long that takes, and leave."""
        self._retiring = True
        log.info("retiring after %s; what runs is finished", why, extra={"event": "retiring"})
        if self._worker is not None:
            self._worker.retire()

    def stuck(self, what: str) -> None:
        """A handler cannot be ended, as `what` says: give back what the others work on, and end."""
        if self._stuck:
            return
        self._stuck = True
        log.critical("%s, so this process ends", what, extra={"event": "stuck"})
        self._watchdog.end_within(STUCK_PATIENCE, Exit.STUCK)
        if self._worker is not None:
            self._worker.abort()

    def left(self, code: Exit) -> Exit:
        """The worker has left: from here on the process ends soon, with `code`, whatever its threads still do."""
        code = Exit.STUCK if self._stuck else code
        self._watchdog.unguard()
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
        try:
            while os.read(lifeline, 1):  # until the last process that could write to it is gone
                continue
        except OSError:  # it is gone, too, and had not read all our news: the kernel calls that a reset
            pass
        self.request()
