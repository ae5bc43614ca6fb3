"""What is to be reached, held against the figures of a run: the last table of `python -m benchmarks`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

OURS, BY_HAND = "busline, RabbitMQ", "aiormq by hand"
SLOWER = ("FastStream request", "taskiq, Redis results", "Celery rpc://, late ack")
IMPORT = "import asyncio, time; began = time.process_time(); import busline; print((time.process_time() - began) * 1e3)"


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure that was seen, and how much it may be at most, or has to be at least."""

    what: str
    seen: float
    most: float | None = None
    least: float | None = None
    pace: float = 1.0
    """What the figure depends on alone, this machine's processor, takes so many times as long as the reference's."""

    @property
    def there(self) -> float:
        """What would have been seen at the pace of the machine for which the goal was set."""
        return self.seen / self.pace if self.least is None else self.seen * self.pace

    @property
    def reached(self) -> str:
        """Is it?"""
        if self._holds(self.seen):
            return "yes"
        return "at its pace" if self._holds(self.there) else "NO"

    def _holds(self, figure: float) -> bool:
        return (self.most is None or figure <= self.most) and (self.least is None or figure >= self.least)


def import_ms(runs: int = 5) -> float:
    """What `import busline` takes longer than `import asyncio`, milliseconds of CPU; median of new processes."""
    command, compiled = [sys.executable, "-c", IMPORT], {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    return statistics.median(float(subprocess.check_output(command, env=compiled, text=True)) for _ in range(runs))


def goals(figures: Mapping[str, Any]) -> list[Goal]:
    """Those that the sections which were run tell something of."""
    found: list[Goal] = []
    if "own" in figures:
        found += _own(figures)
    if "flat" in figures:
        found += [Goal(f"flat: {what}", ratio, most=1.2) for what, ratio in figures["flat"].items()]
        found += [Goal(f"memory: {what}", ratio, most=1.2) for what, ratio in figures["memory"].items()]
        claims = figures["claims_ms"].items()
        found += [Goal(f"SQLite: {what}, ms", ms, most=0.2, pace=figures["pace"]) for what, ms in claims]
    found += _peers(figures.get("peers", {}), figures["pace"])
    return found


def _own(figures: Mapping[str, Any]) -> Iterator[Goal]:
    pace = figures["pace"]
    for side in ("caller", "worker"):
        yield Goal(f"core, the {side}'s side: CPU µs a call", figures["sides"][side], most=25, pace=pace)
    yield Goal("import busline above import asyncio, CPU ms", figures["import_ms"], most=60, pace=pace)
    rows = {(row["transport"], row["scenario"]): row for row in figures["own"]}
    for loop in ("", " on uvloop"):
        rate = rows[f"memory{loop}", "calls, 64 in flight, one process"]["rate"]
        yield Goal(f"calls/s in one process{loop}", rate, least=15_000, pace=pace)
    one, alone = rows["sqlite", "calls, 64 in flight, 1 worker process"], "calls, 1 in flight, 1 worker process"
    four = rows["sqlite", "calls, 64 in flight, 4 worker processes"]
    yield Goal("SQLite: calls/s, 64 in flight", one["rate"], least=10_000, pace=pace)
    yield Goal("SQLite: p50 of a call by itself, ms", rows["sqlite", alone]["p50_ms"], most=1, pace=pace)
    yield Goal("SQLite: four workers, × the calls/s of one", four["rate"] / one["rate"], least=1)
    for width in (64, 256):
        rate = rows["sqlite", f"sends, {width} in flight"]["rate"]
        yield Goal(f"SQLite: durable sends/s, {width} in flight", rate, least=20_000, pace=pace)
    yield Goal("SQLite: durable sends/s, one by one", rows["sqlite", "sends, 1 in flight"]["rate"], least=2_000)


def _peers(peers: Mapping[str, Mapping[str, Mapping[str, float]]], pace: float) -> Iterator[Goal]:
    busy, alone = peers.get("calls, 64 in flight", {}), peers.get("calls, 1 in flight", {})
    ours = busy.get(OURS)
    if ours is None:
        return
    if (hand := busy.get(BY_HAND)) is not None:
        cpu, least = (each["caller_us"] + each["worker_us"] for each in (ours, hand))
        yield Goal("RabbitMQ: CPU a call, × aiormq by hand", cpu / least, most=1.15)
    for name in SLOWER:
        if (peer := busy.get(name)) is not None:
            yield Goal(f"RabbitMQ: calls/s, 64 in flight, × {name}", ours["rate"] / peer["rate"], least=3)
            yield Goal(f"RabbitMQ: p99, 64 in flight, × {name}", ours["p99_ms"] / peer["p99_ms"], most=1)
    yield Goal("RabbitMQ: start of a worker, s", alone[OURS]["start_s"], most=0.5, pace=pace)
    yield Goal("RabbitMQ: an idle worker, MiB", alone[OURS]["idle_mib"], most=45)


def show(found: list[Goal], pace: float) -> None:
    """The table."""
    title = f"goals; this machine's Python takes {pace:.2f} × the time of the one for which they were set"
    table = Table("goal", "at most", "at least", "seen", "at its pace", "reached", title=title)
    for goal in found:
        bounds = ("" if bound is None else f"{bound:,g}" for bound in (goal.most, goal.least))
        there = "" if goal.pace == 1.0 else f"{goal.there:,.2f}"
        table.add_row(goal.what, *bounds, f"{goal.seen:,.2f}", there, goal.reached)
    Console().print(table)
