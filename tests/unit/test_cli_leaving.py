"""How a worker process ends, with a worker that only takes notes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import cast

import pytest

from busline.cli.exits import Exit
from busline.cli.leaving import Leaving, default_block_timeout
from busline.cli.recycling import MEGABYTE, Recycling
from busline.cli.watchdog import Pulse
from busline.process import resident_memory
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

    def retire(self) -> None:
        self.told.append("retire")

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


async def test_a_stuck_handler_makes_the_others_be_given_back_and_names_the_exit_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leaving, worker = Leaving(25.0), Notes()
    leaving.connecting()
    leaving.serving(cast("Worker", worker))
    leaving.stuck("the handler of t goes on")
    leaving.stuck("the handler of u goes on")
    assert worker.told == ["abort"]
    assert leaving.code == leaving.left(Exit.OK) == Exit.STUCK
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]


async def test_a_process_that_retires_before_it_serves_retires_then(caplog: pytest.LogCaptureFixture) -> None:
    leaving, worker = Leaving(25.0, block_timeout=0.0), Notes()
    leaving.retire("1 messages")
    assert worker.told == []
    leaving.serving(cast("Worker", worker))
    assert worker.told == ["retire"]
    assert leaving.code == Exit.RECYCLED


@pytest.mark.parametrize(("lease", "limit"), [(None, 5.0), (60.0, 5.0), (10.0, 5.0), (4.0, 2.0)])
def test_a_loop_counts_as_blocked_before_its_leases_end(lease: float | None, limit: float) -> None:
    assert default_block_timeout(lease) == limit


def test_silence_counts_only_while_somebody_listens() -> None:
    pulse = Pulse(8.0)  # asked once a second
    now = time.monotonic()
    assert pulse.silence(now) < 0.1
    assert [round(pulse.silence(now + second)) for second in (1, 2, 3)] == [1, 2, 3]
    assert round(pulse.silence(now + 3_600)) == 5  # the machine slept: two seconds at most
    pulse.beats += 1
    assert pulse.silence(now + 3_601) == 0.0
    assert round(pulse.silence(now + 3_602)) == 1


BLOCKED = """
import asyncio, logging, time
from busline.cli.watchdog import *
logging.basicConfig()
dog = Watchdog()
dog.start()
async def main():
    dog.guard(0.4)
    await asyncio.sleep(0.8)
    print('awake', end='', flush=True)
    {then}
    time.sleep(60)
asyncio.run(main())
"""


def test_the_watchdog_ends_a_process_whose_loop_does_not_turn_and_shows_where() -> None:
    command = [sys.executable, "-c", BLOCKED.format(then="")]
    ended = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (Exit.BLOCKED, b"awake")
    assert b"in main" in ended.stderr


def test_whoever_holds_the_lock_of_the_log_is_ended_all_the_same() -> None:
    command = [sys.executable, "-c", BLOCKED.format(then="logging.root.handlers[0].acquire()")]
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == Exit.BLOCKED


def test_a_process_that_was_stopped_as_a_whole_was_not_blocked() -> None:
    then = "print('.', flush=True); await asyncio.sleep(1.5); end(Exit.OK)"
    program = BLOCKED.format(then=then)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"awake.\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    process.send_signal(signal.SIGCONT)
    assert process.wait(10) == Exit.OK
    process.stdout.close()


def test_a_process_retires_once_after_so_many_messages() -> None:
    told: list[str] = []
    recycling = Recycling(3, None, told.append)
    for _ in range(5):
        recycling.on_message()
    assert told == ["3 messages"]


async def test_a_process_retires_when_it_uses_too_much_memory_but_not_before_its_first_message() -> None:
    told: list[str] = []
    used = resident_memory() // MEGABYTE
    assert 10 < used < 10_000
    modest, greedy = Recycling(None, used + 1_000, told.append), Recycling(None, 1, told.append)
    modest.on_message()
    assert told == []
    greedy.on_message()
    assert len(told) == 1
    assert told[0].startswith("1 message, with ")
    await asyncio.wait_for(Recycling(5, None, told.append).run(), 1)  # nothing to look at
