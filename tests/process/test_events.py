"""`busline events` shows what happens to messages while it happens."""

import os
import signal

import orjson
import pytest

from busline.cli.events import _Printer
from busline.cli.exits import Exit
from busline.message import Message
from busline.wire import Envelope
from process.commands import Folder, tail


def test_each_step_of_a_message_is_a_line_of_json(folder: Folder) -> None:
    folder.worker("app:bus").until_ready()
    with tail(folder, "--json", "--topic", "add", "--count", "4") as events:
        assert folder.run("call", "add", '{"a": 1}').returncode == Exit.OK
        assert events.process.wait(30) == Exit.OK
        told = [orjson.loads(line) for line in events.lines]
    assert {each["kind"] for each in told} == {"sent", "received", "started", "succeeded"}
    assert len({each["id"] for each in told}) == 1
    assert all(each["topic"] == "add" and each["attempt"] == 1 and each["conversation"] == each["id"] for each in told)
    assert {each["queue"] for each in told if each["kind"] == "started"} == {"work"}


def test_only_what_was_asked_for_is_shown_in_one_line_each(folder: Folder) -> None:
    folder.worker("app:bus").until_ready()
    with tail(folder, "--kind", "retried", "--kind", "failed", "--count", "1") as events:
        assert folder.run("call", "add", '{"a": 1}').returncode == Exit.OK
        assert folder.run("call", "fail").returncode == Exit.FAILED
        assert events.process.wait(30) == Exit.OK
        (line,) = events.lines
    assert line.split()[1:3] == ["failed", "fail"]
    assert "error=ValueError" in line
    assert "out of paper and ink" in line


def test_one_conversation_is_followed_by_the_beginning_of_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    printer = _Printer("root", count=2, as_json=True)
    for ident, root in (("root-message", ""), ("other", "elsewhere"), ("reaction", "root-message"), ("root-2", "")):
        body = orjson.dumps({"id": ident, "topic": "add", "attempt": 1, "at": 1.0})
        cause = Envelope("event", 1.0, correlation_id=root or ident)
        printer.show(Message("busline.event.started.add", body, cause.encode()))
    assert [orjson.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["root-message", "reaction"]
    assert printer.done


def test_what_others_publish_under_our_name_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _Printer("", count=None, as_json=False).show(Message("busline.event.started.add", b"no JSON"))
    assert "is no event of ours" in capsys.readouterr().err


def test_a_tail_ends_at_ctrl_c(folder: Folder) -> None:
    with tail(folder) as events:
        os.kill(events.process.pid, signal.SIGINT)
        assert events.process.wait(20) == Exit.INTERRUPTED


@pytest.mark.parametrize("arguments", [["--kind", "lost"], ["--topic", "a b."]])
def test_a_filter_that_makes_no_sense_is_refused(folder: Folder, arguments: list[str]) -> None:
    run = folder.run("events", *arguments)
    assert run.returncode in (Exit.USAGE, Exit.CONFIGURATION)
    assert run.stderr.count("\n") == 1
