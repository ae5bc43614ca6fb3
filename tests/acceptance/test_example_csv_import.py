"""The example's import goes on where it was when its worker is killed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from process.commands import Folder

from busline import Bus

EXAMPLE = Path(__file__).parents[2] / "examples" / "csv_import"
ROWS = 3376


@pytest.mark.timeout(90)
async def test_an_import_goes_on_where_it_was_when_its_worker_is_killed(folder: Folder) -> None:
    for name in ("app.py", "airports.csv"):
        shutil.copy(EXAMPLE / name, folder.path)
    worker = folder.worker("app:bus")
    worker.until_ready()
    seen: list[float] = []
    killed_at = 0
    async with Bus(folder.url) as bus:
        job = await bus.send("airports.import", {"file": "airports.csv"}, track=True)
        async for said in job.progress():
            seen.append(said.current)
            if not killed_at and said.current >= 500:
                os.kill(worker.pids[-1], signal.SIGKILL)
                killed_at = len(seen)
        assert await job.result(30) == ROWS
        assert (await job.info()).attempts == 2
    assert seen == sorted(seen)
    assert seen[killed_at] > 500  # and not the first batch again
    with closing(sqlite3.connect(folder.path / "airports.db")) as db:
        assert db.execute("SELECT count(*) FROM airport").fetchone() == (ROWS,)
