"""`busline queues` and `busline purge` beside a real worker."""

import json
import os
import pty
import subprocess
from typing import Any

import pytest

from busline.cli.exits import Exit
from process.commands import COMMAND, Folder


@pytest.fixture
def busy(folder: Folder) -> Folder:
    """One message is worked on in `work`, two wait there, one is delayed, and one has died."""
    worker = folder.worker("app:bus", "--concurrency", "1")
    worker.until_ready()
    folder.send(("add", "no sum"))
    worker.until_logged("dead_lettered")
    folder.send(("hold", "first"))
    folder.until_noted("begin first")
    folder.send(("hold", "second"), ("hold", "third"))
    folder.send(("hold", "later"), delay=600)
    return folder


def listed(folder: Folder, *names: str) -> dict[str, dict[str, Any]]:
    """What is told of each queue."""
    return {each["queue"]: each for each in json.loads(folder.run("queues", *names, "--json").stdout)}


def test_queues_are_counted(busy: Folder) -> None:
    header, *rows = busy.run("queues").stdout.splitlines()
    assert header.split() == ["QUEUE", "READY", "DELAYED", "LEASED", "CONSUMERS", "DEAD", "TAKES"]
    lines = {row.split()[0]: row.split(maxsplit=6)[1:] for row in rows}
    assert lines["work"] == ["2", "1", "1", "1", "1", "add, block, disconnect, fail, hold, stuck"]
    assert lines["work.dead"] == ["1", "0", "0", "0", "–"]
    assert lines["work.on_user"] == ["0", "0", "0", "1", "0", "user.*"]


def test_queues_are_told_to_programs(busy: Folder) -> None:
    told = listed(busy)
    counts = {"ready": 2, "delayed": 1, "leased": 1, "consumers": 1, "dead": 1}
    topics = ["add", "block", "disconnect", "fail", "hold", "stuck"]
    flags = {"ephemeral": False, "paused": False}
    assert told["work"] == {"queue": "work", **counts, "topics": topics, "patterns": [], **flags}
    assert told["work.on_user"]["patterns"] == ["user.*"]
    assert told["work.dead"]["dead"] is None
    assert list(listed(busy, "work.dead", "work")) == ["work", "work.dead"]


def test_a_place_without_queues_and_a_queue_that_is_not_there_are_told_apart(folder: Folder) -> None:
    assert folder.run("queues", "--json").stdout == "[]\n"
    assert folder.run("queues").stdout == f"no queues at {folder.path.resolve()}/bus.db\n"
    for command in (["queues", "nowhere"], ["purge", "nowhere"], ["purge", "nowhere", "--yes"]):
        run = folder.run(*command)
        assert run.returncode == Exit.NO_HANDLER
        assert run.stderr.startswith("error: queue 'nowhere' does not exist at ")
        assert run.stderr.count("\n") == 1


def test_a_purge_deletes_what_waits_and_says_how_many(busy: Folder) -> None:
    assert busy.run("purge", "work", "--yes").stdout == "deleted 3 messages of work\n"
    left = listed(busy)
    assert (left["work"]["ready"], left["work"]["delayed"], left["work"]["leased"]) == (0, 0, 1)
    assert left["work.dead"]["ready"] == 1
    assert busy.run("purge", "work.dead", "-y").stdout == "deleted 1 message of work.dead\n"
    busy.open_gate()
    busy.until_noted("end first")


def test_a_purge_in_a_pipe_deletes_nothing_unless_it_is_told_to(busy: Folder) -> None:
    run = busy.run("purge", "work")
    assert run.returncode == Exit.USAGE
    assert run.stderr == "error: this would delete 3 messages of work for good: say --yes\n"
    assert listed(busy)["work"]["ready"] == 2


def test_a_purge_asks_on_a_terminal(busy: Folder) -> None:
    assert answered(busy, b"n\n") == (Exit.INTERRUPTED, "Delete 3 messages of work for good? [y/N]: ")
    assert listed(busy)["work"]["ready"] == 2
    assert answered(busy, b"y\n")[0] == Exit.OK
    assert listed(busy)["work"]["ready"] == 0


def answered(folder: Folder, answer: bytes) -> tuple[int, str]:
    """Purge `work` with a terminal on which `answer` is typed; the exit code and what was shown."""
    terminal, ours = pty.openpty()
    try:
        os.write(terminal, answer)
        run = subprocess.run(
            [*COMMAND, "purge", "work"],
            cwd=folder.path,
            env=folder.environment,
            stdin=ours,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(ours)
    return run.returncode, run.stdout
