"""Opening the file: a connection set up as we need it, and errors that say what is wrong with the place."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time

from busline.errors import ConfigurationError, TransportError
from busline.transports.sqlite.faults import as_transport_error, is_busy
from busline.transports.sqlite.schema import prepare

_PATIENCE = 30.0
"""Seconds for which somebody else may lock the file while we open it."""

_PRAGMAS = (
    "PRAGMA synchronous = NORMAL",  # what must be durable is synced by WalSync
    "PRAGMA wal_autocheckpoint = 0",  # see Checkpoints
    "PRAGMA secure_delete = OFF",  # some systems build SQLite with it on; it writes every page twice
    "PRAGMA cache_size = -16000",
    "PRAGMA temp_store = MEMORY",
)


async def connect(path: str) -> sqlite3.Connection:
    """A connection in WAL mode to a file with our tables, that another thread may close. Raises ConfigurationError,
    TransportError."""
    _check_place(path)
    try:
        db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise ConfigurationError(f"{path} cannot be opened: {error}") from error
    try:
        await _patiently(db, path)
    except sqlite3.DatabaseError as error:
        db.close()
        raise ConfigurationError(str(as_transport_error(error, path))) from error
    except BaseException:
        db.close()
        raise
    return db


def _check_place(path: str) -> None:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigurationError(f"{path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{path}: the folder {folder} is not writable; SQLite makes files beside the database")
    if os.path.isdir(path):
        raise ConfigurationError(f"{path} is a folder, not a file")


async def _patiently(db: sqlite3.Connection, path: str) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            _set_up(db, path)
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            if time.monotonic() > end:
                raise TransportError(f"{path} has been locked by another program for {_PATIENCE:g} s") from error
        await asyncio.sleep(0.01)


def _set_up(db: sqlite3.Connection, path: str) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigurationError(f"{path}: the file system cannot share memory between processes (WAL mode)")
    for pragma in _PRAGMAS:
        db.execute(pragma)
    prepare(db, path)
    _sync_folder(os.path.dirname(path))


def _sync_folder(folder: str) -> None:
    """The file's name must survive a power cut, too."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
