"""taskiq on RabbitMQ with results in Redis, as its docs recommend. The URL is `AMQP_URL,REDIS_URL`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from taskiq import AsyncTaskiqDecoratedTask
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType
from taskiq_redis import RedisAsyncResultBackend

from benchmarks.peers.common import QUEUE, Order, Shape, handled, main


def _broker(url: str, prefetch: int) -> tuple[AioPikaBroker, AsyncTaskiqDecoratedTask[..., Order]]:
    amqp, redis = url.split(",")
    broker = AioPikaBroker(
        amqp, qos=prefetch, exchange_name="bench_taskiq", task_queues=[Queue(QUEUE, type=QueueType.QUORUM)]
    ).with_result_backend(RedisAsyncResultBackend(redis, result_ex_time=60))

    @broker.task
    async def echo(order: Order) -> Order:
        handled()
        return order

    return broker, echo


class _Client:
    def __init__(self, echo: AsyncTaskiqDecoratedTask[..., Order]) -> None:
        self._echo = echo

    async def call(self, order: Order) -> Order:
        task = await self._echo.kiq(order)
        result = await task.wait_result(check_interval=0.002, timeout=30.0)
        return Order.model_validate(result.return_value)

    async def send(self, order: Order) -> None:
        await self._echo.kiq(order)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    broker, echo = _broker(url, 1)
    await broker.startup()
    yield _Client(echo)
    await broker.shutdown()


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    broker, _ = _broker(url, shape.prefetch)
    broker.is_worker_process = True
    await broker.startup()
    receiver = asyncio.ensure_future(
        run_receiver_task(broker, max_async_tasks=shape.prefetch, max_prefetch=shape.prefetch)
    )
    await asyncio.sleep(0.5)  # its receiver does not tell when it consumes
    ready()
    await receiver


if __name__ == "__main__":
    main(sys.modules[__name__])
