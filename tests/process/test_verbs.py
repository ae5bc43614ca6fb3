"""The three verbs by hand, against a worker in another process."""

import json
import time

from busline.cli.exits import Exit
from process.commands import Folder


def test_the_three_verbs_reach_a_worker(folder: Folder) -> None:
    folder.worker("app:bus").until_ready()
    run = folder.run("call", "add", '{"a": 19, "b": 23}')
    assert (run.returncode, run.stdout, run.stderr) == (Exit.OK, "42\n", "")
    assert folder.run("call", "add", "-", stdin='{"a": 1}').stdout == "1\n"
    folder.open_gate()
    run = folder.run("send", "hold", '"it"', "--priority", "1", "--ttl", "60", "--header", "k=v")
    assert run.returncode == Exit.OK
    assert len(run.stdout.split()) == 1
    folder.until_noted("end it")
    assert folder.run("publish", "user.created", '"Ada"').stdout == "published user.created\n"
    folder.until_noted("user Ada")


def test_a_delayed_job_waits(folder: Folder) -> None:
    folder.open_gate()
    folder.worker("app:bus").until_ready()
    folder.run("send", "hold", '"late"', "--delay", "6")
    sent_at = time.monotonic()
    folder.run("send", "hold", '"now"')
    folder.until_noted("end late")
    assert time.monotonic() - sent_at > 3
    assert folder.notes.index("end now") < folder.notes.index("end late")


def test_failures_are_one_line_and_an_exit_code(folder: Folder) -> None:
    folder.worker("app:bus", "--concurrency", "1").until_ready()
    run = folder.run("call", "fail")
    assert (run.returncode, run.stderr) == (Exit.FAILED, "error: ValueError: out of paper and ink\n")
    run = folder.run("call", "hold", '"it"', "--timeout", "0.3")
    assert run.returncode == Exit.TIMEOUT
    assert "within 0.3 s" in run.stderr
    run = folder.run("call", "add", "{a: 1}")
    assert run.returncode == Exit.USAGE
    assert run.stderr.startswith("error: the payload is not JSON")


def test_nobody_handles_it_is_said_at_once_and_names_the_file(folder: Folder) -> None:
    started_at = time.monotonic()
    run = folder.run("call", "no.such.topic", "--timeout", "30")
    assert time.monotonic() - started_at < 10
    assert run.returncode == Exit.NO_HANDLER
    assert f"'no.such.topic' at {folder.path.resolve()}/bus.db" in run.stderr
    assert run.stderr.count("\n") == 1
    assert folder.run("send", "no.such.topic").returncode == Exit.NO_HANDLER


def test_repeated_calls_are_counted_and_one_failure_is_a_failure(folder: Folder) -> None:
    folder.worker("app:bus").until_ready()
    run = folder.run("call", "add", '{"a": 1}', "--repeat", "3")
    lines = run.stdout.splitlines()
    assert run.returncode == Exit.OK
    assert [line.split()[:2] for line in lines[:3]] == [["1/3", "ok"], ["2/3", "ok"], ["3/3", "ok"]]
    assert lines[3].startswith("3 ok, 0 failed; p50 ")
    run = folder.run("call", "fail", "--repeat", "2")
    assert run.returncode == Exit.FAILED
    assert run.stdout.splitlines()[0] == "1/2 FAILED: ValueError: out of paper and ink"
    assert run.stdout.splitlines()[-1] == "0 ok, 2 failed"


def test_handlers_are_listed_without_a_broker(folder: Folder) -> None:
    run = folder.run("handlers", "app:bus")
    rows = [line.split() for line in run.stdout.splitlines()]
    assert rows[0] == ["TOPIC", "KIND", "QUEUE", "FUNCTION", "PLACE"]
    assert ["add", "handler", "work", "app:add"] in [row[:4] for row in rows]
    listed = json.loads(folder.run("handlers", "app:bus", "--json").stdout)
    assert {"topic": "user.*", "kind": "subscriber", "queue": "work.on_user"}.items() <= listed[-1].items()
    assert not (folder.path / "bus.db").exists()
