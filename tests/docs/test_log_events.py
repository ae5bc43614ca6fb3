"""The table of log events in docs/operations.md and the code agree: on names, levels and fields."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from busline.cli.board import Board
from busline.metrics import Family, Metrics

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
METHODS = {f"log.{method}" for method in ("debug", "info", "warning", "error", "critical", "log")}
OF_MESSAGE = {"id", "topic", "queue"}
"""What `_fields` of telemetry.py adds."""
STATUSES = ("degraded", "down")
"""The events of what the worker logs under the name of the transport's status."""


@dataclass
class Event:
    """As the code has it, in all places together."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def log_calls(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in METHODS:
                    yield node, function


def extra_of(call: ast.Call, function: ast.AST) -> ast.expr:
    """What is given as `extra=`, or assigned in this function to the name that is given."""
    (extra,) = [keyword.value for keyword in call.keywords if keyword.arg == "extra"]
    if not isinstance(extra, ast.Name):
        return extra
    (value,) = [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == extra.id
    ]
    return value


def told(extra: ast.expr) -> tuple[tuple[str, ...], set[str]]:
    """Names of the events, and their fields."""
    if isinstance(extra, ast.Dict):
        keys = [key.value for key in extra.keys if isinstance(key, ast.Constant)]
        assert len(keys) == len(extra.keys), ast.unparse(extra)
        value = extra.values[keys.index("event")]
        names = (value.value,) if isinstance(value, ast.Constant) else STATUSES
        assert isinstance(value, ast.Constant) or ast.unparse(value) == "health.status", ast.unparse(extra)
        return names, set(keys) - {"event"}
    assert isinstance(extra, ast.Call), ast.unparse(extra)
    assert ast.unparse(extra.func) == "_fields", ast.unparse(extra)
    assert isinstance(extra.args[0], ast.Constant)
    return (extra.args[0].value,), OF_MESSAGE | {str(keyword.arg) for keyword in extra.keywords}


def in_code() -> dict[str, Event]:
    events: dict[str, Event] = defaultdict(Event)
    for path in sorted((ROOT / "busline").rglob("*.py")):
        for call, function in log_calls(ast.parse(path.read_text())):
            assert isinstance(call.func, ast.Attribute)
            names, fields = told(extra_of(call, function))
            for name in names:
                events[name].levels.add(call.func.attr)
                events[name].fields |= fields
    return events


def in_table() -> dict[str, tuple[str, set[str]]]:
    text = OPERATIONS.read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|(.*?)\| .+ \|$", text, re.MULTILINE)
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names))
    assert names == sorted(names)
    return {name: (levels, set(re.findall(r"`(\w+)`", fields))) for name, levels, fields in rows}


def test_the_table_names_every_event_with_its_level_and_fields() -> None:
    code, table = in_code(), in_table()
    assert {name: event.fields for name, event in code.items()} == {name: row[1] for name, row in table.items()}
    for name, event in code.items():
        if event.levels != {"log"}:  # where the level is computed, the table says which it can be
            assert set(table[name][0].split(", ")) == event.levels, name


def test_no_line_is_written_past_the_logger() -> None:
    for path in sorted((ROOT / "busline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "logging.info", "logging.warning"}:
                raise AssertionError(f"{path}: {ast.unparse(node)}")


def test_the_table_of_metrics_names_each_with_its_labels() -> None:
    rows = re.findall(r"^\| `(busline_\w+)` \|(.*?)\| .+ \|$", OPERATIONS.read_text(), re.MULTILINE)
    table = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    families = [*Metrics().families(), *Board(1).families()]
    assert {_shown(family): family.labels for family in families} == table


def _shown(family: Family) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


if __name__ == "__main__":  # the rows of the table, without their meanings
    for name, event in sorted(in_code().items()):
        print(
            f"| `{name}` | {', '.join(sorted(event.levels))} | {', '.join(f'`{f}`' for f in sorted(event.fields))} | |"
        )
