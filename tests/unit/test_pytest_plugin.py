"""The fixtures of busline under the plugins that people use to run async tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APP = """
import pytest
from busline import Bus

@pytest.fixture
def bus():
    bus = Bus("amqp://nowhere.invalid/", service="shop")
    @bus.handler("mail.send")
    async def send(text: str) -> str:
        return text.upper()
    return bus
"""
TEST = """
async def test_it(bus_test):
    await bus_test.send_and_settle("mail.send", "tea")
    assert bus_test.handled.one().payload == "tea"
    assert await bus_test.call("mail.send", "milk") == "MILK"
"""
ANYIO = """
import pytest
pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
STRICT = """
import pytest, pytest_asyncio
from busline.testing import BusTest

@pytest_asyncio.fixture
async def bus_test(bus):
    async with BusTest(bus) as t:
        yield t

pytestmark = pytest.mark.asyncio
"""

ASYNCIO = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
AUTO = (*ASYNCIO, "-o", "asyncio_mode=auto")
STRICTLY = (*ASYNCIO, "-o", "asyncio_mode=strict")


def run(folder: Path, text: str, *options: str) -> str:
    (folder / "test_app.py").write_text(text)
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    command = (sys.executable, "-m", "pytest", "-q", "-p", "_busline_pytestplugin", "-W", "error", *options)
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (APP + TEST, AUTO),
        (APP + STRICT + TEST, STRICTLY),
        (APP + ANYIO + TEST, ("-p", "anyio.pytest_plugin")),
        (APP + ANYIO + TEST, ("-p", "anyio.pytest_plugin", *STRICTLY)),
    ],
    ids=["asyncio-auto", "asyncio-strict", "anyio", "both"],
)
def test_the_fixture_gives_an_open_test_of_the_bus(text: str, options: tuple[str, ...], tmp_path: Path) -> None:
    shown = run(tmp_path, text, *options)
    assert "1 passed" in shown, shown


def test_who_wrote_no_bus_is_told_so(tmp_path: Path) -> None:
    shown = run(tmp_path, TEST, *AUTO)
    assert "write a fixture `bus`" in shown


def test_loading_the_plugin_loads_nothing_of_busline() -> None:
    code = "import sys, _busline_pytestplugin; print([name for name in sys.modules if name.startswith('busline')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"busline": "_busline_pytestplugin"}
    assert project["tool"]["setuptools"]["py-modules"] == ["_busline_pytestplugin"]
