"""The slow round of a process: find the dead by their locks, delete what expired, make up for lost wake-ups."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from typing import TYPE_CHECKING

from busline.errors import BuslineError
from busline.transports.sqlite import liveness
from busline.transports.sqlite import statements as sql
from busline.transports.sqlite.declaring import forget_process
from busline.transports.sqlite.faults import is_busy

if TYPE_CHECKING:
    from busline.transports.sqlite.session import Session

PERIOD = 0.4
"""Seconds between two rounds, on average."""


class Watch:
    """One task for as long as the transport is open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._task: asyncio.Task[None] | None = None
        self._failed = False

    def start(self) -> None:
        """Begin the rounds."""
        self._task = asyncio.create_task(self._run(), name="busline-sqlite-watch")

    def abandon(self) -> None:
        """Have them end, without waiting."""
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """They have ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def reap(self) -> None:
        """Make the messages of every dead process deliverable. Raises sqlite3.Error, BuslineError."""
        session = self._session
        rows = session.db.execute(
            "SELECT id, token, pid, address FROM process WHERE id <> ?", (session.ledger.process,)
        )
        for process, token, pid, address in rows.fetchall():
            held = liveness.try_lock(session.files.folder, token)
            if held is not None:
                try:
                    await self._bury(process, token, address)
                finally:
                    os.close(held)
            elif liveness.is_without_lock(session.files.folder, token, pid):
                await self._bury(process, token, address)

    def clear_up(self) -> None:
        """Remove the lock files of those that died before they were known to the database, or after they had left."""
        session = self._session
        known = {token for (token,) in session.db.execute("SELECT token FROM process")}
        for token in liveness.tokens(session.files.folder):
            held = None if token in known else liveness.try_lock(session.files.folder, token)
            if held is not None:
                liveness.remove_files(session.files.folder, token, str(session.files.folder / f"{token}.sock"))
                os.close(held)

    async def _bury(self, process: int, token: str, address: str) -> None:
        session = self._session
        await session.engine.run(lambda: forget_process(session.db, session.ledger, process, in_peace=False))
        liveness.remove_files(session.files.folder, token, address)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD * random.uniform(0.75, 1.25))
            try:
                self._session.check_file()
                await self._session.restore_files()
                await self.reap()
                self._look_again()
                await self._session.inspection.sweep()
            except BuslineError:
                continue  # an operation failed, and the engine knows
            except (sqlite3.Error, OSError) as error:
                if not is_busy(error):
                    self._failed = True
                    self._session.engine.report(error)
            else:
                if self._failed:
                    self._failed = False
                    self._session.engine.report(None)

    def _look_again(self) -> None:
        session = self._session
        for feed in list(session.ledger.feeds.values()):
            due = session.ledger.next_due(feed.queue)
            if due < time.time() + PERIOD * 2:
                feed.arm(due)
            if feed.waiting and session.db.execute(sql.PEEK_READY, (feed.queue,)).fetchone():
                feed.waiting = False
                session.engine.schedule()
