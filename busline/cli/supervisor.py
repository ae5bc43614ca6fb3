"""The parent of several worker processes: starts them, replaces the dead, passes signals on, leaves none behind.

The parent holds the writing end of a pipe, the lifeline, and nothing else of the bus. Each child holds the reading
end: when the parent dies, in whatever way, the pipe ends and the children leave. Children are in sessions of their
own, so that a terminal's Ctrl-C reaches the parent only and each child is told once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from busline.cli.exits import Exit
from busline.cli.leaving import ABORT_PATIENCE
from busline.telemetry import log

FATAL = frozenset({Exit.USAGE, Exit.NO_APP, Exit.CONFIGURATION, Exit.NO_HANDLER})
"""Codes with which every further child would end, too."""
KILL_MARGIN = 2.0
"""Seconds that children which end themselves have beyond their own time, before they are killed."""


class BackOff:
    """Pauses between a child's death and its replacement, seconds: doubling, and short again after a long life."""

    FIRST, LONGEST, LONG_LIFE = 0.1, 10.0, 10.0

    def __init__(self) -> None:
        self._next = self.FIRST

    def after(self, lived: float) -> float:
        """The pause after a child that has lived `lived` seconds."""
        pause = self.FIRST if lived >= self.LONG_LIFE else self._next
        self._next = min(pause * 2, self.LONGEST)
        return pause


class Supervisor:
    """Keeps `processes` children running. `command` makes their command line, given the lifeline's descriptor.

    `patience` is how many seconds a child has to leave when told to. Run once.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], *, processes: int, patience: float) -> None:
        self._command = command
        self._processes = processes
        self._patience = patience
        self._children: set[int] = set()
        self._signals = 0
        self._stop = asyncio.Event()
        self._last_codes: list[int] = []
        self._fatal: Exit | None = None

    async def run(self) -> Exit:
        """Until told to stop by SIGTERM or SIGINT, or until a child says that none can ever start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        reading, writing = os.pipe()
        try:
            async with asyncio.TaskGroup() as group:
                for child in range(self._processes):
                    group.create_task(self._keep(reading), name=f"busline process {child}")
        finally:
            os.close(writing)
            os.close(reading)
        return self._verdict()

    async def _keep(self, lifeline: int) -> None:
        """One child after the other."""
        back_off = BackOff()
        while not self._stop.is_set():
            started_at = time.monotonic()
            pid, code = await self._live(lifeline)
            if self._stop.is_set():
                self._last_codes.append(code)
            elif code in FATAL:
                self._give_up(Exit(code))
            else:
                pause = back_off.after(time.monotonic() - started_at)
                _report(pid, code, pause)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), pause)

    async def _live(self, lifeline: int) -> tuple[int, int]:
        """One child's life; returns its process id and its exit code, negative for a signal."""
        child = await asyncio.create_subprocess_exec(
            *self._command(lifeline), stdin=asyncio.subprocess.DEVNULL, pass_fds=(lifeline,), start_new_session=True
        )
        self._children.add(child.pid)
        try:
            if self._stop.is_set():  # told so while the child was being made
                _kill(child.pid, signal.SIGTERM)
            return child.pid, await child.wait()
        finally:
            self._children.discard(child.pid)

    def _on_signal(self) -> None:
        self._signals += 1
        log.info(
            "stopping %d processes%s",
            *(len(self._children), "" if self._signals == 1 else " at once"),
            extra={"event": "stopping", "processes": len(self._children)},
        )
        self._tell_all(self._patience if self._signals == 1 else ABORT_PATIENCE)

    def _tell_all(self, patience: float) -> None:
        self._stop.set()
        self._signal_all(signal.SIGTERM)
        asyncio.get_running_loop().call_later(patience + KILL_MARGIN, self._signal_all, signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            _kill(pid, number)

    def _give_up(self, code: Exit) -> None:
        """A child has said what is wrong; another one would say the same."""
        self._fatal = code
        self._tell_all(self._patience)

    def _verdict(self) -> Exit:
        if self._fatal is not None:
            return self._fatal
        # A child that was told to stop before it had begun dies of the signal: nothing was lost by that.
        codes = set(self._last_codes) - {Exit.OK, -signal.SIGTERM}
        if codes & {Exit.ABORTED, -signal.SIGKILL}:
            return Exit.ABORTED
        return Exit.FAILED if codes else Exit.OK


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _report(pid: int, code: int, pause: float) -> None:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log.warning(
        "worker process %d %s; another one starts in %.1f s",
        *(pid, how, pause),
        extra={"event": "process_died", "child": pid, "exit_code": code},
    )
