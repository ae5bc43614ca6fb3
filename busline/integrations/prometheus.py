"""Prometheus: `bus.instrument(PrometheusMetrics())` and the metrics of that bus stand beside the app's own.

A worker needs none of it: `busline worker --health-port N` serves `/metrics` for all its processes together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from busline.errors import ConfigurationError
from busline.metrics import BUCKETS, Family, Metrics

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Metric, exposition
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ImportError as missing:
    raise ConfigurationError("these metrics need prometheus-client: pip install 'busline[prometheus]'") from missing

BOUNDS = [*map(str, BUCKETS), "+Inf"]


class PrometheusMetrics(Metrics, Collector):
    """The metrics of each bus that is instrumented with it, registered with `registry`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__()
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        return collected(self.families())

    def describe(self) -> Iterable[Metric]:
        """The same: what there is does not depend on what has happened."""
        return self.collect()


def collected(families: Iterable[Family]) -> Iterator[Metric]:
    """The families as prometheus_client has them."""
    for family in families:
        yield _metric(family)


def exposed(families: Iterable[Family], accept: str, more: Iterable[Metric] = ()) -> tuple[bytes, str]:
    """A page for a scrape, and its content type; `accept` is the header with which it was asked for."""
    encode, content_type = exposition.choose_encoder(accept)
    return encode(_Page([*collected(families), *more])), content_type


class _Page(Collector):
    """Metrics where a registry is asked for."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _metric(family: Family) -> Metric:
    values = list(family.values.items())  # the loop that counts may run in another thread
    if family.type == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, counts in values:
            histogram.add_metric(labels, *_histogram(list(counts)))
        return histogram
    kind = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, value in values:
        metric.add_metric(labels, value)
    return metric


def _histogram(counts: list[float]) -> tuple[list[tuple[str, float]], float]:
    total, buckets = 0.0, []
    for bound, count in zip(BOUNDS, counts, strict=False):  # behind them stands the sum
        total += count
        buckets.append((bound, total))
    return buckets, counts[-1]
