"""The importing service: takes rows in batches, checks them, writes them into a table."""

import sqlite3
from contextlib import closing

from pydantic import BaseModel

from busline import Bus, Retry

TABLE = "airports.db"
COLUMNS = "iata TEXT PRIMARY KEY, name TEXT, city TEXT, state TEXT, country TEXT, latitude REAL, longitude REAL"

bus = Bus(service="csv_import")


class Airport(BaseModel):
    iata: str
    name: str
    city: str
    state: str
    country: str
    latitude: float
    longitude: float


@bus.handler("airports.import", retry=Retry(max_retries=5, first=0.5, when=(sqlite3.OperationalError,)))
def import_batch(rows: list[Airport]) -> None:
    """A plain function runs in a thread, so it may block. A batch that comes twice changes nothing the second time."""
    with closing(sqlite3.connect(TABLE, timeout=10)) as db, db:
        db.execute(f"CREATE TABLE IF NOT EXISTS airport ({COLUMNS})")
        db.executemany(
            "INSERT OR REPLACE INTO airport VALUES (:iata, :name, :city, :state, :country, :latitude, :longitude)",
            [row.model_dump() for row in rows],
        )
