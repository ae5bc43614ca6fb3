"""What a call costs above its transport on either side: `python -m benchmarks.sides`.

The same calls over memory in one process four times: with nothing of ours, both sides being a few lines straight on the
transport; with our caller; with our worker; with both. What is more than with nothing is the side's own. With a name
and numbers (`python -m benchmarks.sides worker 2000 64`) just these calls, for a counter of instructions: the
difference between N and 2 N is free of what starting costs, and of how busy the machine is.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from benchmarks.app import SERVICE, TOPIC, Payload, cpu_seconds, make_bus
from benchmarks.measure import check_echo, in_flight
from busline import Bus
from busline.message import Message, QueueSpec, ToTopic
from busline.transports.memory import MemoryBroker, MemoryTransport
from busline.wire import Envelope, new_id, reply_to

SIDES = ("neither", "caller", "worker", "both")
SLOTS = 64
FAR = 4e9
"""A deadline, seconds since the epoch."""
Work = Callable[[int], Awaitable[object]]


@asynccontextmanager
async def bare_worker(broker: MemoryBroker) -> AsyncIterator[None]:
    """Answers each call with its own body, straight on the transport."""
    transport = MemoryTransport(broker)
    await transport.open()
    await transport.attach(QueueSpec(SERVICE, SERVICE, frozenset({TOPIC})))
    consumer = await transport.consume(SERVICE, slots=SLOTS)

    async def slot() -> None:
        while True:
            for delivery in await consumer.receive(1):
                asked = delivery.message
                await transport.reply(asked.reply_to or "", reply_to(asked, "ok", asked.body))
                await consumer.ack(delivery)

    tasks = [asyncio.create_task(slot()) for _ in range(SLOTS)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await transport.aclose()


@asynccontextmanager
async def bare_caller(broker: MemoryBroker) -> AsyncIterator[Work]:
    """Sends the same request again and again, straight on the transport."""
    transport = MemoryTransport(broker)
    await transport.open()
    waiting: dict[str | None, asyncio.Future[Message]] = {}
    inbox = await transport.open_inbox(lambda reply: waiting.pop(reply.correlation_id).set_result(reply), _lost)
    body, meta = Payload(number=1).model_dump_json().encode(), Envelope(new_id(), 0.0, deadline=FAR).encode()
    loop, to = asyncio.get_running_loop(), ToTopic(TOPIC)

    async def call(number: int) -> None:
        Payload(number=number)  # making it is its maker's, and on both sides of the comparison
        future = waiting[str(number)] = loop.create_future()
        await inbox.send(to, Message(TOPIC, body, meta, {}, str(number)))
        await future

    yield call
    await transport.aclose()


def _lost() -> None:
    raise AssertionError("memory is never lost")


@asynccontextmanager
async def calling(side: str) -> AsyncIterator[Work]:
    """What makes one call with the sides of ours that `side` names."""
    broker = MemoryBroker()
    ours = make_bus(MemoryTransport(broker)).worker(concurrency=SLOTS)
    async with ours if side in ("worker", "both") else bare_worker(broker):
        if side in ("caller", "both"):
            async with Bus(MemoryTransport(broker)) as bus:
                yield lambda number: check_echo(bus, number)
        else:
            async with bare_caller(broker) as call:
                yield call


async def cost(side: str, count: int, width: int = 64) -> float:
    """CPU of this process a call, microseconds."""
    async with calling(side) as call:
        await in_flight(max(width, count // 10), width, call)
        before = cpu_seconds()
        await in_flight(count, width, call)
        return (cpu_seconds() - before) / count * 1e6


def sides(count: int, runs: int) -> dict[str, float]:
    """Of both sides and the transport, and of each side above it; medians of runs in turn."""
    taken = [{side: asyncio.run(cost(side, count)) for side in SIDES} for _ in range(runs)]

    def median(of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(of(run) for run in taken)

    return {
        "caller": median(lambda run: run["caller"] - run["neither"]),
        "worker": median(lambda run: run["worker"] - run["neither"]),
        "both, and the memory transport": median(lambda run: run["both"]),
        "spread": (max(run["both"] for run in taken) - min(run["both"] for run in taken))
        / median(lambda run: run["both"]),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(cost(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    else:
        for what, figure in sides(10_000, 5).items():
            print(f"{what}: {figure:.2f}")
