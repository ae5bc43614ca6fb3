"""The service that is measured: one echo handler, a pydantic model in and out, 200 bytes of JSON."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys

from pydantic import BaseModel

from busline import Bus
from busline.transports.base import Transport

SERVICE = "bench"
TOPIC = "bench.echo"


class Payload(BaseModel):
    """About 200 bytes as JSON."""

    number: int
    customer: str = "c0ffee00-1234-5678-9abc-def012345678"
    items: tuple[str, ...] = ("first article", "second article", "third article")
    note: str = "deliver to the back door, please"
    paid: bool = True


def make_bus(url: str | Transport) -> Bus:
    """A bus that serves the echo."""
    bus = Bus(url, service=SERVICE)

    @bus.handler(TOPIC)
    async def echo(payload: Payload) -> Payload:
        return payload

    return bus


async def serve(url: str, concurrency: int) -> None:
    """Serve until SIGTERM, then print the CPU seconds that this process used since it was ready."""
    async with make_bus(url).worker(concurrency=concurrency) as worker:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        before = cpu_seconds()
        print("READY", flush=True)
        await worker.wait()
        print(cpu_seconds() - before, flush=True)


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
