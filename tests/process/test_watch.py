"""`busline queues --watch`, on a terminal and in a pipe."""

import json
import os
import pty
import signal
import subprocess
import time
from typing import Any

from busline.cli.exits import Exit
from busline.cli.watching import Sample, rates
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


def test_programs_get_a_line_a_second_with_depth_age_and_rates(folder: Folder) -> None:
    folder.worker("app:bus", "--concurrency", "1").until_ready()
    folder.send(*(("hold", str(number)) for number in range(4)))
    folder.until_noted("begin 0")
    watcher = subprocess.Popen(
        [*COMMAND, "queues", "work", "--watch", "--json"],
        cwd=folder.path,
        env=folder.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None
    try:

        def following() -> dict[str, Any]:
            assert watcher.stdout is not None
            (told,) = json.loads(watcher.stdout.readline())
            assert isinstance(told, dict)
            return told

        first = following()
        assert (first["queue"], first["ready"], first["leased"], first["out_per_second"]) == ("work", 3, 1, None)
        assert first["oldest_seconds"] >= 0
        deadline = time.monotonic() + PATIENCE
        while (told := following())["out_per_second"] is None or told["oldest_seconds"] <= first["oldest_seconds"]:
            assert time.monotonic() < deadline
        assert told["out_per_second"] == told["in_per_second"] == 0.0
        folder.open_gate()
        while following()["out_per_second"] in (None, 0.0):
            assert time.monotonic() < deadline
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(PATIENCE) == Exit.OK
    finally:
        watcher.kill()
        watcher.wait()
        watcher.stdout.close()
