"""What the handlers did, written down outside busline, so that it can be counted without asking busline."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Count:
    """How often something began, and how many different things began."""

    starts: int
    distinct: int

    @property
    def repeats(self) -> int:
        """Starts beyond the first of each."""
        return self.starts - self.distinct


class Ledger:
    """One file per kind of effect, one line per start, appended by all processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, kind: str, entry: object) -> None:
        """An effect began. A short line is appended in one piece, whoever else is writing."""
        file = os.open(self._folder / f"{kind}.ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{entry}\n".encode())
        finally:
            os.close(file)

    def count(self, kind: str) -> Count:
        """What has been noted so far."""
        try:
            entries = (self._folder / f"{kind}.ledger").read_text().splitlines()
        except FileNotFoundError:
            entries = []
        return Count(len(entries), len(set(entries)))


class Airport(BaseModel):
    """A row of the file, and of the table."""

    iata: str
    name: str
    city: str
    state: str
    country: str
    latitude: float
    longitude: float


class AirportTable:
    """Where the rows of the file go; a row that comes twice replaces itself."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Make the empty table."""
        with closing(self._connect()) as db, db:
            columns = "name TEXT, city TEXT, state TEXT, country TEXT, latitude REAL, longitude REAL"
            db.execute(f"CREATE TABLE airport (iata TEXT PRIMARY KEY, {columns})")

    def store(self, rows: Sequence[Airport]) -> None:
        """Write the rows, all or none."""
        with closing(self._connect()) as db, db:
            db.executemany(
                "INSERT OR REPLACE INTO airport VALUES (:iata, :name, :city, :state, :country, :latitude, :longitude)",
                [row.model_dump() for row in rows],
            )

    def count(self) -> int:
        """How many rows there are."""
        with closing(self._connect()) as db:
            (rows,) = db.execute("SELECT count(*) FROM airport").fetchone()
            return int(rows)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=10)
