"""Each BUSLINE_… variable of `busline worker` does what its option does, and the option wins."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from busline.cli import worker
from busline.cli.app import app, run
from busline.cli.exits import Exit
from busline.cli.logs import chosen

VALUES = {
    "--concurrency": ("3", "4"),
    "--processes": ("2", "3"),
    "--prefetch": ("5", "6"),
    "--queues": ("mail,bulk*", "mail"),
    "--name": ("blue", "red"),
    "--shutdown-timeout": ("1.5", "2"),
    "--block-timeout": ("4", "3"),
    "--max-messages-per-process": ("100", "200"),
    "--max-memory-per-process": ("300", "400"),
    "--health-port": ("8100", "8101"),
    "--health-host": ("::1", "0.0.0.0"),
    "--loop": ("asyncio", "uvloop"),
    "--log-level": ("error", "debug"),
    "--log-format": ("json", "text"),
}
"""A value of each option, and another one."""
FLAGS = ["--otel", "--reload"]
SWITCHES = ["--control"]
"""They can be off, too, which is not the same as nothing said."""


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What each worker would have been started with."""
    seen: list[dict[str, Any]] = []

    def lead(options: worker.Options, board: object, probes: Any, leader: object, *, reload: bool) -> int:
        health = None if probes is None else (probes._host, probes._port)
        form = (chosen(), logging.getLogger().level)
        seen.append({"options": options, "health": health, "reload": reload, "logs": form})
        return Exit.OK

    monkeypatch.setattr(worker, "_lead", lead)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield seen
    root.setLevel(level)
    root.handlers[:] = handlers


def variable(option: str) -> str:
    return "BUSLINE_" + option.removeprefix("--").replace("-", "_").upper()


@pytest.mark.parametrize("option", VALUES)
def test_a_variable_does_what_its_option_does_and_the_option_wins(
    option: str, led: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, another = VALUES[option]
    port = ["--health-port", "0"] if option == "--health-host" else []  # without one the host means nothing
    run(["worker", "app:bus", *port])
    run(["worker", "app:bus", *port, option, value])
    monkeypatch.setenv(variable(option), value)
    run(["worker", "app:bus", *port])
    run(["worker", "app:bus", *port, option, another])
    default, given, inherited, overridden = led
    assert given == inherited
    assert default != given != overridden


def test_the_health_port_is_open_to_this_machine_only_unless_told_otherwise(led: list[dict[str, Any]]) -> None:
    run(["worker", "app:bus", "--health-port", "8100"])
    assert led[0]["health"] == ("127.0.0.1", 8100)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_variable_sets_its_flag(flag: str, led: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    run(["worker", "app:bus", flag])
    for value in ("1", "0"):
        monkeypatch.setenv(variable(flag), value)
        run(["worker", "app:bus"])
    monkeypatch.delenv(variable(flag))
    run(["worker", "app:bus"])
    given, inherited, refused, default = led
    assert given == inherited != default == refused


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_variable_turns_its_switch_on_and_off(
    switch: str, led: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["worker", "app:bus"])
    for given, value in ((switch, "1"), (switch.replace("--", "--no-"), "0")):
        run(["worker", "app:bus", given])
        monkeypatch.setenv(variable(switch), value)
        run(["worker", "app:bus"])
        monkeypatch.delenv(variable(switch))
    default, on, turned_on, off, turned_off = led
    assert on == turned_on != default
    assert off == turned_off != default
    assert on != off


def test_no_option_is_without_a_variable_and_none_is_missing_here_or_in_the_documents() -> None:
    group: Any = typer.main.get_command(app)
    options = {
        each.opts[0]: each.envvar
        for each in (*group.params, *group.commands["worker"].params)
        if each.param_type_name == "option" and not each.hidden and not {*each.opts} & {"--version", "--verbose"}
    }
    assert options == {name: variable(name) for name in (*VALUES, *FLAGS, *SWITCHES)}
    table = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| `(--[a-z-]+)[^`]*` \| `(BUSLINE_\w+)` \|", table, re.MULTILINE)
    assert options == dict(rows)
