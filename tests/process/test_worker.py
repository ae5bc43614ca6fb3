"""One worker process: how it starts, drains, stops at once, and never stays."""

import asyncio
import signal
import sqlite3
from contextlib import closing

import pytest

from busline import Bus
from busline.cli.exits import Exit
from busline.transports.base import Inspectable
from process.commands import Folder, until


async def waiting(folder: Folder, queue: str) -> int:
    async with Bus(f"sqlite:///{folder.path}/bus.db") as bus:
        assert isinstance(bus.transport, Inspectable)
        return next(stats.ready for stats in await bus.transport.stats() if stats.name == queue)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_told_to_stop_finishes_what_runs_and_leaves_the_rest(
    folder: Folder, number: signal.Signals
) -> None:
    worker = folder.worker("app:bus", "--concurrency", "1")
    worker.until_ready()
    await asyncio.to_thread(folder.send, *(("hold", name) for name in ("first", "second", "third")))
    folder.until_noted("begin first")
    worker.tell(number)
    worker.until_logged("draining")
    folder.open_gate()
    assert worker.exit_code() == Exit.OK
    assert [note for note in folder.notes if not note.startswith("process")] == ["begin first", "end first"]
    assert await waiting(folder, "work") == 2


def test_a_second_signal_stops_at_once_and_the_message_comes_again(folder: Folder) -> None:
    worker = folder.worker("app:bus")
    worker.until_ready()
    folder.send(("hold", "it"))
    folder.until_noted("begin it")
    worker.tell()
    worker.until_logged("draining")
    worker.tell()
    assert worker.exit_code(3) == Exit.ABORTED
    assert folder.noted("end it") == 0
    folder.open_gate()
    folder.worker("app:bus").until_ready()
    folder.until_noted("end it")
    assert folder.noted("begin it") == 2


def test_a_blocked_loop_cannot_keep_a_worker_that_is_told_three_times(folder: Folder) -> None:
    worker = folder.worker("app:bus")
    worker.until_ready()
    folder.send(("block", None))
    folder.until_noted("begin block")
    # Signals that come faster than they are taken are one signal, and a blocked worker cannot say that it took one.
    until(lambda: worker.process.poll() is not None or worker.tell() is not None, "it has ended", 3)
    assert worker.exit_code() == Exit.ABORTED


def test_a_plain_function_that_never_returns_does_not_keep_the_process(folder: Folder) -> None:
    worker = folder.worker("app:bus", "--drain-timeout", "0.2")
    worker.until_ready()
    folder.send(("stuck", None))
    folder.until_noted("begin stuck")
    worker.tell()
    assert worker.exit_code(5) == Exit.OK


def test_a_worker_that_fails_leaves_although_a_plain_function_never_returns(folder: Folder) -> None:
    worker = folder.worker("app:bus", "--processes", "0")
    worker.until_ready()
    folder.send(("stuck", None))
    folder.until_noted("begin stuck")
    folder.send(("disconnect", None))
    assert worker.exit_code(8) == Exit.UNREACHABLE
    assert worker.err.read_text().splitlines()[-1].startswith("error: ")


def test_a_worker_says_what_it_serves_and_where(folder: Folder) -> None:
    worker = folder.worker("app:bus", "--concurrency", "3")
    worker.until_ready()
    shown = worker.out.read_text()
    assert f"app:bus at {folder.path.resolve()}/bus.db" in shown
    assert "3 messages at a time per queue, in one process" in shown
    assert ["work", "add", "handler", "app:add"] in [line.split()[:4] for line in shown.splitlines()]
    assert any(line.startswith("work.on_user") and "user.*" in line for line in shown.splitlines())


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("bus = Bus(service='w')", Exit.NO_HANDLER, "has no handlers"),
        ("bus = Bus(service='w')\nraise OSError('no disk')", Exit.NO_APP, "OSError: no disk"),
        ("import nothing_like_it", Exit.NO_APP, "imports 'nothing_like_it'"),
        ("other = Bus(service='w')", Exit.NO_APP, "a Bus is bad:other"),
        (
            "bus = Bus(service='w')\n@bus.handler('t')\ndef one(): ...\n@bus.handler('t')\ndef two(): ...",
            Exit.CONFIGURATION,
            "'t' has two handlers, one and two",
        ),
        (
            "bus = Bus('memory://', service='w')\n@bus.subscriber('t', broadcast=True, retry=Retry())\ndef on(): ...",
            Exit.CONFIGURATION,
            "takes no retry=",
        ),
        ("bus = Bus('smoke://signals', service='w')\n@bus.handler('t')\ndef on(): ...", Exit.CONFIGURATION, "smoke"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(folder: Folder, source: str, code: Exit, words: str) -> None:
    folder.write("bad", f"from busline import Bus, Retry\n{source}\n")
    run = folder.run("worker", "bad:bus")
    assert run.returncode == code, run.stderr
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: ")
    assert words in run.stderr


def test_a_topic_that_another_service_owns_is_refused_in_one_line(folder: Folder) -> None:
    folder.write(
        "other",
        "from busline import Bus\nbus = Bus('sqlite:///bus.db', service='other')\n"
        "@bus.handler('add')\ndef add(): ...\n",
    )
    folder.worker("app:bus").until_ready()
    run = folder.run("worker", "other:bus")
    assert run.returncode == Exit.CONFIGURATION
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1


def test_a_database_that_is_none_is_an_error_in_one_line(folder: Folder) -> None:
    (folder.path / "bus.db").write_bytes(b"no database " * 500)
    run = folder.run("worker", "app:bus")
    assert run.returncode in (Exit.CONFIGURATION, Exit.UNREACHABLE)
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    with closing(sqlite3.connect(folder.path / "bus.db")) as db, pytest.raises(sqlite3.DatabaseError):
        db.execute("select * from sqlite_schema")


def test_a_traceback_is_shown_on_request(folder: Folder) -> None:
    folder.write("bad", "raise OSError('no disk')")
    run = folder.run("worker", "bad:bus", "-v")
    assert "Traceback" in run.stderr
    assert run.stderr.splitlines()[-1].startswith("error: ")
