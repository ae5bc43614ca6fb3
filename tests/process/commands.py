"""Runs `busline` as a user does: real processes, real signals, files as the only witnesses."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from busline import Bus
from busline.bus import URL_VARIABLE
from busline.storing import STORE_VARIABLE

COMMAND = [sys.executable, "-m", "busline"]


def until(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Wait until `condition` holds; fail, naming `what`, if it doesn't within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Is there such a process, apart from one that has ended and that nobody has asked about?"""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Running:
    """One `busline worker …` in the background."""

    def __init__(self, folder: Path, arguments: list[str], number: int, environment: dict[str, str]) -> None:
        self.out, self.err = folder / f"out{number}", folder / f"err{number}"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "worker", *arguments], cwd=folder, env=environment, stdout=out, stderr=err
            )

    @property
    def pids(self) -> list[int]:
        """The processes that have said that they are ready, in that order."""
        return [int(pid) for pid in re.findall(r"^ready \(process (\d+)\)$", self.out.read_text(), re.MULTILINE)]

    def until_ready(self, number: int = 1) -> list[int]:
        """Wait for `number` processes in all to have been ready; returns them."""

        def ready() -> bool:
            assert self.process.poll() is None, f"it has ended: {self.out.read_text()}{self.err.read_text()}"
            return len(self.pids) >= number

        until(ready, f"{number} processes are ready")
        return self.pids

    def logged(self, event: str) -> int:
        """How many log lines of this event there are."""
        return self.err.read_text().count(f" {event}: ")

    def until_logged(self, event: str, times: int = 1) -> None:
        """Wait for a log line of this event."""
        until(lambda: self.logged(event) >= times, f"it logs {event}: {self.err.read_text()}")

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal the process that was started, not its children."""
        self.process.send_signal(number)

    def exit_code(self, timeout: float = 20.0) -> int:
        """Wait for the end."""
        return self.process.wait(timeout)

    def end(self) -> None:
        """Leave nothing behind, however the test went."""
        pids = [self.process.pid, *self.pids]
        for pid in pids:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


class Folder:
    """A folder with an app, a database, and what its handlers have written down.

    Commands, and apps that name no URL, go to the broker at `url`; without one it is the folder's `bus.db`.
    """

    def __init__(self, path: Path, url: str | None = None) -> None:
        self.path = path
        self.url = url or f"sqlite:///{path}/bus.db"
        self.workers: list[Running] = []

    @property
    def environment(self) -> dict[str, str]:
        """Of what runs here."""
        return {**os.environ, URL_VARIABLE: self.url}

    def write(self, name: str, source: str) -> None:
        """A module."""
        (self.path / f"{name}.py").write_text(source)

    def worker(self, *arguments: str, store: str | None = None) -> Running:
        """Start `busline worker` with these arguments, and with a store of its own."""
        stored = {} if store is None else {STORE_VARIABLE: store}
        worker = Running(self.path, list(arguments), len(self.workers), {**self.environment, **stored})
        self.workers.append(worker)
        return worker

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.path,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def notes(self) -> list[str]:
        """What handlers have noted, one line each."""
        notes = self.path / "notes"
        return notes.read_text().splitlines() if notes.exists() else []

    def noted(self, what: str) -> int:
        """How often."""
        return self.notes.count(what)

    def until_noted(self, what: str, times: int = 1) -> None:
        """Wait for a handler to have noted it."""
        until(lambda: self.noted(what) >= times, f"{what!r} is noted {times} times: {self.notes}")

    def until_notes(self, number: int, timeout: float = 20.0) -> list[str]:
        """Wait for so many notes; returns them all."""
        until(lambda: len(self.notes) >= number, f"{number} notes: {self.notes}", timeout)
        return self.notes

    def send(self, *messages: tuple[str, object], **options: Any) -> list[str]:
        """Send topics with their payloads, all with the same options, from this process; returns the ids."""

        async def send() -> list[str]:
            async with Bus(self.url) as bus:
                return [(await bus.send(topic, payload, **options)).id for topic, payload in messages]

        return asyncio.run(send())

    def open_gate(self) -> None:
        """Let the handlers of `hold` return."""
        (self.path / "gate").touch()

    def end(self) -> None:
        """Leave nothing behind."""
        for worker in self.workers:
            worker.end()


class Tail:
    """One `busline events …` in the background."""

    def __init__(self, folder: Folder, arguments: tuple[str, ...]) -> None:
        self.out, err = folder.path / "events", folder.path / "listening"
        with self.out.open("wb") as out, err.open("wb") as errors:
            self.process = subprocess.Popen(
                [*COMMAND, "events", *arguments], cwd=folder.path, env=folder.environment, stdout=out, stderr=errors
            )
        until(lambda: "listening at" in err.read_text(), "it listens")

    @property
    def lines(self) -> list[str]:
        """What it has shown."""
        return self.out.read_text().splitlines()


@contextmanager
def tail(folder: Folder, *arguments: str) -> Iterator[Tail]:
    """One that is killed at the end."""
    tail = Tail(folder, arguments)
    try:
        yield tail
    finally:
        if tail.process.poll() is None:
            os.kill(tail.process.pid, signal.SIGKILL)
        tail.process.wait(10)
