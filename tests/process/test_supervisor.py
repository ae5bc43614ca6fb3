"""Several processes under one parent: shared work, replaced when dead, and none left behind."""

import os
import signal

import pytest

from busline.cli.exits import Exit
from process.commands import Folder, lives, until

TWO = ("app:bus", "--processes", "2", "--concurrency", "1")


def test_two_processes_share_a_queue(folder: Folder) -> None:
    worker = folder.worker(*TWO)
    worker.until_ready(2)
    folder.send(("hold", "first"), ("hold", "second"))
    folder.until_noted("begin first")
    folder.until_noted("begin second")  # each has one slot, so it takes both of them
    assert {int(note.split()[1]) for note in folder.notes if note.startswith("process")} == set(worker.pids)
    worker.tell()
    worker.until_logged("draining")
    folder.open_gate()
    assert worker.exit_code() == Exit.OK
    assert folder.noted("end first") == folder.noted("end second") == 1
    assert not any(lives(pid) for pid in worker.pids)


def test_a_killed_process_is_replaced_and_its_message_handled(folder: Folder) -> None:
    worker = folder.worker("app:bus", "--processes", "2")
    worker.until_ready(2)
    folder.send(("hold", "it"))
    folder.until_noted("begin it")
    (holder,) = (int(note.split()[1]) for note in folder.notes if note.startswith("process"))
    os.kill(holder, signal.SIGKILL)
    assert len(set(worker.until_ready(3))) == 3
    worker.until_logged("process_died")
    assert "SIGKILL" in worker.err.read_text()
    folder.until_noted("begin it", 2)
    folder.open_gate()
    folder.until_noted("end it")


def test_a_killed_parent_leaves_no_children(folder: Folder) -> None:
    worker = folder.worker("app:bus", "--processes", "2")
    pids = worker.until_ready(2)
    worker.tell(signal.SIGKILL)
    until(lambda: not any(lives(pid) for pid in pids), "the children have left", 5)


@pytest.mark.parametrize("how", ["block", "stuck"])
def test_a_child_that_is_stuck_does_not_outlive_its_killed_parent(folder: Folder, how: str) -> None:
    worker = folder.worker("app:bus", "--processes", "2", "--drain-timeout", "0.1")
    pids = worker.until_ready(2)
    folder.send((how, None))
    folder.until_noted(f"begin {how}")
    worker.tell(signal.SIGKILL)
    until(lambda: not any(lives(pid) for pid in pids), "the children have left", 10)


def test_a_second_signal_stops_all_processes_at_once(folder: Folder) -> None:
    worker = folder.worker("app:bus", "--processes", "2")
    pids = worker.until_ready(2)
    folder.send(("hold", "it"))
    folder.until_noted("begin it")
    worker.tell()
    worker.until_logged("draining")
    worker.tell()
    assert worker.exit_code(5) == Exit.ABORTED
    assert not any(lives(pid) for pid in pids)


def test_children_that_can_never_start_are_not_started_again(folder: Folder) -> None:
    folder.write(
        "parent_only",
        "import os, sys\nfrom busline import Bus\nbus = Bus('sqlite:///bus.db', service='w')\n"
        "if '--lifeline' not in sys.argv:\n    bus.handler('t')(lambda: None)\n",
    )
    worker = folder.worker("parent_only:bus", "--processes", "2")
    assert worker.exit_code() == Exit.NO_HANDLER
    assert worker.err.read_text().count("has no handlers") <= 2
    assert "process_died" not in worker.err.read_text()


def test_memory_is_not_shared_by_processes(folder: Folder) -> None:
    folder.write(
        "alone", "from busline import Bus\nbus = Bus('memory://', service='w')\n@bus.handler('t')\ndef on(): ...\n"
    )
    run = folder.run("worker", "alone:bus", "--processes", "2")
    assert run.returncode == Exit.CONFIGURATION
    assert "--processes 1" in run.stderr
