"""What one worker process does in a second at SQS, by its slots: `python -m benchmarks.sqs [URL] [--count N]`.

Without a URL an emulator is started, whose figures tell how it grows and nothing of Amazon's. The handler waits 20 ms,
as one that asks somebody does; the worker begins when all messages are there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
import uuid

from busline import Bus
from tests.ministack import CREDENTIALS, Ministack

SLOTS = (1, 4, 16, 64)


async def run(url: str, slots: int, count: int) -> float:
    """Messages a second."""
    service = f"bench-{uuid.uuid4().hex[:8]}"
    bus, done, seen = Bus(url, service=service), asyncio.Event(), set[int]()

    @bus.handler(f"{service}.work")
    async def work(number: int) -> None:
        await asyncio.sleep(0.02)
        seen.add(number)
        if len(seen) == count:
            done.set()

    async with bus.worker():
        pass  # so that its queue is there
    async with bus:
        await asyncio.gather(*(bus.send(f"{service}.work", number) for number in range(count)))
    began = time.perf_counter()
    async with bus.worker(concurrency=slots):
        await done.wait()
        rate = count / (time.perf_counter() - began)
    async with bus:
        await bus.transport.detach(service, delete=True)
        await bus.transport.detach(f"{service}.dead", delete=True)
    return rate


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sqs", description=__doc__)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--count", type=int, default=500)
    chosen = parser.parse_args()
    emulator = None if chosen.url else Ministack()
    if emulator is not None:
        os.environ.update(CREDENTIALS)
        emulator.start()
    try:
        url = chosen.url or f"sqs://us-east-1?endpoint_url={emulator.endpoint if emulator else ''}&wait=1&cache=0"
        for slots in SLOTS:
            rate = asyncio.run(run(url, slots, chosen.count))
            print(f"{slots:3} slots {rate:8.0f} messages/s")
    finally:
        if emulator is not None:
            emulator.stop()


if __name__ == "__main__":
    main()
