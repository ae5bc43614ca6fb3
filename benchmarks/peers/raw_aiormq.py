"""Written by hand on aiormq: quorum queue, late ack, confirmed sends, direct reply-to."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiormq
from aiormq.abc import DeliveredMessage

from benchmarks.peers.common import QUEUE, Order, Shape, handled, main

QUORUM = {"x-queue-type": "quorum"}


class _Client:
    def __init__(self, calls: aiormq.abc.AbstractChannel, sends: aiormq.abc.AbstractChannel) -> None:
        self._calls, self._sends = calls, sends
        self._waiting: dict[str, asyncio.Future[Order]] = {}
        self._ids = itertools.count()

    async def arrived(self, message: DeliveredMessage) -> None:
        self._waiting.pop(message.header.properties.correlation_id).set_result(Order.model_validate_json(message.body))

    async def call(self, order: Order) -> Order:
        key = str(next(self._ids))
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        properties = aiormq.spec.Basic.Properties(correlation_id=key, reply_to="amq.rabbitmq.reply-to")
        body = order.model_dump_json().encode()
        async with asyncio.timeout(30.0):
            await self._calls.basic_publish(body, routing_key=QUEUE, properties=properties, mandatory=True)
            return await answer

    async def send(self, order: Order) -> None:
        properties = aiormq.spec.Basic.Properties(delivery_mode=2)
        await self._sends.basic_publish(order.model_dump_json().encode(), routing_key=QUEUE, properties=properties)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    connection = await aiormq.connect(url)
    client = _Client(await connection.channel(publisher_confirms=False), await connection.channel())
    await client._sends.queue_declare(QUEUE, durable=True, arguments=QUORUM)
    await client._calls.basic_consume("amq.rabbitmq.reply-to", client.arrived, no_ack=True)
    yield client
    await connection.close()


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    await channel.basic_qos(prefetch_count=shape.prefetch)
    await channel.queue_declare(QUEUE, durable=True, arguments=QUORUM)

    async def handle(message: DeliveredMessage) -> None:
        order = Order.model_validate_json(message.body)
        asked = message.header.properties
        if asked.reply_to:
            properties = aiormq.spec.Basic.Properties(correlation_id=asked.correlation_id)
            body = order.model_dump_json().encode()
            await channel.basic_publish(body, routing_key=asked.reply_to, properties=properties)
        await channel.basic_ack(message.delivery_tag, wait=False)
        handled()

    for _ in range(shape.consumers):
        await channel.basic_consume(QUEUE, handle)
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(sys.modules[__name__])
