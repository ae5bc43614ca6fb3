"""The command line within one process: what is parsed, what is refused, in which words and with which code."""

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from busline.catalog import served
from busline.cli import load
from busline.cli.app import run, split
from busline.cli.describe import plan_of
from busline.cli.exits import Exit, Failure, exit_for, legend
from busline.cli.logs import EventFormatter
from busline.cli.loops import Loop, factory_of
from busline.cli.supervisor import BackOff
from busline.cli.verbs import Tally, read_headers, read_payload
from busline.errors import (
    BuslineError,
    CallTimeout,
    ConfigurationError,
    ConnectionLost,
    NoHandler,
    QueueNotFound,
    RemoteError,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what a command changes in this process is undone."""
    root = logging.getLogger()
    handlers, level, modules = root.handlers[:], root.level, set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    importlib.invalidate_caches()
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


SERVICE = """
import functools
from busline import Bus, Retry, Router
bus = Bus("memory://", service="shop")
empty = Bus(service="shop")
router = Router()

@bus.handler("orders.create", retry=Retry(delays=[5, 60]))
async def create(order: dict) -> str: ...

@bus.handler("orders.bill", queue="billing")
@functools.lru_cache
def bill(order: int) -> str: ...

@bus.subscriber("user.*")
async def on_user(user: str): ...

@bus.subscriber("config.#", broadcast=True)
async def reload(config: dict): ...
"""


@pytest.fixture
def service(folder: Path) -> None:
    (folder / "service.py").write_text(SERVICE)


def refused(app: str) -> Failure:
    with pytest.raises(Failure) as caught:
        load.load_bus(app)
    return caught.value


@pytest.mark.parametrize("app", ["", "service", "service:", ":bus", "service:bus:bus", "a/b:bus", "service:bus()"])
def test_what_is_not_a_module_and_a_name_is_a_usage_error(app: str) -> None:
    assert refused(app).code == Exit.USAGE


def test_a_missing_module_is_told_from_a_missing_import_of_it(folder: Path) -> None:
    (folder / "importer.py").write_text("import something.missing")
    (folder / "package").mkdir()
    assert "there is no module 'absent'" in str(refused("absent.module:bus"))
    assert "there is no module 'package.absent'" in str(refused("package.absent:bus"))
    missing = refused("importer:bus")
    assert missing.code == Exit.NO_APP
    assert "'importer' imports 'something', which is not there" in str(missing)
    assert f"{folder}/importer.py, line 1" in str(missing)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("\n1 / 0", "ZeroDivisionError: division by zero ({folder}/broken.py, line 2)"),
        ("def (", "SyntaxError"),
        ("from os import no_such_thing", "ImportError"),
        ("raise SystemExit('not now')", "SystemExit: not now"),
    ],
)
def test_a_module_that_raises_is_named_with_the_line(folder: Path, source: str, words: str) -> None:
    (folder / "broken.py").write_text(source)
    error = refused("broken:bus")
    assert error.code == Exit.NO_APP
    assert words.format(folder=folder) in str(error)
    assert error.__cause__ is not None


def test_a_wrong_name_is_answered_with_the_right_ones(service: None, folder: Path) -> None:
    assert str(refused("service:buss")) == "'service' has no 'buss'; a Bus is service:bus and service:empty"
    assert "is a function, not a Bus" in str(refused("service:create"))
    assert "is a Router, to be included in a bus" in str(refused("service:router"))
    assert "is the class Bus" in str(refused("service:Bus"))
    (folder / "plain.py").write_text("handlers = 1")
    assert "did you mean 'handlers'?" in str(refused("plain:handler"))
    assert "has no Bus at all" in str(refused("plain:xyz"))


def test_a_bus_may_be_within_an_object(folder: Path) -> None:
    (folder / "nested.py").write_text("from busline import Bus\nclass Services:\n    bus = Bus(service='deep')")
    assert load.load_bus("nested:Services.bus").service == "deep"
    assert "has no 'Services.bus.bus'" in str(refused("nested:Services.bus.bus"))


def test_every_handler_is_described(service: None) -> None:
    rows = [
        (row.topic, row.kind, row.queue, row.function, row.retry)
        for row in served(plan_of("service:bus", load.load_bus("service:bus")))
    ]
    assert rows == [
        ("orders.create", "handler", "shop", "service:create", "2×, first after 5 s"),
        ("orders.bill", "handler", "billing", "service:bill", "calls never; jobs 3×, first after 2 s"),
        ("user.*", "subscriber", "shop.on_user", "service:on_user", "3×, first after 2 s"),
        ("config.#", "broadcast", "shop.reload.*", "service:reload", "never"),
    ]


def test_handlers_are_listed_the_same_way_in_every_pipe(service: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["handlers", "service:bus"]) == Exit.OK
    header, first, *rest = capsys.readouterr().out.splitlines()
    assert header == "TOPIC          KIND        QUEUE          FUNCTION         PLACE"
    assert first == "orders.create  handler     shop           service:create   service.py:8"
    assert len(rest) == 3
    assert run(["handlers", "service:bus", "--json"]) == Exit.OK
    assert [row["place"] for row in json.loads(capsys.readouterr().out)][:2] == ["service.py:8", "service.py:11"]


def test_a_bus_without_handlers_is_refused_in_one_line(service: None, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["worker", "--processes", "0"], ["handlers"]):
        assert run([*command, "service:empty"]) == Exit.NO_HANDLER
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: service:empty has no handlers and no subscribers: import ")
        assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["worker"], "MODULE:BUS"),
        (["worker", "a:b", "--concurrency", "0"], "--concurrency"),
        (["worker", "a:b", "--processes", "none"], "--processes"),
        (["worker", "a:b", "--drain-timeout", "-1"], "--drain-timeout"),
        (["wroker"], "wroker"),
        (["call", "t", "{"], "not JSON"),
        (["call", "t", "1", "--header", "k"], "KEY=VALUE"),
        (["call", "t", "--repeat", "0"], "--repeat"),
        (["--log-level", "loud", "handlers", "a:b"], "loud"),
        (["send", "t", "--log-level"], "--log-level"),
    ],
)
def test_a_command_line_without_sense_is_one_line_and_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == Exit.USAGE
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert words in shown


def test_what_cannot_be_configured_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["call", "t", "--url", "smoke://signals"]) == Exit.CONFIGURATION
    assert run(["call", "t.*", "--url", "memory://", "--timeout", "0"]) == Exit.CONFIGURATION
    assert "timeout" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == Exit.OK
    assert capsys.readouterr().out.startswith("busline ")
    assert run(["--help"]) == Exit.OK
    assert "Exit codes" in capsys.readouterr().out
    assert run([]) in (Exit.OK, Exit.USAGE)
    shown = capsys.readouterr()
    assert "worker" in shown.out
    assert shown.err == ""


def test_tracebacks_are_shown_on_request_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.py").write_text("1 / 0")
    run(["handlers", "broken:bus"])
    assert "Traceback" not in capsys.readouterr().err
    run(["handlers", "broken:bus", "-v"])
    assert "Traceback" in capsys.readouterr().err


def test_shared_options_may_stand_anywhere() -> None:
    assert split(["call", "-v", "t", "--log-level", "debug"]) == (["-v", "--log-level", "debug"], ["call", "t"])
    assert split(["send", "t", "--log-level=info"]) == (["--log-level=info"], ["send", "t"])
    assert split(["send", "--", "-v"]) == ([], ["send", "--", "-v"])
    assert split(["send", "--log-level"]) == (["--log-level"], ["send"])


def test_codes_are_distinct_and_all_explained() -> None:
    assert len({code.value for code in Exit}) == len(Exit)
    assert all(f"{code.value} {code.meaning}" in legend() for code in Exit)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError(""), Exit.CONFIGURATION),
        (CallTimeout("t", 1.0, "queued", ""), Exit.TIMEOUT),
        (NoHandler("t", ""), Exit.NO_HANDLER),
        (QueueNotFound("q"), Exit.NO_HANDLER),
        (ConnectionLost(), Exit.UNREACHABLE),
        (RemoteError("E", "text"), Exit.FAILED),
        (BuslineError(), Exit.FAILED),
        (OSError(), Exit.FAILED),
        (Failure(Exit.NO_APP, ""), Exit.NO_APP),
    ],
)
def test_every_error_has_its_code(error: Exception, code: Exit) -> None:
    assert exit_for(error) == code


def test_payloads_and_headers_are_read() -> None:
    assert read_payload(None) is None
    assert read_payload('{"a": [1, "é"]}') == {"a": [1, "é"]}
    assert read_headers(None) == {}
    assert read_headers(["k=v", "empty=", "url=a=b"]) == {"k": "v", "empty": "", "url": "a=b"}
    with pytest.raises(Failure, match="KEY=VALUE"):
        read_headers(["=v"])


def test_a_tally_tells_the_median_and_the_slowest() -> None:
    assert Tally(failed=2).summary() == "0 ok, 2 failed"
    assert Tally([float(n) for n in range(1, 101)]).summary() == "100 ok, 0 failed; p50 50.0 ms, p99 99.0 ms"
    assert Tally([7.0], failed=1).summary() == "1 ok, 1 failed; p50 7.0 ms, p99 7.0 ms"


def test_pauses_double_to_a_limit_and_are_short_again_after_a_long_life() -> None:
    back_off = BackOff()
    assert [back_off.after(0.0) for _ in range(9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert [back_off.after(10.0), back_off.after(0.0)] == [0.1, 0.2]


def test_a_log_line_names_its_event() -> None:
    record = logging.LogRecord("busline", logging.INFO, "", 0, "it %s", ("works",), None)
    assert EventFormatter().format(record).endswith(f"INFO    [{record.process}] busline: it works")
    record.event = "retried"
    assert EventFormatter().format(record).endswith("] retried: it works")


def test_without_uvloop_the_loop_is_asyncios(monkeypatch: pytest.MonkeyPatch) -> None:
    assert factory_of(Loop.AUTO) is not None
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed
    assert factory_of(Loop.AUTO) is None
    with pytest.raises(Failure, match=r"pip install 'busline\[uvloop\]'"):
        factory_of(Loop.UVLOOP)
