"""Plays a Markdown file: writes its Python blocks, runs its consoles, compares what they print.

    ```python NAME.py           the file NAME.py
    ```console                  commands behind `$ `, each with what it prints
    ```console background       one command that goes on running; what it prints first
    ```console continued        what it prints from then on

`...` stands for anything; 8000, 8100 and 4566 in a console for ports that are free, and the addresses of servers for
empty ones. A command succeeds, unless what is shown of it begins with `error:`. What is exported stays for the commands
after it. `make` is only asked what it would do, since the targets shown run these very tests.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import markdown

from tests.servers import free_ports

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds that a command may take where the machine is busy; a worker of SQS needs 3 s of a processor to start."""
PORTS = ("8000", "8100", "4566")
"""Where documents have web applications, and an emulator of AWS."""
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
    rest = FENCE.sub("", text)
    shown = re.findall(r"<pre.*?</pre>", markdown.markdown(rest, extensions=["pymdownx.superfences"]), re.DOTALL)
    assert not shown, f"{path.name} has a block that nothing would run: {shown[0]}"
    assert "```" not in rest, f"{path.name} has a block without an end"
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
    """Plays blocks in `folder`; leaving it ends what still runs. `servers` tells, by the address that documents have
    for a server, who is asked once for the address of an empty one."""

    def __init__(self, folder: Path, servers: Mapping[str, Callable[[], str]] | None = None) -> None:
        self._folder = folder
        self._background: list[Background] = []
        self._servers = servers or {}
        self._addresses: dict[str, str] = {}
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
            block = Block(block.info, self._as_here(block.body), block.line)
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
            case _:
                raise AssertionError(f"line {block.line}: nothing would run a block of {' '.join(block.info)!r}")

    def _as_here(self, body: str) -> str:
        """With the addresses that are here in the place of those that are shown."""
        for address, server in self._servers.items():
            if address in body:
                if address not in self._addresses:
                    self._addresses[address] = server()
                body = body.replace(address, self._addresses[address])
        return re.sub(rf"\b(?:{'|'.join(PORTS)})\b", lambda port: self._ports[port[0]], body)

    def _run(self, command: str, shown: str) -> None:
        cwd = self._folder
        if command.split()[0] == "make":
            cwd, command = ROOT, command.replace("make ", "make -n ")
        exported = re.match(r"export (\w+)=", command)
        if exported:
            command += f'; printf %s "${exported[1]}"'
        process = self._spawn(command, cwd, subprocess.PIPE)
        try:
            output = process.communicate(timeout=PATIENCE)[0].decode().rstrip("\n")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert (process.returncode != 0) == shown.startswith("error:"), f"$ {command}\n{output}"
        if exported:
            self._environment[exported[1]] = output
        elif shown:
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
        # Once all is closed, uvicorn ends by the signal that it was sent; what only shows something does so at once.
        by_signal = any(each in command for each in ("uvicorn", "busline events"))
        self._background.append(Background(process, path, -signal.SIGTERM if by_signal else 0))
        self._wait_for(shown)

    def _wait_for(self, shown: str) -> None:
        background = self._background[-1]
        wanted = re.compile(pattern(shown), re.DOTALL)
        ends_at = time.monotonic() + PATIENCE
        while not (match := wanted.search(background.output.read_text(), background.read)):
            assert time.monotonic() < ends_at, f"{background.output.read_text()}\n-- should have shown\n{shown}"
            time.sleep(0.02)
        background.read = match.end()
