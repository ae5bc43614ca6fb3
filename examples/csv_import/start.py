"""Sends the file to the service, batch by batch, and shows how the table fills."""

import asyncio
import csv
import sqlite3
from contextlib import closing
from pathlib import Path

from app import TABLE
from rich.progress import Progress

from busline import Bus

BATCH = 100
FILE = Path(__file__).parent / "airports.csv"


def imported() -> int:
    with closing(sqlite3.connect(TABLE)) as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'airport'").fetchone():
            return 0
        return int(db.execute("SELECT count(*) FROM airport").fetchone()[0])


async def main() -> None:
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    async with Bus() as bus:
        for start in range(0, len(rows), BATCH):
            await bus.send("airports.import", rows[start : start + BATCH])
    with Progress() as progress:
        bar = progress.add_task("import", total=len(rows))
        while (done := imported()) < len(rows):
            progress.update(bar, completed=done)
            await asyncio.sleep(0.05)
        progress.update(bar, completed=done)
    print(f"{len(rows)} rows in the file, {imported()} in the table")


asyncio.run(main())
