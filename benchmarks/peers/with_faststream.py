"""FastStream on RabbitMQ: `broker.request`, as its own docs show."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from faststream.middlewares import AckPolicy
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks.peers.common import QUEUE, Order, Shape, handled, main

ECHO = RabbitQueue(QUEUE, durable=True, queue_type=QueueType.QUORUM)


class _Client:
    def __init__(self, broker: RabbitBroker) -> None:
        self._broker = broker

    async def call(self, order: Order) -> Order:
        answer = await self._broker.request(order, QUEUE, timeout=30.0)
        return Order.model_validate(await answer.decode())

    async def send(self, order: Order) -> None:
        await self._broker.publish(order, QUEUE, persist=True)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    async with RabbitBroker(url, logger=None) as broker:
        await broker.start()
        await broker.declare_queue(ECHO)
        yield _Client(broker)


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=shape.prefetch))

    @broker.subscriber(ECHO, ack_policy=AckPolicy.REJECT_ON_ERROR)
    async def echo(order: Order) -> Order:
        handled()
        return order

    await broker.start()
    ready()
    try:
        await asyncio.Event().wait()
    finally:
        await broker.stop()


if __name__ == "__main__":
    main(sys.modules[__name__])
