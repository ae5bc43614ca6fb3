"""nats-py: request and reply without durability, as a reference for what a broker can do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from benchmarks.peers.common import QUEUE, Order, Shape, main


class _Client:
    def __init__(self, connection: Nats) -> None:
        self._nats = connection

    async def call(self, order: Order) -> Order:
        answer = await self._nats.request(QUEUE, order.model_dump_json().encode(), timeout=30.0)
        return Order.model_validate_json(answer.data)

    async def send(self, order: Order) -> None:
        raise SystemExit("core NATS keeps nothing")


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    connection = await nats.connect(url)
    yield _Client(connection)
    await connection.close()


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    connection = await nats.connect(url)

    async def handle(message: Msg) -> None:
        order = Order.model_validate_json(message.data)
        await message.respond(order.model_dump_json().encode())

    await connection.subscribe(QUEUE, cb=handle)
    await connection.flush()
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(sys.modules[__name__])
