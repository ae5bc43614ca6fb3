"""`busline jobs`, by hand: what is told of jobs, and what is done about them."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest

from busline.cli.exits import Exit

from .commands import COMMAND, Folder, until

APP = """
import asyncio
from pathlib import Path
from busline import Bus, Context, Idempotency, Retry

bus = Bus("sqlite:///bus.db", service="jobs")

@bus.handler("jobs.count", retry=Retry(max_retries=0), idempotency=Idempotency(lease=0.6))
async def count(rows: int, ctx: Context) -> int:
    for row in range(rows):
        await ctx.progress(row + 1, rows, "rows")
    while (Path(__file__).parent / "wait").exists():
        await asyncio.sleep(0.05)
    if rows == 13:
        raise ValueError("bad luck")
    return rows
"""


@pytest.fixture
def working(folder: Folder) -> Folder:
    """A folder whose worker serves `jobs.count`."""
    folder.write("app", APP)
    folder.worker("app:bus").until_ready()
    return folder


def sent(folder: Folder, rows: int) -> str:
    run = folder.run("send", "jobs.count", str(rows), "--track", "--url", "sqlite:///bus.db")
    assert run.returncode == Exit.OK, run.stderr
    return run.stdout.strip()


def jobs(folder: Folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    return folder.run("jobs", *arguments, "--url", "sqlite:///bus.db")


def test_a_job_is_watched_shown_and_listed(working: Folder) -> None:
    id = sent(working, 3)
    watched = jobs(working, "watch", id)
    assert watched.returncode == Exit.OK
    assert watched.stdout.splitlines()[-1] == "SUCCESS 3/3 rows 3"
    told = json.loads(jobs(working, "show", id, "--json").stdout)
    assert (told["state"], told["current"], told["total"], told["note"], told["result"]) == ("SUCCESS", 3, 3, "rows", 3)
    assert f"{id}  jobs.count  SUCCESS  3/3 rows" in jobs(working, "list").stdout
    assert [each["id"] for each in json.loads(jobs(working, "list", "--json").stdout)] == [id]


def test_a_failed_job_is_retried_by_hand(working: Folder) -> None:
    id = sent(working, 13)
    watched = jobs(working, "watch", id, "--json")
    assert watched.returncode == Exit.FAILED
    last = json.loads(watched.stdout.splitlines()[-1])
    assert (last["state"], last["error"]["message"]) == ("FAILURE", "bad luck")
    again = jobs(working, "retry", id)
    assert (again.returncode, again.stdout) == (Exit.OK, f"sent {id} again\n")
    assert jobs(working, "watch", id).returncode == Exit.FAILED
    assert jobs(working, "cancel", id).stderr == f"error: job {id} had ended: FAILURE\n"


def test_a_running_job_is_cancelled_and_an_unknown_one_is_told_of(working: Folder) -> None:
    (working.path / "wait").touch()
    id = sent(working, 2)
    until(lambda: json.loads(jobs(working, "show", id, "--json").stdout)["current"] == 2, "it runs")
    assert jobs(working, "cancel", id).returncode == Exit.OK
    assert jobs(working, "watch", id).stdout.splitlines()[-1].startswith("CANCELLED")
    unknown = jobs(working, "show", "no-such-id")
    assert unknown.returncode == Exit.FAILED
    assert "the store knows no job 'no-such-id'" in unknown.stderr


def test_a_terminal_shows_a_bar_that_moves(working: Folder) -> None:
    (working.path / "wait").touch()
    id = sent(working, 4)
    terminal, ours = pty.openpty()
    shown = b""
    try:
        watching = subprocess.Popen(
            [*COMMAND, "jobs", "watch", id, "--url", "sqlite:///bus.db"],
            cwd=working.path,
            env=working.environment | {"TERM": "xterm", "COLUMNS": "100"},
            stdout=ours,
        )
        while b"4/4 rows" not in shown or b"STARTED" not in shown:
            shown += os.read(terminal, 100_000)
        assert b"SUCCESS" not in shown
        (working.path / "wait").unlink()
        while b"SUCCESS" not in shown:
            shown += os.read(terminal, 100_000)
        assert watching.wait(60) == Exit.OK
    finally:
        os.close(terminal)
        os.close(ours)
    assert "━" in shown.decode()


EARLY = """
import os, signal
from busline import Bus, Idempotency

bus = Bus("sqlite:///bus.db", service="jobs")

@bus.handler("jobs.early", ack="early", idempotency=Idempotency(lease=0.5))
async def early(text: str) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_orphans_are_recovered_by_hand(folder: Folder) -> None:
    folder.write("app", EARLY)
    worker = folder.worker("app:bus")
    worker.until_ready()
    run = folder.run("send", "jobs.early", '"x"', "--track", "--url", "sqlite:///bus.db")
    id = run.stdout.strip()
    worker.exit_code()
    until(lambda: folder.run("jobs", "recover", "app:bus").stdout == "ended 1 orphan\n", "its lease has ended")
    told = json.loads(jobs(folder, "show", id, "--json").stdout)
    assert (told["state"], told["error"]["type"]) == ("FAILURE", "busline.orphaned")
    assert folder.run("jobs", "recover", "app:bus").stdout == "ended 0 orphans\n"
