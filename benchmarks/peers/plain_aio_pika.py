"""Written by hand on aio-pika, with its robust connection."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from benchmarks.peers.common import QUEUE, Order, Shape, handled, main

QUORUM = {"x-queue-type": "quorum"}


class _Client:
    def __init__(self, calls: AbstractChannel, sends: AbstractChannel) -> None:
        self._calls, self._sends = calls.default_exchange, sends.default_exchange
        self._waiting: dict[str, asyncio.Future[Order]] = {}
        self._ids = itertools.count()

    async def arrived(self, message: AbstractIncomingMessage) -> None:
        self._waiting.pop(message.correlation_id or "").set_result(Order.model_validate_json(message.body))

    async def call(self, order: Order) -> Order:
        key = str(next(self._ids))
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        body = order.model_dump_json().encode()
        message = aio_pika.Message(body, correlation_id=key, reply_to="amq.rabbitmq.reply-to")
        async with asyncio.timeout(30.0):
            await self._calls.publish(message, QUEUE)
            return await answer

    async def send(self, order: Order) -> None:
        body = order.model_dump_json().encode()
        await self._sends.publish(aio_pika.Message(body, delivery_mode=2), QUEUE)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    connection = await aio_pika.connect_robust(url)
    async with connection:
        calls = await connection.channel(publisher_confirms=False)
        client = _Client(calls, sends := await connection.channel())
        await sends.declare_queue(QUEUE, durable=True, arguments=QUORUM)
        replies = await calls.get_queue("amq.rabbitmq.reply-to", ensure=False)
        await replies.consume(client.arrived, no_ack=True)
        yield client


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    connection = await aio_pika.connect_robust(url)
    channel = await connection.channel(publisher_confirms=False)
    await channel.set_qos(shape.prefetch)
    queue = await channel.declare_queue(QUEUE, durable=True, arguments=QUORUM)

    async def handle(message: AbstractIncomingMessage) -> None:
        order = Order.model_validate_json(message.body)
        if message.reply_to:
            answer = aio_pika.Message(order.model_dump_json().encode(), correlation_id=message.correlation_id)
            await channel.default_exchange.publish(answer, message.reply_to)
        await message.ack()
        handled()

    for _ in range(shape.consumers):
        await queue.consume(handle)
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(sys.modules[__name__])
