"""`busline demo`, as a newcomer meets it."""

import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from process.commands import lives, until
from rich.console import Console

from busline.demo.ledger import Count, Ledger
from busline.demo.scenario import CALLS, read_airports
from busline.demo.screen import Line, Screen
from busline.demo.workers import PROCESSES


def demo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "busline", "demo", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


def test_the_demo_loses_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = demo(cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "killed with SIGKILL" in result.stdout
    assert f"{CALLS:,} of {CALLS:,}" in result.stdout
    assert "3,376 of 3,376" in result.stdout
    assert "dead letter in demo.dead: failed after 3 attempts, ValueError" in result.stdout
    assert "\x1b" not in result.stdout, "plain lines where nobody watches"
    assert list(tmp_path.iterdir()) == []


def below(pid: int) -> set[int]:
    """The processes that this one has started, and those that they have."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_a_demo_that_is_killed_takes_its_workers_along(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "busline", "demo"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # nobody else would tidy up
    started: set[int] = set()
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as run:

        def all_run() -> bool:
            time.sleep(0.2)  # between two looks at all processes
            started.update(below(run.pid))
            return len(started) > PROCESSES

        try:
            until(all_run, "a parent and its workers run")
        finally:
            run.kill()
    try:
        until(lambda: not any(map(lives, started)), "none of them is left", timeout=10)
    finally:
        for pid in filter(lives, started):
            os.kill(pid, signal.SIGKILL)


def test_the_demo_says_why_it_cannot_be_played(tmp_path: Path) -> None:
    result = demo("memory://", cwd=tmp_path)
    assert result.returncode == 1
    assert "memory:// lives in one process" in result.stdout


def test_the_file_to_import_is_what_it_is_said_to_be() -> None:
    rows = read_airports()
    assert len(rows) == len({row.iata for row in rows}) == 3376


def test_a_ledger_tells_starts_from_repeats(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.count("calls") == Count(0, 0)
    for number in (1, 2, 2):
        ledger.note("calls", number)
    assert ledger.count("calls") == Count(starts=3, distinct=2)
    assert ledger.count("calls").repeats == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_loss_is_shown_as_one(terminal: bool) -> None:
    console = Console(file=StringIO(), force_terminal=terminal, width=100, highlight=False)
    screen = Screen(console)
    with screen.bar("calls", 10) as move:
        move(9)
    screen.table([Line("calls answered", "9 of 10", "1 failed", good=False), Line("dead letters", "1 of 1")])
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert ("✗" if terminal else "LOST") in shown
    assert "9 of 10" in shown
