"""Moving the log into the database, beside the loop.

SQLite does that at the end of a commit: it syncs both files and copies all that the log holds, which is much once
somebody has read for long, and slow where the disk is. On the event loop's thread nothing else would go on meanwhile.
So the loop's own connection never does it; a thread with a connection of its own does, first without the write lock.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from queue import SimpleQueue

from busline.message import Health
from busline.transports.sqlite.faults import as_transport_error, is_busy

LIMIT = 1000
"""Pages in the log that are worth a checkpoint."""
_PER_COMMIT = 3
"""Pages that a transaction writes at least, beside one for each operation."""
_LOOK_AFTER = 16
"""Commits until the log's size is looked at, for messages that are larger than a page."""
_PAGE = 4096
_TRIES = 20


class Checkpoints:
    """The thread, which starts when there is something to do."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.trouble: Health | None = None
        """The log is not moved, and grows. Nothing is lost and all goes on, until the disk is full."""
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._at_work = False
        self._pages = self._commits = self._size = 0
        self._log = -1

    def open(self) -> None:
        """The log is there. Raises OSError."""
        self._log = os.open(self._path + "-wal", os.O_RDONLY)

    def committed(self, operations: int) -> None:
        """A transaction of so many operations is in the log."""
        self._pages += _PER_COMMIT + operations
        self._commits += 1
        if self._at_work or not (self._pages >= LIMIT or (self._commits % _LOOK_AFTER == 0 and self._has_grown())):
            return
        self._at_work, self._pages = True, 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="busline-sqlite-checkpoint", daemon=True)
            self._thread.start()
        self._wake.put(True)

    def end(self) -> None:
        """The thread has ended when this returns, which may take as long as moving the log."""
        if self._thread is not None:
            self._wake.put(False)
            self._thread.join()
            self._thread = None
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _has_grown(self) -> bool:
        return self._size_of_log() > self._size + LIMIT * _PAGE

    def _size_of_log(self) -> int:
        return os.lseek(self._log, 0, os.SEEK_END)  # os.stat would make syncs dearer, see WalSync

    def _work(self) -> None:
        db: sqlite3.Connection | None = None
        while self._wake.get():
            try:
                if db is None:
                    db = sqlite3.connect(self._path, timeout=0, isolation_level=None)
                db.execute("PRAGMA synchronous = NORMAL")
                _checkpoint(db)
            except sqlite3.Error as error:
                self._failed(error)
            else:
                self.trouble = None
            self._size = self._size_of_log()
            self._at_work = False
        if db is not None:
            db.close()

    def _failed(self, error: sqlite3.Error) -> None:
        if self.trouble is None and not is_busy(error):  # whoever is busy moves it, or lets us do so later
            detail = f"the log is not moved into the database and grows: {as_transport_error(error, self._path)}"
            self.trouble = Health("degraded", time.time(), detail, tolerable=True)


def _checkpoint(db: sqlite3.Connection) -> None:
    """Until all is in the database and the log begins anew, unless somebody reads what is in it all the time.

    The first round takes no lock. The others take the write lock, if it is free, as the log would never be emptied
    between the transactions of busy writers; they have little left to do.
    """
    _, _, before = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    for _ in range(_TRIES):
        busy, pages, moved = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        if not busy or before == moved < pages:
            return
        before = moved
        time.sleep(random.uniform(0.0002, 0.002))
