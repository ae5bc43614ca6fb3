"""A worker process tells, from its event loop, how it is and what it has counted."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from busline.bus import Bus
from busline.cli.board import REPORT_PERIOD, Board, report
from busline.cli.lifeline import Lifeline
from busline.integrations.app_metrics import Reader
from busline.metrics import Metrics

if TYPE_CHECKING:
    from busline.worker import Worker


def metrics_of(bus: Bus) -> Metrics:
    """Those that the bus was instrumented with, or new ones."""
    for observer in bus.observers:
        if isinstance(observer, Metrics):
            return observer
    metrics = Metrics()
    bus.instrument(metrics)
    return metrics


class Direct:
    """News from a process that is its own parent, in the place of a `Lifeline`."""

    def __init__(self, board: Board) -> None:
        self._board = board
        board.started(os.getpid(), 0)

    def tell(self, news: bytes) -> None:
        """Onto the board."""
        self._board.heard(os.getpid(), news)

    report = tell

    async def sent(self) -> None:
        """It always is."""


class Reporter:
    """Reports every `REPORT_PERIOD` seconds, and once more at the end, so that nothing is uncounted by it."""

    def __init__(self, metrics: Metrics, news: Lifeline | Direct) -> None:
        self._metrics = metrics
        self._news = news
        self._app = Reader()

    async def run(self, worker: Worker) -> None:
        """Until cancelled."""
        try:
            while True:
                self._report(worker)
                await self._news.sent()
                await asyncio.sleep(REPORT_PERIOD)
        finally:
            await self._last(worker)

    def _report(self, worker: Worker, *, last: bool = False) -> None:
        self._news.report(report(worker.troubles, self._metrics.families(), self._app.read(at_once=last)))

    async def _last(self, worker: Worker) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_PERIOD):  # a parent that does not read holds up nobody
                await self._news.sent()
                self._report(worker, last=True)
                await self._news.sent()
