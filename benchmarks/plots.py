"""The plots of a run: rates and CPU of the peers, and the flat costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(figures: dict[str, Any], folder: Path) -> None:
    """One file for each scenario of the peers, and one for the flat costs."""
    for scenario, peers in figures.get("peers", {}).items():
        _peers(scenario, peers, figures["machine"], folder)
    if ratios := figures.get("flat"):
        _flat(ratios | {f"memory: {what}": ratio for what, ratio in figures["memory"].items()}, folder)


def _peers(scenario: str, peers: dict[str, dict[str, float]], machine: str, folder: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.5 + 0.4 * len(peers)), sharey=True)
    names = list(peers)[::-1]
    left.barh(names, [peers[name]["rate"] for name in names])
    left.set_xlabel("messages a second")
    start = [0.0] * len(names)
    for part in ("caller_us", "worker_us", "broker_us"):
        values = [peers[name].get(part, 0.0) for name in names]
        right.barh(names, values, left=start, label=part.removesuffix("_us"))
        start = [a + b for a, b in zip(start, values, strict=True)]
    right.set_xlabel("CPU µs a message")
    right.legend()
    figure.suptitle(f"{scenario}; {machine}", fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / (scenario.replace(",", "").replace(" ", "-") + ".svg"))
    plt.close(figure)


def _flat(ratios: dict[str, float], folder: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 3))
    axes.barh(list(ratios)[::-1], list(ratios.values())[::-1])
    axes.axvline(1.2, linestyle="--", color="black")
    axes.set_xlabel("cost of a message, or memory, with much, × that with little; the line is the goal")
    figure.tight_layout()
    figure.savefig(folder / "flat.svg")
    plt.close(figure)
