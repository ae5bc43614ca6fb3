"""What telemetry costs per call: `python -m benchmarks.telemetry [--runs N] [--count N]`.

Caller and worker share this process over memory://, so one call is a departure, a receipt, an attempt and a reply, all
observed. The variants take turns, so that a machine that slows down slows them all; CPU time is what is compared.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from statistics import median

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from benchmarks.app import make_bus
from benchmarks.measure import check_echo, timed
from busline import Bus
from busline.integrations.otel import OpenTelemetryTraces
from busline.metrics import Metrics
from busline.observing import Observer


class Nowhere(SpanExporter):
    """Takes spans as a collector would, at once."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


RECORDING, UNSAMPLED = TracerProvider(), TracerProvider(sampler=ALWAYS_OFF)
RECORDING.add_span_processor(BatchSpanProcessor(Nowhere()))

VARIANTS: dict[str, Callable[[Bus], None]] = {
    "off": lambda bus: None,
    "an observer that looks at nothing": lambda bus: bus.instrument(Observer()),
    "metrics": lambda bus: bus.instrument(Metrics()),
    "traces, not sampled": lambda bus: bus.instrument(OpenTelemetryTraces(UNSAMPLED)),
    "traces, every one": lambda bus: bus.instrument(OpenTelemetryTraces(RECORDING)),
    "metrics and traces": lambda bus: bus.instrument(Metrics(), OpenTelemetryTraces(RECORDING)),
}


async def run(name: str, instrument: Callable[[Bus], None], count: int) -> float:
    """Microseconds of CPU per call."""
    bus = make_bus(f"memory://{name.replace(' ', '-')}")
    instrument(bus)
    async with bus.worker(concurrency=64):
        return (await timed(name, count, 64, lambda number: check_echo(bus, number))).caller_us


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--count", type=int, default=5_000)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(options.runs):
        for name, instrument in VARIANTS.items():
            taken[name].append(asyncio.run(run(name, instrument, options.count)))
    off = median(taken["off"])
    for name, figures in taken.items():
        cost = median(figures)
        print(f"{name:<36}{cost:8.1f} µs a call{cost - off:+8.1f} µs{cost / off:8.2f}×   (best {min(figures):.1f})")


if __name__ == "__main__":
    main()
