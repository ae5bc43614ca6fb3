"""Who is woken for a message on SQLite: as many processes as are needed, and another one if those do not come."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from busline.message import ToQueue
from busline.transports.sqlite import SqliteTransport, frames
from busline.transports.sqlite.consumer import SqliteConsumer

from .sqlite_files import JOBS, eventually, is_idle, job, line_of, opened, worker


@pytest.fixture
def no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lost wake-up would be made up for by is left out."""
    monkeypatch.setattr("busline.transports.sqlite.watch.PERIOD", 3600.0)


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busline.transports.sqlite.looking.PATIENCE", 3600.0)


@asynccontextmanager
async def waiting(transport: SqliteTransport, slots: int) -> AsyncIterator[tuple[SqliteConsumer, asyncio.Task[int]]]:
    """A consumer that waits for as many messages as it has slots, and how many it gets."""
    consumer = await transport.consume("jobs", slots=slots)

    async def receive() -> int:
        return len(await consumer.receive(slots))

    receiving = asyncio.create_task(receive())
    await eventually(lambda: is_idle(transport))
    try:
        yield consumer, receiving
    finally:
        receiving.cancel()
        await asyncio.wait([receiving])


async def within(seconds: float, work: Awaitable[int]) -> int:
    async with asyncio.timeout(seconds):
        return await work


@pytest.mark.usefixtures("no_watch", "no_second_look")
async def test_no_more_processes_are_woken_than_the_messages_take(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    real = frames.wake

    def wake(queue: int, due: float) -> bytes:
        woken.append(queue)
        return real(queue, due)

    async with opened(path) as sender, opened(path) as first, opened(path) as second:
        await sender.attach(JOBS)
        async with waiting(first, 4) as (_, of_first), waiting(second, 8) as (_, of_second):
            monkeypatch.setattr("busline.transports.sqlite.frames.wake", wake)
            await sender.send(ToQueue("jobs"), *(job(str(number)) for number in range(6)))
            assert await within(10, of_second) == 6
            assert len(woken) == 1, "the one that takes most"
            assert not of_first.done()
            await sender.send(ToQueue("jobs"), *(job(str(number)) for number in range(3)))
            assert await within(10, of_first) == 3


@pytest.mark.usefixtures("no_watch", "no_second_look")
async def test_who_is_woken_for_more_than_it_can_take_passes_the_rest_on(path: Path) -> None:
    async with opened(path) as sender, opened(path) as first, opened(path) as second:
        await sender.attach(JOBS)
        async with waiting(first, 4) as (consumer, of_first), waiting(second, 3) as (_, of_second):
            await consumer.resize(1)
            await sender.send(ToQueue("jobs"), *(job(str(number)) for number in range(4)))
            assert await within(10, of_first) == 1
            assert await within(10, of_second) == 3


@pytest.mark.usefixtures("no_watch")
async def test_a_message_is_not_left_to_a_process_that_is_blocked(path: Path) -> None:
    async with opened(path) as sender, opened(path) as other:
        await sender.attach(JOBS)
        async with worker(path, "many") as process:
            await eventually(lambda: is_idle(sender))
            os.kill(process.pid, signal.SIGSTOP)  # it takes most, so it is woken first
            async with waiting(other, 1) as (_, received):
                await sender.send(ToQueue("jobs"), job("1"))
                assert await within(10, received) == 1
            os.kill(process.pid, signal.SIGCONT)
            await sender.send(ToQueue("jobs"), job("2"))
            assert '"2"' in await line_of(process), "and it is as before when it goes on"


@pytest.mark.usefixtures("no_watch", "no_second_look")
async def test_who_leaves_before_its_second_look_wakes_everybody(path: Path) -> None:
    async with opened(path) as other:
        await other.attach(JOBS)
        async with worker(path, "many") as process:
            await eventually(lambda: is_idle(other))
            os.kill(process.pid, signal.SIGSTOP)  # it takes most, so it is woken first
            async with waiting(other, 1) as (_, received):
                async with opened(path) as sender:
                    await sender.send(ToQueue("jobs"), job("1"))
                assert await within(10, received) == 1
            os.kill(process.pid, signal.SIGCONT)
