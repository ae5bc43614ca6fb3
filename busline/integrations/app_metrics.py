"""An app's own Prometheus metrics: what its modules have registered with prometheus_client's default registry.

Each worker process reads its own, and they are added up as prometheus_client does in its multiprocess mode, without
that mode's files: counters, histograms and summaries are sums; a gauge is what its `multiprocess_mode` says, by default
a value for each process that lives, with the label `pid`. As there, custom collectors are left out, and so is what the
library tells of the process itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING, Any

from busline.telemetry import log
from busline.wire import text_of

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.metrics import MetricWrapperBase

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name, and its labels with their values."""
MERGES: dict[str, Callable[[float, float], float]] = {"sum": add, "max": max, "min": min}
SHARE = 0.01
"""Of a process's time at most, for reading the app's metrics: where there are very many they are read less often."""


@dataclass(slots=True)
class AppMetric:
    """One metric of an app, as prometheus_client has it."""

    name: str
    help: str
    type: str
    unit: str
    merge: str
    """How the values of several processes become one: a name in `MERGES`."""
    outlives: bool
    """Its values count when their process has ended."""
    samples: dict[Key, float] = field(default_factory=dict)

    def join(self, other: AppMetric) -> None:
        """Another process's values into these."""
        merge = MERGES[self.merge]
        for key, value in other.samples.items():
            mine = self.samples.get(key)
            self.samples[key] = value if mine is None else merge(mine, value)

    def empty(self) -> AppMetric:
        """The same without values."""
        return AppMetric(self.name, self.help, self.type, self.unit, self.merge, self.outlives)

    def to_json(self) -> list[Any]:
        """For another process of the same version."""
        samples = [[name, labels, value] for (name, labels), value in self.samples.items()]
        return [self.name, self.help, self.type, self.unit, self.merge, self.outlives, samples]

    @classmethod
    def from_json(cls, told: Sequence[Any]) -> AppMetric:
        """What `to_json` told."""
        name, text, kind, unit, merge, outlives, samples = told
        values = {(sample, tuple(map(tuple, labels))): value for sample, labels, value in samples}
        return cls(name, text, kind, unit, merge, outlives, values)


def joined(metrics: Iterable[AppMetric], into: dict[str, AppMetric]) -> dict[str, AppMetric]:
    """Those of one process added to those of others, by name."""
    for metric in metrics:
        into.setdefault(metric.name, metric.empty()).join(metric)
    return into


def as_prometheus(metrics: Iterable[AppMetric]) -> Iterator[Metric]:
    """For a page."""
    from prometheus_client import Metric

    for metric in metrics:
        shown = Metric(metric.name, metric.help, metric.type, metric.unit)
        for (name, labels), value in metric.samples.items():
            shown.add_sample(name, dict(labels), value)
        yield shown


class Reader:
    """Reads the metrics of this process, if there can be any: nothing imports prometheus_client for them."""

    def __init__(self) -> None:
        self._next = 0.0
        self._unreadable: set[str] = set()

    def read(self, *, at_once: bool = False) -> list[AppMetric] | None:
        """All of them; None if it is too soon to look again, unless that has to be `at_once`."""
        began = time.monotonic()
        if began < self._next and not at_once:
            return None
        metrics = [metric for collector in _collectors() for metric in self._read_one(collector)]
        ended = time.monotonic()
        self._next = ended + (ended - began) / SHARE
        return metrics

    def _read_one(self, collector: MetricWrapperBase) -> list[AppMetric]:
        try:
            return [_read(collector, metric) for metric in collector.collect()]
        except Exception as error:  # the app's: a gauge may ask a function of its own
            self._complain(collector._name, error)
            return []

    def _complain(self, name: str, error: Exception) -> None:
        if name not in self._unreadable:
            self._unreadable.add(name)
            text = f"{type(error).__name__}: {text_of(error)}"
            fields = {"event": "metric_unreadable", "metric": name}
            log.warning("the app's metric %s is left out: %s", name, text, extra=fields)


def _collectors() -> Iterator[MetricWrapperBase]:
    if "prometheus_client" in sys.modules:
        from prometheus_client import REGISTRY
        from prometheus_client.metrics import MetricWrapperBase

        for collector in list(REGISTRY._collector_to_names):
            if isinstance(collector, MetricWrapperBase):
                yield collector


def _read(collector: MetricWrapperBase, metric: Metric) -> AppMetric:
    merge, outlives, by_process = _manner(metric.type, getattr(collector, "_multiprocess_mode", "all"))
    more = (("pid", str(os.getpid())),) if by_process else ()
    samples = {
        (sample.name, (*sample.labels.items(), *more)): sample.value
        for sample in metric.samples
        if not sample.name.endswith("_created")  # which means nothing for several processes
    }
    return AppMetric(metric.name, metric.documentation, metric.type, metric.unit, merge, outlives, samples)


def _manner(kind: str, gauge_mode: str) -> tuple[str, bool, bool]:
    """How values are merged, whether they outlive their process, and whether each process has its own instead."""
    if kind == "info":
        return "max", False, False
    if kind not in ("gauge", "stateset"):
        return "sum", True, False
    merge = gauge_mode.removeprefix("live")
    return (merge, merge == gauge_mode, False) if merge in MERGES else ("max", False, True)
