"""The layers of docs/design.md, held by reading every import; and the sizes that keep modules readable."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "busline"
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 45

LAYERS = [
    ("values", {"errors", "message", "topics", "clock", "structs"}),
    ("ports", {"codec", "transports.base", "stores.base", "stores.urls"}),
    # `transports` itself only maps a scheme to the name of a driver, which it loads when a URL asks for it.
    (
        "decisions",
        {
            "wire",
            "retry",
            "options",
            "limits",
            "outcome",
            "binding",
            "context",
            "registry",
            "routes",
            "replies",
            "catalog",
            "wheel",
            "references",
            "overrides",
            "signatures",
            "within",
            "idempotency",
            "parcels",
            "claiming",
            # Handles for users, like `context`: all their awaiting is for the ports.
            "jobs",
        }
        | {"transports", "stores"},
    ),
    (
        "engines",
        {
            "telemetry",
            "observing",
            "metrics",
            "calls",
            "lease",
            "gates",
            "events",
            "outbox",
            "work",
            "driving",
            "executors",
            "running",
        }
        | {"storing", "held", "claims", "orphans", "recovering", "injection", "lifespan"}
        | {
            "services",
            "settling",
            "handling",
            "slots",
            "worker",
            "dead_letters",
            "lines",
            "control",
            "operated",
            "tails",
            "process",
        },
    ),
    ("façade", {"bus", "verbs", "router", "clients", "remote", "depends", "sync", "sync_jobs", ""}),
    ("edges", {"cli", "testing", "demo", "integrations", "__main__"}),
]
"""From the bottom; whoever stands above may import whoever stands below, and its own layer."""
CLIENT_LIBRARIES = {
    "transports.amqp": {"aio_pika", "aiormq", "pamqp", "yarl"},
    "stores.redis": {"redis"},
    "stores.postgres": {"asyncpg"},
    "stores.dynamodb": {"aiobotocore", "botocore"},
    "transports.sqs": {"aiobotocore", "aiohttp", "botocore"},
}
"""By driver, e.g. "transports.memory": what it, and nobody else, may import. Those not listed need none."""
THIRD_PARTY = {"anyio", "orjson", "pydantic", "pydantic_core"}
EDGE_THIRD_PARTY = THIRD_PARTY | {"rich", "typer", "click", "watchfiles"}
INTEGRATED = {
    "cli.loops": {"uvloop"},
    "depends": {"fast_depends"},
    "injection": {"fast_depends"},
    "integrations.aiohttp": {"aiohttp"},
    "integrations.app_metrics": {"prometheus_client"},
    "integrations.fastapi": {"fastapi"},
    "integrations.otel": {"opentelemetry"},
    "integrations.prometheus": {"prometheus_client"},
    "integrations.starlette": {"starlette"},
}
"""By module that is imported only by those who use it: what it, and nobody else, joins busline to."""

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""By name below the package; "" is the package itself."""
DRIVERS = {".".join(name.split(".")[:2]) for name in MODULES if name.startswith(("transports.", "stores."))} - {
    "transports.base",
    "stores.base",
    "stores.urls",
}
each_module = pytest.mark.parametrize("name", MODULES, ids=lambda name: f"busline.{name}".rstrip("."))


