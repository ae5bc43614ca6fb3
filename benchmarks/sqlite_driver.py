"""The SQLite transport by itself, without the bus: `python benchmarks/sqlite_driver.py [calls|sends|backlog|idle]…`.

calls: request and reply between two processes. sends: durable sends. backlog: claims before a million messages.
idle: processor time of a worker that has nothing to do.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.transports.sqlite import SqliteTransport

BODY, META = b"x" * 200, "m" * 80
SPEC = QueueSpec("echo", "benchmark", frozenset({"echo"}))
IDLE_SECONDS = 5.0

FILL = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
INSERT INTO message (queue, priority, due, topic, meta, body)
SELECT 1, 0, {due}, 'echo', '{meta}', zeroblob(200) FROM n
"""


async def opened(path: str) -> SqliteTransport:
    transport = SqliteTransport(path)
    await transport.open()
    await transport.attach(SPEC)
    return transport


async def serve(path: str, slots: int = 64) -> None:
    """Answer calls until standard input ends; print the processor time of the first idle seconds if asked to idle."""
    transport = await opened(path)
    consumer = await transport.consume(SPEC.name, slots=slots)

    async def slot() -> None:
        while True:
            for delivery in await consumer.receive(1):
                asked = delivery.message
                answer = Message(asked.topic, asked.body, correlation_id=asked.correlation_id)
                await transport.reply(asked.reply_to or "", answer)
                await consumer.ack(delivery)

    tasks = [asyncio.create_task(slot()) for _ in range(slots)]
    print("ready", flush=True)
    before = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    await asyncio.to_thread(sys.stdin.read)
    print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before, flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await transport.aclose()


def start_worker(path: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "serve", path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


async def in_flight(number: int, total: int, step: Callable[[], Awaitable[object]]) -> str:
    """Run `step` so often, so many at a time; say how that went."""
    took: list[float] = []

    async def one_after_the_other() -> None:
        for _ in range(total // number):
            began = time.perf_counter()
            await step()
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(number)))
    rate = len(took) / (time.perf_counter() - began)
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    return f"{number:3} in flight: {rate:8,.0f}/s, p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms"


async def calls(path: str) -> None:
    for workers in (1, 4):
        processes = [start_worker(path) for _ in range(workers)]
        transport = await opened(path)
        waiting: dict[str | None, asyncio.Future[Message]] = {}
        inbox = await transport.open_inbox(
            lambda m, waiting=waiting: waiting.pop(m.correlation_id).set_result(m), print
        )

        async def call(inbox=inbox, waiting=waiting) -> None:
            future = asyncio.get_running_loop().create_future()
            correlation_id = str(id(future))
            waiting[correlation_id] = future
            await inbox.send(ToTopic("echo"), Message("echo", BODY, META, correlation_id=correlation_id))
            await future

        for number, total in ((1, 2_000), (64, 20_000)):
            print(f"calls, {workers} worker(s), {await in_flight(number, total, call)}")
        await transport.aclose()
        for process in processes:
            await asyncio.to_thread(process.communicate)


async def sends(path: str) -> None:
    transport = await opened(path)
    message = Message("echo", BODY, META)
    for number, total in ((1, 2_000), (64, 30_000)):
        print(f"durable sends, {await in_flight(number, total, lambda: transport.send(ToTopic('echo'), message))}")
    await transport.aclose()


async def backlog(path: str) -> None:
    transport = await opened(path)
    consumer = await transport.consume(SPEC.name, slots=1)

    async def claim() -> None:
        await consumer.ack(*await consumer.receive(1))

    for kind, due in (("ready", "NULL"), ("delayed", "unixepoch() + 3600 + i")):
        db = transport._opened().db
        db.execute(FILL.format(due=due, meta=META))
        await transport.send(ToQueue(SPEC.name), *[Message("echo", BODY, META)] * 1_000)
        print(f"claim and ack before 1,000,000 {kind}, {await in_flight(1, 1_000, claim)}")
        await transport.purge(SPEC.name)
    await transport.aclose()


async def idle(path: str) -> None:
    process = start_worker(path)
    await asyncio.sleep(IDLE_SECONDS)
    spent = float((await asyncio.to_thread(process.communicate))[0])
    print(f"idle worker: {spent / IDLE_SECONDS:.2%} of a core")


def main(names: list[str]) -> None:
    known = {"calls": calls, "sends": sends, "backlog": backlog, "idle": idle}
    for name in names or known:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(known[name](str(Path(folder) / "bus.db")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(sys.argv[2]))
    else:
        main(sys.argv[1:])
