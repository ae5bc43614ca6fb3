"""The parent of worker processes: starts them, replaces the dead, passes signals on, leaves none behind.

Between the parent and each child is a stream, the lifeline: when the parent dies, in whatever way, it ends and the
child leaves; on it the child tells that it is ready, or that it retires. Children are in sessions of their own, so
that a terminal's Ctrl-C reaches the parent only and each child is told once. The parent may have such a stream itself,
to whoever started it.

The first child starts alone and shows what is served, or what is wrong; the others follow when it is ready. Until then
a child that ends by itself ends the command with its own exit code: what has never worked is not repeated.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from contextlib import suppress

from busline.cli.board import Board
from busline.cli.exits import Exit
from busline.cli.leaving import ABORT_PATIENCE
from busline.cli.lifeline import LONGEST_NEWS, READY, RETIRING
from busline.cli.reloading import Changes
from busline.telemetry import log

FATAL = frozenset({Exit.USAGE, Exit.NO_APP, Exit.CONFIGURATION, Exit.NO_HANDLER})
"""Codes with which every further child would end, too."""
KILL_MARGIN = 2.0
"""Seconds that children which end themselves have beyond their own time, before they are killed."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAST_NEWS = 1.0
"""Seconds for reading what a child said before it ended."""


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


class Child:
    """One worker process, and what it tells."""

    def __init__(self, process: Process, lifeline: socket.socket) -> None:
        self._process = process
        self._lifeline = lifeline
        self._started_at = time.monotonic()
        self.pid = process.pid
        self.retiring = False
        """It has said that it takes no further message."""
        self.outdated = False
        """It was told to end because the app's files have changed."""
        self.replaceable = asyncio.Event()
        """It has ended, or retires."""
        self.ended = asyncio.Event()
        self.code: int | None = None
        """Its exit code, negative for a signal; None while it lives."""

    @property
    def lived(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_at

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has just ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def live(self, on_ready: Callable[[], None], board: Board | None) -> int:
        """Listen to it until it has ended; returns its exit code."""
        listening = asyncio.create_task(self._listen(on_ready, board), name=f"busline lifeline {self.pid}")
        try:
            self.code = await self._process.wait()
            await asyncio.wait([listening], timeout=LAST_NEWS)
            return self.code
        finally:
            listening.cancel()
            await asyncio.wait([listening])
            self._lifeline.close()
            self.ended.set()
            self.replaceable.set()

    async def _listen(self, on_ready: Callable[[], None], board: Board | None) -> None:
        reader, writer = await asyncio.open_connection(sock=self._lifeline, limit=LONGEST_NEWS)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                news = line.rstrip()
                if news == READY:
                    on_ready()
                elif news == RETIRING:
                    self.retiring = True
                    self.replaceable.set()
                if board is not None:
                    board.heard(self.pid, news)
        except ConnectionError:  # it has ended without reading what nobody writes
            pass
        finally:
            writer.close()


class Supervisor:
    """Keeps `processes` children running, each with a command line made by `command(lifeline, first)`.

    `lifeline` is a descriptor; `first` says that no child has been ready before. `patience` is how many seconds a
    child has to leave when told to. `board` is told what the children tell. With `changes` all
    children are replaced when files have changed, and one that cannot begin waits for that. The end of the stream
    `leader`, a descriptor, is like a SIGTERM. Run once.
    """

    def __init__(
        self,
        command: Callable[[int, bool], Sequence[str]],
        *,
        processes: int,
        patience: float,
        board: Board | None = None,
        changes: Changes | None = None,
        leader: int | None = None,
    ) -> None:
        self._command = command
        self._processes = processes
        self._patience = patience
        self._board = board
        self._changes = changes
        self._leader = leader
        self._changed = asyncio.Event()
        """Set, and made anew, when the app's files have changed."""
        self._children: set[Child] = set()
        self._signals = 0
        self._begun = asyncio.Event()
        """A child has been ready, or none will be."""
        self._stop = asyncio.Event()
        self._last_codes: list[int] = []
        self._fatal: int | None = None

    async def run(self) -> int:
        """Until told to stop by SIGTERM or SIGINT, or until a child says that none can ever start; the exit code."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: _call_in(loop, self._on_signal))
        if self._leader is not None:
            loop.add_reader(self._leader, self._on_leader, self._leader)
        async with asyncio.TaskGroup() as group:
            for place in range(self._processes):
                group.create_task(self._keep(place), name=f"busline place {place}")
            if self._changes is not None:
                group.create_task(self._reload(self._changes), name="busline reload")
        for number in SIGNALS:  # a handler would be undone by Python's end, and one more signal would then kill us
            signal.signal(number, signal.SIG_IGN)
        return self._verdict()

    async def _keep(self, place: int) -> None:
        """One child after the other; the next one starts when the last has ended, or when it retires."""
        if place > 0:
            await self._begun.wait()
        back_off = BackOff()
        retiring: Child | None = None
        async with asyncio.TaskGroup() as lives:
            while not self._stop.is_set():
                child = await self._start()
                if self._board is not None:
                    self._board.started(child.pid, place)
                lives.create_task(self._attend(child), name=f"busline process {child.pid}")
                await child.replaceable.wait()
                if self._changes is not None and await self._reloaded(child):
                    continue
                if child.code not in (None, Exit.RECYCLED):
                    await self._pause(child, back_off.after(child.lived))
                    continue
                if retiring is not None:  # so that a place never has more than two processes
                    await retiring.ended.wait()
                retiring = child

    async def _start(self) -> Child:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            lifeline = theirs.fileno()
            command = self._command(lifeline, not self._begun.is_set())
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, pass_fds=(lifeline,), start_new_session=True
            )
        child = Child(process, ours)
        self._children.add(child)
        return child

    async def _attend(self, child: Child) -> None:
        """One child's life, and what follows from its end."""
        if self._stop.is_set():  # told so while the child was being made
            child.signal(signal.SIGTERM)
        code = await child.live(self._begun.set, self._board)
        self._children.discard(child)
        if self._board is not None:
            self._board.ended(child.pid, code)
        if self._stop.is_set():
            self._last_codes.append(code)
        elif self._cannot_begin(code) and self._changes is None:
            self._give_up(code)
        elif code == Exit.RECYCLED:
            log.info("worker process %d has retired", child.pid, extra={"event": "recycled", "child": child.pid})
        elif child.retiring:
            _warn(child.pid, code, "its successor has begun")

    def _cannot_begin(self, code: int) -> bool:
        return code in FATAL or (code > 0 and not self._begun.is_set())

    async def _reload(self, changes: Changes) -> None:
        """Until told to stop: whenever files have changed, all children end, and others take their places."""
        async for files in changes(self._stop):
            log.info("%s changed, so all processes are replaced", ", ".join(files), extra={"event": "reloading"})
            for child in self._children:
                child.outdated = True
            self._signal_all(signal.SIGTERM)
            self._changed.set()
            self._changed = asyncio.Event()

    async def _reloaded(self, child: Child) -> bool:
        """Did the child end because of changes? One that cannot begin waits for them."""
        if child.code is None or child.outdated:
            return child.outdated
        if self._stop.is_set() or not self._cannot_begin(child.code):
            return False
        log.info("worker process %d could not begin; waiting for a change", child.pid, extra={"event": "reload_waits"})
        waiting = [asyncio.create_task(event.wait()) for event in (self._changed, self._stop)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return True

    async def _pause(self, dead: Child, seconds: float) -> None:
        """Before a dead child is replaced."""
        if self._stop.is_set() or dead.code is None:
            return
        _warn(dead.pid, dead.code, f"another one starts in {seconds:.1f} s")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _on_leader(self, stream: int) -> None:
        if not os.read(stream, 1):
            asyncio.get_running_loop().remove_reader(stream)
            self._on_signal()

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
        self._begun.set()
        if self._board is not None:
            self._board.stopping = True
        self._signal_all(signal.SIGTERM)
        asyncio.get_running_loop().call_later(patience + KILL_MARGIN, self._signal_all, signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        for child in self._children:
            child.signal(number)

    def _give_up(self, code: int) -> None:
        """A child has said what is wrong; another one would say the same."""
        self._fatal = code
        self._tell_all(self._patience)

    def _verdict(self) -> int:
        if self._fatal is not None:
            return self._fatal
        # A child that was told to stop before it had begun dies of the signal: nothing was lost by that.
        codes = set(self._last_codes) - {Exit.OK, Exit.RECYCLED, -signal.SIGTERM}
        if codes & {Exit.ABORTED, -signal.SIGKILL}:
            return Exit.ABORTED
        return Exit.FAILED if codes else Exit.OK


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # it is closed: the process is ending anyway
        loop.call_soon_threadsafe(function)


def _warn(pid: int, code: int, what_next: str) -> None:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}{_meaning(code)}"
    log.warning(
        "worker process %d %s; %s",
        *(pid, how, what_next),
        extra={"event": "process_died", "child": pid, "exit_code": code},
    )


def _meaning(code: int) -> str:
    return f" ({Exit(code).meaning})" if code in set(Exit) else ""
