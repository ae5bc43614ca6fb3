"""How a worker process ends, with a worker that only takes notes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from busline.cli.exits import Exit
from busline.cli.leaving import Leaving
from busline.worker import Worker


class Notes:
    running = 1
    shortest_lease = None

    def __init__(self) -> None:
        self.told: list[str] = []
        self.changed = asyncio.Event()

    def stop(self) -> None:
        self.told.append("stop")
        self.changed.set()

    def abort(self) -> None:
        self.told.append("abort")
        self.changed.set()

    async def next(self) -> None:
        await asyncio.wait_for(self.changed.wait(), 5)
        self.changed.clear()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_the_first_signal_drains_and_the_second_aborts() -> None:
    leaving, worker = Leaving(25.0), Notes()
    leaving.connecting()
    leaving.serving(cast("Worker", worker))
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        await worker.next()
    assert worker.told == ["stop", "abort"]
    assert leaving.requests == 2


async def test_a_signal_while_connecting_gives_up_connecting() -> None:
    leaving = Leaving(25.0)
    connecting = asyncio.Event()

    async def connect() -> None:
        leaving.connecting()
        connecting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(connect())
    await connecting.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    assert leaving.requests == 1


async def test_the_end_of_the_lifeline_is_a_request_to_leave() -> None:
    reading, writing = os.pipe()
    leaving, worker = Leaving(25.0), Notes()
    leaving.connecting()
    leaving.serving(cast("Worker", worker))
    holding = asyncio.create_task(asyncio.to_thread(leaving._hold, reading))
    os.write(writing, b"not yet")
    os.close(writing)
    await worker.next()
    await holding
    assert worker.told == ["stop"]
    os.close(reading)


@pytest.mark.parametrize("orders", ["(0.1, Exit.ABORTED)", "(60.0, Exit.OK), (0.1, Exit.ABORTED)"])
def test_the_watchdog_obeys_the_earliest_order_though_the_process_is_busy(orders: str) -> None:
    program = (
        "import time\nfrom busline.cli.leaving import *\ndog = Watchdog()\ndog.start()\n"
        f"for seconds, code in [{orders}]:\n    dog.end_within(seconds, code)\n"
        "print('flushed', end='')\ntime.sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (Exit.ABORTED, b"flushed")


def test_importing_busline_imports_no_command_line() -> None:
    program = "import sys, busline; print([name for name in ('typer', 'rich', 'busline.cli') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == "[]\n"
