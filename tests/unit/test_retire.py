"""A worker that retires takes no more, and has all the time it needs for what it has; until it is told to stop."""

import asyncio

import pytest

from busline import Bus
from busline.testing.scenes import eventually


class Slow:
    """A bus whose handler waits to be let go."""

    def __init__(self) -> None:
        self.bus = Bus("memory://", service="slow")
        self.go = asyncio.Event()
        self.begun = 0
        self.done = 0
        self.bus.handler("t")(self.handle)

    async def handle(self, number: int) -> None:
        self.begun += 1
        await self.go.wait()
        self.done += 1


async def test_what_runs_is_finished_beyond_the_drain_timeout_and_nothing_else_is_taken() -> None:
    slow = Slow()
    async with slow.bus, slow.bus.worker(concurrency=1, drain_timeout=0.05) as worker:
        await slow.bus.send("t", 1)
        await eventually(lambda: slow.begun == 1)
        worker.retire()
        waiting = asyncio.create_task(worker.wait())
        await slow.bus.send("t", 2)
        await asyncio.sleep(0.2)  # longer than a drain may take
        assert (slow.begun, waiting.done()) == (1, False)
        slow.go.set()
        await waiting
        assert (slow.begun, slow.done) == (1, 1)


@pytest.mark.parametrize("how", ["stop", "abort"])
async def test_a_worker_that_retires_can_still_be_hurried(how: str) -> None:
    slow = Slow()
    async with slow.bus, slow.bus.worker(drain_timeout=0.05) as worker:
        await slow.bus.send("t", 1)
        await eventually(lambda: slow.begun == 1)
        worker.retire()
        getattr(worker, how)()
        await asyncio.wait_for(worker.wait(), 5)
        assert (slow.done, slow.bus.stats.released) == (0, 1)


async def test_each_message_that_is_taken_is_told() -> None:
    slow, taken = Slow(), list[int]()
    slow.go.set()
    async with slow.bus, slow.bus.worker(on_message=lambda: taken.append(slow.done)):
        for number in range(3):
            await slow.bus.send("t", number)
            await eventually(lambda: slow.done == len(taken) == number + 1)  # noqa: B023  # it is called at once
    assert taken == [0, 1, 2]
