"""Celery with rpc:// and late acks: its callers block, so each waits in a thread. Its worker is the real command."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery
from kombu import Queue

from benchmarks.peers.common import QUEUE, Order, Shape, handled, main

app = Celery("bench", broker=os.environ.get("BENCH_URL"), backend="rpc://")
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "1")),
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE, routing_key=QUEUE, queue_arguments={"x-queue-type": "quorum"})],
    worker_detect_quorum_queues=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)


@app.task(name="echo")
def echo(order: dict[str, Any]) -> dict[str, Any]:
    """Validated in and out, as the others do."""
    handled()
    return Order.model_validate(order).model_dump(mode="json")


class _Client:
    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    async def call(self, order: Order) -> Order:
        def ask() -> Any:
            return echo.delay(order.model_dump(mode="json")).get(timeout=30.0)

        return Order.model_validate(await asyncio.get_running_loop().run_in_executor(self._threads, ask))

    async def send(self, order: Order) -> None:
        def send() -> None:
            echo.apply_async((order.model_dump(mode="json"),), ignore_result=True)

        await asyncio.get_running_loop().run_in_executor(self._threads, send)


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    app.conf.broker_url = url
    with ThreadPoolExecutor(256) as threads:
        yield _Client(threads)
    app.close()


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    """The command with a pool of one process; more than one brought no more calls a second on two cores."""
    command = (sys.executable, "-m", "celery", "-A", __spec__.name if __spec__ else __name__, "worker")
    quiet = ("-c", "1", "-P", "prefork", "--without-gossip", "--without-mingle", "--loglevel", "INFO")
    environment = os.environ | {"BENCH_URL": url, "BENCH_PREFETCH": str(shape.prefetch), "C_FORCE_ROOT": "1"}
    worker = await asyncio.create_subprocess_exec(
        *command, *quiet, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert worker.stdout is not None
    try:
        async for line in worker.stdout:
            if b" ready." in line:
                ready()
    finally:
        worker.terminate()
        await worker.wait()


if __name__ == "__main__":
    main(sys.modules[__name__])
