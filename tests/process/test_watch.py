"""`busline queues --watch`, on a terminal and in a pipe."""

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from busline.cli.exits import Exit
from busline.cli.watching import Sample, ages, rates
from busline.message import QueueStats
from process.commands import COMMAND, Folder

PATIENCE = 30.0


def stats(ready: int, delayed: int | None = 0) -> list[QueueStats]:
    return [QueueStats("q", ready, delayed, None, 1, frozenset(), frozenset(), False)]


def test_what_flows_is_what_was_taken_and_what_more_waits() -> None:
    before = Sample(10.0, stats(5), {("a", "q"): 100, ("b", "q"): 50})
    now = Sample(12.0, stats(9, 2), {("a", "q"): 110, ("c", "q"): 4})  # b has gone, and c has begun since
    assert rates("q", before, now) == ((4 + 2 + 14) / 2, 14 / 2)
    assert rates("q", None, now) is None
    assert rates("other", before, now) is None
    assert rates("q", before, Sample(12.0, stats(5), {})) is None  # nobody tells


def seen(at: float, ready: int, taken: int, waited: float | None = None) -> Sample:
    key = ("a", "q")
    return Sample(at, stats(ready), {key: taken}, waited={} if waited is None else {key: waited})


def test_the_age_of_what_waits_is_told_by_what_was_taken_and_by_when_the_queue_was_empty() -> None:
    assert ages({}, None, seen(10, 5, 3, 7.0)) == {}  # nobody knows when that was
    assert ages({}, seen(9, 5, 2, 6.0), seen(10, 5, 3, 7.0)) == {"q": 7.0}
    assert ages({"q": 7.0}, seen(10, 5, 3, 7.0), seen(11.5, 6, 3, 7.0)) == {"q": 8.5}  # it still waits
    assert ages({"q": 7.0}, seen(10, 5, 3, 7.0), seen(11, 0, 8, 7.5)) == {}  # nothing does
    assert ages({}, seen(10, 0, 3, 7.0), seen(11, 2, 3, 7.0)) == {"q": 1.0}  # it has come since
    assert ages({}, seen(10, 5, 3, 7.0), seen(11, 5, 3, 7.0)) == {}
    looked = Sample(11, stats(5), {}, {"q": 60.0})
    assert ages({"q": 7.0}, seen(10, 5, 3, 7.0), looked) == {"q": 60.0}  # where it can be looked at, it is


def until_shown(terminal: int, *words: str) -> str:
    """What a terminal has shown, once all these words are in it."""
    seen, deadline = "", time.monotonic() + PATIENCE
    while not all(word in seen for word in words):
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


def test_a_table_is_redrawn_until_ctrl_c_which_leaves_the_terminal_as_it_was(folder: Folder) -> None:
    folder.worker("app:bus", "--concurrency", "1").until_ready()
    folder.send(*(("hold", str(number)) for number in range(4)))
    folder.until_noted("begin 0")
    terminal, ours = pty.openpty()
    environment = {**folder.environment, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    watcher = subprocess.Popen(
        [*COMMAND, "queues", "--watch"],
        cwd=folder.path,
        env=environment,
        stdin=ours,
        stdout=ours,
        stderr=ours,
        start_new_session=True,
    )
    os.close(ours)
    try:
        seen = until_shown(terminal, "QUEUE", "OLDEST", "OUT/S", "work.on_user")
        assert "\x1b[?25l" in seen  # the cursor is hidden
        folder.open_gate()
        folder.until_noted("end 3")
        watcher.send_signal(signal.SIGINT)
        rest = until_shown(terminal, "\x1b[?25h")  # and shown again
        assert "Traceback" not in seen + rest
        assert watcher.wait(PATIENCE) == Exit.OK
    finally:
        watcher.kill()
        watcher.wait()
        os.close(terminal)


@pytest.fixture(params=["sqlite", "amqp"])
def place(request: pytest.FixtureRequest, folder: Folder) -> Folder:
    """At a file, and at RabbitMQ, where nobody can look at a message without taking it."""
    if request.param == "amqp":
        folder.url = request.getfixturevalue("rabbit").empty_url()
    folder.write("app", (folder.path / "app.py").read_text().replace('Bus("sqlite:///bus.db", ', "Bus("))
    return folder


@pytest.mark.timeout(180)
def test_programs_get_a_line_a_second_with_depth_age_rates_and_dead_letters(place: Folder) -> None:
    place.worker("app:bus", "--concurrency", "1").until_ready()
    watcher = subprocess.Popen(
        [*COMMAND, "queues", "work", "--watch", "--json"],
        cwd=place.path,
        env=place.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None
    out = watcher.stdout

    def until_told(**wanted: Callable[[Any], bool]) -> dict[str, Any]:
        """A line of which all this holds."""
        deadline = time.monotonic() + 2 * PATIENCE
        while True:
            (told,) = json.loads(out.readline())
            if all(told[name] is not None and holds(told[name]) for name, holds in wanted.items()):
                return dict(told)
            assert time.monotonic() < deadline, told

    try:
        until_told(out_per_second=lambda rate: rate == 0, ready=lambda number: number == 0)
        began = time.time()
        place.send(*(("hold", str(number)) for number in range(4)))
        place.until_noted("begin 0")
        told = until_told(ready=lambda number: number == 3, oldest_seconds=lambda age: age > 2)
        assert abs(told["oldest_seconds"] - (time.time() - began)) < 10
        assert told["leased"] in (1, None)
        until_told(out_per_second=lambda rate: rate == 0, in_per_second=lambda rate: rate == 0)
        place.open_gate()
        until_told(out_per_second=lambda rate: rate > 0, ready=lambda number: number == 0)
        place.send(("hold", {"wrong": 1}))
        until_told(dead=lambda number: number == 1)
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(PATIENCE) == Exit.OK
    finally:
        watcher.kill()
        watcher.wait()
        out.close()
