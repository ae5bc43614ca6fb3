"""Runs an example as its README says, in a copy of its folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from process.commands import until

from tests.servers import free_ports

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 60.0


class Started:
    """One command of an example, in the background."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], output: Path) -> None:
        self._output = output
        with output.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)

    @property
    def output(self) -> str:
        """What it has printed and logged."""
        return self._output.read_text()

    def until_shown(self, text: str, times: int = 1) -> None:
        """Wait until it has printed or logged `text`."""
        until(lambda: self.output.count(text) >= times or self.process.poll() is not None, f"shows {text!r}", PATIENCE)
        assert self.output.count(text) >= times, self.output

    def kill(self) -> None:
        """As if it had crashed."""
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        """SIGTERM, and its end."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


class Example:
    """A copy of `examples/NAME` and what runs of it."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder / name
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        self.environment = {**os.environ, "BUSLINE_URL": f"sqlite:///{self.folder}/busline.db", **environment}
        self._started: list[Started] = []
        self._clients: list[httpx.Client] = []

    def start(self, *command: str, **environment: str) -> Started:
        """`python …`, or the command line of a library: `uvicorn …`, `busline …`."""
        words = [sys.executable, *command[1:]] if command[0] == "python" else [sys.executable, "-m", *command]
        output = self.folder / f"output{len(self._started)}.log"
        self._started.append(Started(words, self.folder, {**self.environment, **environment}, output))
        return self._started[-1]

    def worker(self, *options: str, processes: int = 1) -> Started:
        """`busline worker app:bus`, when it is ready."""
        worker = self.start("busline", "worker", "app:bus", "--processes", str(processes), *options)
        worker.until_shown("ready (process", processes)
        return worker

    def run(self, *command: str) -> str:
        """One command to its end; what it printed."""
        words = [sys.executable, *command[1:]] if command[0] == "python" else [sys.executable, "-m", *command]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def site(self, *command: str, port: int = 0, shows: str, **environment: str) -> tuple[Started, httpx.Client]:
        """A web application, when it has shown that it listens, and a client of it. PORT in `command` is its port."""
        port = port or free_ports(1)[0]
        started = self.start(*(word.replace("PORT", str(port)) for word in command), **environment)
        started.until_shown(shows)
        self._clients.append(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE))
        return started, self._clients[-1]

    def end(self) -> None:
        """Leave nothing behind."""
        for client in self._clients:
            client.close()
        for each in reversed(self._started):
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGTERM)
                try:
                    each.process.wait(20)
                except subprocess.TimeoutExpired:
                    each.kill()
