"""What SQLite's errors mean to us."""

from __future__ import annotations

import sqlite3

from busline.errors import StoreUnavailable

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})

_MEANINGS = {
    sqlite3.SQLITE_BUSY: "another program has locked the file for too long",
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_READONLY: "the file has become read-only",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
}
HOPELESS = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
"""Codes that are a matter of configuration when they come while opening."""


def code_of(error: BaseException) -> int:
    """SQLite's primary result code, 0 if it has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_busy(error: BaseException) -> bool:
    """Does it only say that somebody else is writing at the moment?"""
    return code_of(error) in _BUSY


def meaning(error: BaseException, where: str) -> str:
    """The same in one line."""
    text = _MEANINGS.get(code_of(error))
    return f"{where}: {text} ({error})" if text else f"{where}: {error}"


def unavailable(error: BaseException, where: str) -> StoreUnavailable:
    """The same, typed."""
    return StoreUnavailable(meaning(error, where))
