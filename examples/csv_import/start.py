"""Sends the file to the service as one job, and shows how far it is."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from app import TABLE
from rich.progress import Progress

from busline import Bus

FILE = Path(__file__).parent / "airports.csv"


def imported() -> int:
    with closing(sqlite3.connect(TABLE)) as db:
        return int(db.execute("SELECT count(*) FROM airport").fetchone()[0])


async def main() -> None:
    async with Bus() as bus:
        job = await bus.send("airports.import", {"file": str(FILE)}, track=True)
        with Progress() as progress:
            bar = progress.add_task("import", total=None)
            async for said in job.progress():
                progress.update(bar, completed=said.current, total=said.total)
        print(f"{await job.result()} rows in the file, {imported()} in the table")


asyncio.run(main())
