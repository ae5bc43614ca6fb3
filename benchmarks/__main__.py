"""Run every scenario some times in turn, print medians, draw plots: `python -m benchmarks [own] [flat] [peers]`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import flat, goals, memory
from benchmarks.measure import Figure, calls_between_processes, calls_in_process, sends
from benchmarks.pace import pace
from benchmarks.peers import run as peers
from benchmarks.sides import sides
from benchmarks.stores import claims, stores
from busline.cli.loops import Loop, factory_of

Scenario = tuple[str, Callable[[str], Awaitable[Figure]]]


def scenarios(scale: float) -> list[Scenario]:
    """Transport, and what is measured on it. `scale` shortens all of them."""

    def n(count: int) -> int:
        return max(50, int(count * scale))

    return [
        ("memory", lambda url: calls_in_process(url, n(5_000), 1)),
        ("memory", lambda url: calls_in_process(url, n(20_000), 64)),
        ("memory on uvloop", lambda url: calls_in_process(url, n(20_000), 64)),
        ("sqlite", lambda url: calls_between_processes(url, n(2_000), 1)),
        ("sqlite", lambda url: calls_between_processes(url, n(20_000), 64)),
        ("sqlite", lambda url: calls_between_processes(url, n(20_000), 64, 4)),
        ("sqlite", lambda url: sends(url, n(3_000), 1)),
        ("sqlite", lambda url: sends(url, n(40_000), 64)),
        ("sqlite", lambda url: sends(url, n(40_000), 256)),
        *((f"store {each}", claims(each, n(2_000), width)) for each in stores() for width in (1, 64)),
    ]


def run(transport: str, scenario: Callable[[str], Awaitable[Figure]]) -> Figure:
    """One run on a broker of its own, and on an event loop of its own: asyncio's, or uvloop's."""
    broker, _, loop = transport.partition(" on ")
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=factory_of(Loop(loop or "asyncio"))) as runner,
    ):
        url = "memory://" if broker == "memory" else f"sqlite:///{folder}/bench.db"
        return runner.run(_once(scenario(url)))


async def _once(figure: Awaitable[Figure]) -> Figure:
    return await figure


def median(figures: list[Figure]) -> dict[str, object]:
    """Of each number over the runs."""
    rows = [asdict(figure) | {"rate": figure.rate} for figure in figures]
    numbers = ("rate", "p50_ms", "p99_ms", "caller_us", "worker_us")
    values = {name: [row[name] for row in rows if row[name] is not None] for name in numbers}
    merged: dict[str, object] = {name: statistics.median(v) if v else None for name, v in values.items()}
    return {"scenario": figures[0].scenario, "spread": spread(values["rate"]), **merged}


def spread(rates: list[float]) -> float:
    """(max - min) / median of the rate: how noisy the machine was."""
    return (max(rates) - min(rates)) / statistics.median(rates)


def machine() -> str:
    """What the figures were taken on."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def show(rows: list[dict[str, object]], runs: int) -> None:
    """The table of busline's own figures, with what it is and what it is not."""
    console = Console()
    table = Table(title=f"busline, median of {runs} runs; {machine()}")
    for heading in ("transport", "scenario", "per second", "p50 ms", "p99 ms", "CPU µs here", "in workers", "spread"):
        table.add_column(heading, justify="left" if heading in ("transport", "scenario") else "right")
    for row in rows:
        worker = row["worker_us"]
        table.add_row(
            *(str(row["transport"]), str(row["scenario"]), f"{row['rate']:,.0f}"),
            *(f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['caller_us']:.0f}"),
            *("–" if worker is None else f"{worker:.0f}", f"{row['spread']:.0%}"),
        )
    console.print(table)
    console.print("CPU is per message, of this process and of the worker processes.")
    console.print("A difference smaller than the spread says nothing. See benchmarks/README.md.")


