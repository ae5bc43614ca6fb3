"""busline with what a user gets by default, on any of its transports."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from benchmarks.peers.common import Order, Shape, handled, main
from busline import Bus

TOPIC = "bench.echo"


class _Client:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def call(self, order: Order) -> Order:
        return await self._bus.call(TOPIC, order, returns=Order)

    async def send(self, order: Order) -> None:
        await self._bus.send(TOPIC, order)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    async with Bus(url) as bus:
        yield _Client(bus)


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    bus = Bus(url, service="bench")

    @bus.handler(TOPIC)
    async def echo(order: Order) -> Order:
        handled()
        return order

    async with bus.worker(concurrency=shape.consumers, prefetch=shape.prefetch):
        ready()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(sys.modules[__name__])
