"""A worker process tells, from its event loop, how it is and what it has counted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from busline.bus import Bus
from busline.cli.board import REPORT_PERIOD, Board, report
from busline.metrics import Metrics
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


class Reporter:
    """Reports to `tell` every `REPORT_PERIOD` seconds."""

    def __init__(self, metrics: Metrics, tell: Callable[[bytes], None]) -> None:
        self._metrics = metrics
        self._tell = tell

    async def run(self, worker: Worker) -> None:
        """Until cancelled."""
        while True:
            self._tell(report(worker.troubles, self._metrics.families()))
            await asyncio.sleep(REPORT_PERIOD)
