"""On which event loop the handlers of `busline worker` run."""

import subprocess
import sys

import pytest

from busline.cli.exits import Exit
from process.commands import Folder

APP = """
import asyncio
import gc
from busline import Bus
bus = Bus(service="loops")

@bus.handler("whose.loop")
async def whose() -> str:
    return type(asyncio.get_running_loop()).__module__

@bus.handler("how.much.is.left")
async def alone() -> int:
    return gc.get_freeze_count()
"""
MISSING = "import sys; sys.modules['uvloop'] = None; from busline.cli import main; sys.exit(main())"
"""As if uvloop were not installed."""


@pytest.mark.parametrize(
    ("asked", "processes", "has"),
    [((), "2", "uvloop"), (("--loop", "asyncio"), "1", "asyncio"), (("--loop", "uvloop"), "0", "uvloop")],
)
def test_handlers_run_on_uvloop_where_it_is_installed_unless_told_otherwise(
    folder: Folder, asked: tuple[str, ...], processes: str, has: str
) -> None:
    (folder.path / "loops.py").write_text(APP)
    folder.worker("loops:bus", "--processes", processes, *asked).until_ready(max(1, int(processes)))
    assert has in folder.run("call", "whose.loop").stdout


def test_no_garbage_collection_looks_at_what_the_app_was_begun_with(folder: Folder) -> None:
    (folder.path / "loops.py").write_text(APP)
    folder.worker("loops:bus", "--processes", "1").until_ready(1)
    assert int(folder.run("call", "how.much.is.left").stdout) > 10_000


def test_asking_for_a_uvloop_that_is_not_installed_names_the_extra(folder: Folder) -> None:
    (folder.path / "loops.py").write_text(APP)
    command = [sys.executable, "-c", MISSING, "worker", "loops:bus", "--processes", "0", "--loop"]
    refused = subprocess.run([*command, "uvloop"], cwd=folder.path, capture_output=True, text=True, check=False)
    assert refused.returncode == Exit.CONFIGURATION
    assert "pip install 'busline[uvloop]'" in refused.stderr