def show_peers(tables: list[dict[str, dict[str, dict[str, float]]]]) -> dict[str, dict[str, dict[str, float]]]:
    """One table for each scenario, medians over the sittings, ratios to aiormq's hand-written service within each."""
    medians: dict[str, dict[str, dict[str, float]]] = {}
    for scenario, first in tables[0].items():
        table = Table(title=f"{scenario}, median of {len(tables)} runs")
        headings = ("rate", "ratio", "p50_ms", "p99_ms", "caller_us", "worker_us", "broker_us", "start_s", "idle_mib")
        for heading in ("peer", *headings):
            table.add_column(heading)
        for peer in first:
            runs = [each[scenario][peer] for each in tables]
            figures = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            if "aiormq by hand" in first:
                hand = [each[scenario]["aiormq by hand"]["rate"] for each in tables]
                figures["ratio"] = statistics.median(run["rate"] / one for run, one in zip(runs, hand, strict=True))
            medians.setdefault(scenario, {})[peer] = figures
            table.add_row(peer, *(f"{figures[name]:,.2f}" if name in figures else "–" for name in headings))
        Console().print(table)
    return medians


def own(runs: int, scale: float) -> list[dict[str, object]]:
    """busline's own scenarios over memory and SQLite."""
    chosen = scenarios(scale)
    taken: list[list[Figure]] = [[] for _ in chosen]
    for number in range(runs):
        for figures, (transport, scenario) in zip(taken, chosen, strict=True):
            figures.append(run(transport, scenario))
            print(f"run {number + 1}/{runs}: {transport} {figures[-1].scenario}", file=sys.stderr)
    rows = [{"transport": chosen[i][0], **median(figures)} for i, figures in enumerate(taken)]
    show(rows, runs)
    return rows


def flatness(scale: float) -> dict[str, float]:
    """What much of something costs, as ratios."""
    ratios = asyncio.run(flat.table(scale))
    _show_ratios("flat cost", "cost of a message, × that with little", ratios)
    return ratios


def remembered(scale: float) -> dict[str, float]:
    """What is needed to remember, as ratios."""
    ratios = memory.ratios(scale)
    _show_ratios("memory", "of the process at most, × that with little", ratios)
    print(f"each call in flight needs {memory.kib_in_flight():.1f} KiB, caller and worker together")
    return ratios


def _show_ratios(title: str, heading: str, ratios: dict[str, float]) -> None:
    table = Table("much of what", heading, title=title)
    for what, ratio in ratios.items():
        table.add_row(what, f"{ratio:.2f}")
    Console().print(table)


def draw(figures: dict[str, object], folder: Path) -> None:
    """The plots, where the library for them is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: pip install -e '.[bench]'", file=sys.stderr)
        return
    from benchmarks import plots

    plots.draw(figures, folder)


def main() -> None:
    """Parse, run in turn, print, and keep figures and plots in a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", default=["own", "flat", "peers"], metavar="own|flat|peers")
    parser.add_argument("--runs", type=int, default=3, help="runs of each scenario, in turn (default 3)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages, one run")
    parser.add_argument("--only", nargs="*", default=[], help="of the peers, those whose module has this in its name")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="for figures and plots")
    options = parser.parse_args()
    runs, scale = (1, 0.1) if options.quick else (options.runs, 1.0)
    figures: dict[str, Any] = {"machine": machine(), "runs": runs, "at": time.strftime("%Y-%m-%d %H:%M")}
    paces = [pace()]  # between the sections, too, as it changes where others share the machine
    if "own" in options.sections:
        figures["sides"] = sides(max(1_000, int(10_000 * scale)), runs)
        figures["import_ms"] = goals.import_ms()
        paces.append(pace())
        figures["own"] = own(runs, scale)
        paces.append(pace())
    if "flat" in options.sections:
        figures["flat"] = flatness(scale)
        figures["memory"] = remembered(scale)
        figures["claims_ms"] = asyncio.run(flat.claims(int(1_000_000 * scale)))
    if "peers" in options.sections:
        figures["peers"] = show_peers([peers.sitting(scale, options.only) for _ in range(runs)])
    figures["pace"] = statistics.median([*paces, pace()])
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "figures.json").write_text(json.dumps(figures, indent=2))
    draw(figures, options.results)
    goals.show(goals.goals(figures), figures["pace"])
    print(f"figures and plots: {options.results}; how they were taken, and their bias: benchmarks/README.md")


if __name__ == "__main__":
    main()
