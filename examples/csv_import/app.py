"""The importing service: one job imports a whole file, tells how far it is, and goes on there if its worker dies."""

import asyncio
import csv
import sqlite3
from contextlib import closing

from pydantic import BaseModel, TypeAdapter

from busline import Bus, Context, Idempotency, Retry

TABLE = "airports.db"
COLUMNS = "iata TEXT PRIMARY KEY, name TEXT, city TEXT, state TEXT, country TEXT, latitude REAL, longitude REAL"
BATCH = 100

bus = Bus(service="csv_import")


class Airport(BaseModel):
    iata: str
    name: str
    city: str
    state: str
    country: str
    latitude: float
    longitude: float


AIRPORTS = TypeAdapter(list[Airport])


@bus.handler(
    "airports.import",
    retry=Retry(max_retries=5, first=0.5, when=(sqlite3.OperationalError,)),
    idempotency=Idempotency(key="file", lease=2.0),
)
async def import_file(job: dict[str, str], ctx: Context) -> int:
    """One import of each file. What an earlier attempt has done is not done again."""
    with open(job["file"], newline="", encoding="utf-8") as file:  # noqa: ASYNC230  # a small file
        rows = list(csv.DictReader(file))
    last = await ctx.last_progress()
    for start in range(int(last.current) if last else 0, len(rows), BATCH):
        batch = AIRPORTS.validate_python(rows[start : start + BATCH])
        await asyncio.to_thread(write, batch)
        await ctx.progress(start + len(batch), len(rows), "rows")
        await asyncio.sleep(0.03)  # so that there is something to watch
    return len(rows)


def write(batch: list[Airport]) -> None:
    """A row that comes twice replaces itself."""
    with closing(sqlite3.connect(TABLE, timeout=10)) as db, db:
        db.execute(f"CREATE TABLE IF NOT EXISTS airport ({COLUMNS})")
        db.executemany(
            "INSERT OR REPLACE INTO airport VALUES (:iata, :name, :city, :state, :country, :latitude, :longitude)",
            [row.model_dump() for row in batch],
        )
