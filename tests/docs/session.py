"""Plays a Markdown file: writes its Python blocks, runs its consoles, compares what they print.

    ```python NAME.py           the file NAME.py
    ```console                  commands behind `$ `, each with what it prints
    ```console background       one command that goes on running; what it prints first
    ```console continued        what it prints from then on
    ```console rabbitmq         commands for which amqp://localhost/ is an empty RabbitMQ; also behind background

`...` stands for anything, and 8000 and 8100 in a console for ports that are free. A command succeeds, unless what is
shown of it begins with `error:`. `make` is only asked what it would do, since the targets shown run these very tests.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.servers import free_ports

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds that a command may take."""
RABBITMQ = "amqp://localhost/"
"""Where documents have it."""
PORTS = ("8000", "8100")
"""Where documents have web applications."""
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block and where it begins."""

    info: list[str]
    body: str
    line: int


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of the file, in order."""
    text = path.read_text()
    found = [
        Block(match["info"].split(), match["body"], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]
    assert text.count("```") + text.count("~~~") == 2 * len(found), f"{path.name} has a block that would not be run"
    return found


def pattern(expected: str) -> str:
    """A regular expression for what is expected: any trailing space, and anything for `...`."""
    lines = [".*?".join(map(re.escape, line.rstrip().split("..."))) + r"[ \t]*" for line in expected.splitlines()]
    return "\n".join(lines)


def commands(body: str) -> list[tuple[str, str]]:
    """Each command of a console with what is shown of its output."""
    found = re.split(r"^\$ ", body, flags=re.MULTILINE)
    assert found[0] == "", f"a console begins with a command, not with {found[0]!r}"
    return [(command, shown) for command, _, shown in (entry.partition("\n") for entry in found[1:])]


@dataclass
class Background:
    """What goes on running, and how much of its output has been read."""

    process: subprocess.Popen[bytes]
    output: Path
    ends_with: int
    read: int = 0

    def end(self) -> None:
        """Tell it to leave; it must do so in good order."""
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(PATIENCE) == self.ends_with, "it did not leave in good order"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Session:
    """Plays blocks in `folder`; leaving it ends what still runs. `rabbitmq` is asked once for an empty one's URL."""

    def __init__(self, folder: Path, rabbitmq: Callable[[], str] | None = None) -> None:
        self._folder = folder
        self._background: list[Background] = []
        self._rabbitmq = rabbitmq
        self._rabbitmq_url = ""
        self._ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("BUSLINE_", "MAKE", "MFLAGS"))
        }
        self._environment |= {"PATH": search, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "160", "NO_COLOR": "1"}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._background:
            each.end()

    def play(self, block: Block) -> None:
        """Raises AssertionError where the file does not say what is."""
        if block.info[:1] == ["console"]:
            shown = re.sub(r"\b8[01]00\b", lambda port: self._ports[port[0]], block.body)
            block = Block(block.info, shown, block.line)
        match block.info:
            case ["python", name]:
                (self._folder / name).write_text(block.body)
            case ["console"]:
                for command, shown in commands(block.body):
                    self._run(command, shown)
            case ["console", "background"]:
                self._start(block.body)
            case ["console", "continued"]:
                self._wait_for(block.body)
            case ["console", *rest, "rabbitmq"]:
                self.play(Block(["console", *rest], block.body.replace(RABBITMQ, self._empty_rabbitmq()), block.line))
            case _:
                raise AssertionError(f"line {block.line}: nothing would run a block of {' '.join(block.info)!r}")

    def _empty_rabbitmq(self) -> str:
        assert self._rabbitmq is not None, "there is no RabbitMQ for this document"
        self._rabbitmq_url = self._rabbitmq_url or self._rabbitmq()
        return self._rabbitmq_url

    def _run(self, command: str, shown: str) -> None:
        cwd = self._folder
        if command.split()[0] == "make":
            cwd, command = ROOT, command.replace("make ", "make -n ")
        process = self._spawn(command, cwd, subprocess.PIPE)
        try:
            output = process.communicate(timeout=PATIENCE)[0].decode().rstrip("\n")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert (process.returncode != 0) == shown.startswith("error:"), f"$ {command}\n{output}"
        if shown:
            as_shown = re.fullmatch(pattern(shown), output, re.DOTALL)
            assert as_shown, f"$ {command}\n{output}\n-- should have been\n{shown}"

    def _spawn(self, command: str, cwd: Path, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """In a session of its own, so that all of it can be killed."""
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=cwd,
            env=self._environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _start(self, body: str) -> None:
        [(command, shown)] = commands(body)
        path = self._folder / f"background{len(self._background)}.log"
        with path.open("wb") as output:
            # By env, as variables may be set in front of the command.
            process = self._spawn(f"exec env {command}", self._folder, output)
        # Once all is closed, uvicorn ends by the signal that it was sent.
        self._background.append(Background(process, path, -signal.SIGTERM if "uvicorn" in command else 0))
        self._wait_for(shown)

    def _wait_for(self, shown: str) -> None:
        background = self._background[-1]
        wanted = re.compile(pattern(shown), re.DOTALL)
        ends_at = time.monotonic() + PATIENCE
        while not (match := wanted.search(background.output.read_text(), background.read)):
            assert time.monotonic() < ends_at, f"{background.output.read_text()}\n-- should have shown\n{shown}"
            time.sleep(0.02)
        background.read = match.end()