def parse(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that are imported anywhere, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be read"
            assert node.module is not None
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            submodules = [full for full in below if full.removeprefix("busline.") in MODULES]
            yield from submodules or [node.module]


def internal(tree: ast.AST) -> set[str]:
    found = {name for name in imports(tree) if name.split(".")[0] == "busline"}
    return {name.removeprefix("busline").lstrip(".") for name in found}


def foreign(tree: ast.AST) -> set[str]:
    tops = {name.split(".")[0] for name in imports(tree)}
    return tops - set(sys.stdlib_module_names) - {"busline", "__future__"}


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def driver_of(name: str) -> str | None:
    return next((driver for driver in DRIVERS if is_within(name, driver)), None)


def rank_of(name: str) -> int:
    for rank, (layer, members) in enumerate(LAYERS):
        if name in members or (layer == "edges" and name.split(".")[0] in members):
            return rank
    raise AssertionError(f"busline.{name} stands in no layer: give it one, here and in docs/design.md")


@each_module
def test_dependencies_point_down(name: str) -> None:
    if driver_of(name):
        return
    rank = rank_of(name)
    for other in internal(parse(name)):
        if driver_of(other):
            assert LAYERS[rank][0] == "edges", f"busline.{name} imports the driver busline.{other}"
        else:
            assert rank_of(other) <= rank, f"busline.{name} imports busline.{other}, which stands above it"


@each_module
def test_a_driver_imports_values_ports_itself_and_its_client_library(name: str) -> None:
    driver = driver_of(name)
    if driver is None:
        return
    below = LAYERS[0][1] | {f"{driver.split('.')[0]}.{port}" for port in ("base", "urls")}
    tree = parse(name)
    strangers = {other for other in internal(tree) if other not in below and not is_within(other, driver)}
    assert not strangers
    assert foreign(tree) <= CLIENT_LIBRARIES.get(driver, set())
    if not name.endswith(".silence"):  # which keeps the client library from logging
        assert "logging" not in set(imports(tree)), "drivers are silent"


@each_module
def test_third_party_libraries_stay_where_they_belong(name: str) -> None:
    if driver_of(name):
        return
    allowed = EDGE_THIRD_PARTY if LAYERS[rank_of(name)][0] == "edges" else THIRD_PARTY
    assert foreign(parse(name)) <= allowed | INTEGRATED.get(name, set())


def test_the_values_and_ports_know_no_third_party_but_the_codec() -> None:
    for name in LAYERS[0][1] | {"transports.base", "stores.base"}:
        assert not foreign(parse(name)), f"busline.{name}"


def test_nothing_imports_in_circles() -> None:
    graph = {}
    for name in MODULES:
        tree = parse(name)
        for node in ast.walk(tree):  # what only a type checker sees may be circular
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        graph[name] = internal(tree) - {name}
    TopologicalSorter(graph).prepare()


@each_module
def test_modules_and_functions_stay_small(name: str) -> None:
    lines = len(MODULES[name].read_text().splitlines())
    assert lines <= MAX_MODULE_LINES, f"{lines} lines"
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@each_module
def test_public_names_are_documented(name: str) -> None:
    tree = parse(name)
    assert ast.get_docstring(tree), f"busline.{name} says not what it is for"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if any(ast.unparse(each) == "overload" for each in node.decorator_list):
                continue  # what it overloads has one
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@each_module
def test_all_is_sorted_and_true(name: str) -> None:
    module = importlib.import_module(f"busline.{name}".rstrip(".")) if name != "__main__" else None
    names = getattr(module, "__all__", None)
    if names is None:
        return
    assert list(names) == sorted(names)
    assert len(set(names)) == len(names)
    assert all(hasattr(module, public) for public in names)


def test_the_package_exports_what_it_imports_and_nothing_else() -> None:
    ours = [node for node in ast.walk(parse("")) if isinstance(node, ast.ImportFrom) and node.level == 0]
    imported = {alias.name for node in ours if (node.module or "").startswith("busline.") for alias in node.names}
    assert set(importlib.import_module("busline").__all__) == imported


def test_the_command_line_loads_what_serves_messages_only_once_it_serves_some() -> None:
    dear = "print(sorted({'pydantic', 'busline.worker', 'rich'} & set(sys.modules)))"
    command = [sys.executable, "-c", f"import sys, busline.cli; {dear}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


WATCHED_IMPORT = """
import sys
deeds = []
def watch(event, args):
    if event.startswith(("socket.", "sqlite3.", "subprocess.", "os.system", "os.mkdir", "os.remove", "tempfile.")):
        deeds.append((event, args))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        deeds.append((event, args))
sys.addaudithook(watch)
import busline
heavy = {"typer", "rich", "sqlite3", "fast_depends", "pydantic", "importlib.metadata"}
heavy |= {"busline.cli", "busline.binding", "busline.worker", "busline.transports.memory", "busline.transports.sqlite"}
print(sorted(heavy & set(sys.modules)), deeds)
"""


def test_importing_busline_does_nothing_and_loads_no_driver(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[] []"
    assert list(tmp_path.iterdir()) == []
