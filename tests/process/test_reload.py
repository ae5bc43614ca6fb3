"""`busline worker --reload`: the processes follow the files."""

from busline.cli.exits import Exit
from process.commands import Folder

APP = """
from busline import Bus
bus = Bus(service="work")

@bus.handler("version")
async def version() -> str:
    return "{version}"
"""


def test_processes_are_replaced_when_a_file_changes_and_one_that_is_broken_waits_for_the_next_change(
    folder: Folder,
) -> None:
    folder.write("tool", APP.format(version="one"))
    worker = folder.worker("tool:bus", "--reload", "--processes", "2")
    worker.until_ready(2)
    assert folder.run("call", "version").stdout == '"one"\n'
    # Of another length than before: Python tells old byte code by the length and the second of its source.
    folder.write("tool", APP.format(version="second"))
    worker.until_ready(4)
    assert worker.logged("reloading") == 1
    assert folder.run("call", "version").stdout == '"second"\n'
    folder.write("tool", "this is no Python")
    worker.until_logged("reload_waits", 2)
    folder.write("tool", APP.format(version="the third"))
    worker.until_ready(6)
    assert folder.run("call", "version").stdout == '"the third"\n'
    worker.tell()
    assert worker.exit_code() == Exit.OK
    assert worker.logged("process_died") == 0


def test_an_app_that_is_broken_from_the_beginning_is_started_when_it_is_mended(folder: Folder) -> None:
    folder.write("tool", "this is no Python")
    worker = folder.worker("tool:bus", "--reload")
    worker.until_logged("reload_waits")
    folder.write("tool", APP.format(version="one"))
    worker.until_ready()
    worker.tell()
    assert worker.exit_code() == Exit.OK


def test_reload_needs_a_parent_that_replaces(folder: Folder) -> None:
    assert folder.run("worker", "app:bus", "--reload", "--processes", "0").returncode == Exit.USAGE
