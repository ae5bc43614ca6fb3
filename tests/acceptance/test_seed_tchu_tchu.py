"""Two field reports about calls over Celery: "5 times, and some work and others do not", and the repair that hangs all.

There were several workers, prefetch 4, early acks, results in a reply queue; then late acks, which that reply queue
did not bear. Here: the worker as it is started in production, at a file and at RabbitMQ.
"""

import asyncio
import os
import signal
import time
from typing import Any

import pytest
from process.commands import Folder, Running, lives

from busline import Bus, CallTimeout, NoHandler

APP = """
import asyncio, os
from pathlib import Path
from busline import Bus

HERE = Path(__file__).parent
bus = Bus(service="pulse", max_clock_skew=0.1)  # all on one machine

def note(*words):
    file = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, words)) + "\\n").encode())
    os.close(file)

@bus.handler("rpc.test.ping")
async def ping(iteration: int) -> dict:
    return {"iteration": iteration, "pid": os.getpid()}

@bus.handler("rpc.slow", queue="slow")
async def slow(iteration: int) -> dict:
    note("slow", iteration, os.getpid())
    while not (HERE / "gate").exists():
        await asyncio.sleep(0.01)
    return {"iteration": iteration, "pid": os.getpid()}

@bus.handler("report.make", queue="background")
async def report(number: int) -> None:
    note("report", number, os.getpid())
    while not (HERE / "gate").exists():
        await asyncio.sleep(0.01)

@bus.handler("report.render", queue="background")
def render(number: int) -> None:
    note("report", number, os.getpid())
    import time
    while not (HERE / "gate").exists():
        time.sleep(0.01)
"""


@pytest.fixture
def pulse(place: Folder) -> Folder:
    place.write("app", APP)
    return place


def serve(place: Folder, *options: str, processes: int = 1) -> Running:
    worker = place.worker("app:bus", "--processes", str(processes), *options)
    worker.until_ready(processes)
    return worker


async def test_the_same_call_answers_every_time_with_several_workers(pulse: Folder) -> None:
    """ "The same topic 5 times, and some will work and others won't": 100 of 100, one by one and all at once."""
    await asyncio.to_thread(serve, pulse, "--concurrency", "1", processes=3)
    async with Bus(pulse.url) as bus:
        answers = [await bus.call("rpc.test.ping", n, timeout=20) for n in range(100)]
        answers += await asyncio.gather(*(bus.call("rpc.test.ping", n, timeout=60) for n in range(100)))
        assert bus.calls_in_flight == 0
    assert [answer["iteration"] for answer in answers] == [*range(100), *range(100)]  # never None, never another's
    assert len({answer["pid"] for answer in answers}) > 1  # two may be quick enough to leave the third nothing


async def test_no_worker_hoards_calls_behind_one_that_takes_long(pulse: Folder) -> None:
    """With prefetch 4, calls waited in the memory of a worker that was busy while others were idle."""
    await asyncio.to_thread(serve, pulse, "--concurrency", "1", "--queues", "slow", processes=2)
    await asyncio.to_thread(serve, pulse, "--concurrency", "1", "--queues", "slow")
    async with Bus(pulse.url) as bus:
        held = [asyncio.create_task(bus.call("rpc.slow", n, timeout=60)) for n in range(6)]
        await asyncio.to_thread(pulse.until_notes, 3)
        await asyncio.sleep(0.3)  # a fourth must not start, which has no sign
        assert len({note.split()[2] for note in pulse.notes}) == len(pulse.notes) == 3  # one in each process
        pulse.open_gate()
        assert [answer["iteration"] for answer in await asyncio.gather(*held)] == list(range(6))


async def test_a_call_whose_worker_is_killed_is_answered_by_another(pulse: Folder) -> None:
    """With early acks it was gone, and its caller waited for ever."""
    await asyncio.to_thread(serve, pulse, "--concurrency", "1", processes=2)
    async with Bus(pulse.url) as bus:
        call = asyncio.create_task(bus.call("rpc.slow", 1, timeout=60))
        (note,) = await asyncio.to_thread(pulse.until_notes, 1)
        victim = int(note.split()[2])
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(pulse.until_notes, 2)
        pulse.open_gate()
        answer = await call
    assert answer["iteration"] == 1
    assert answer["pid"] != victim
    assert not lives(victim)


async def test_a_caller_learns_whether_its_call_waits_or_runs(pulse: Folder) -> None:
    """ "Callers can't distinguish between queued and processing"."""
    worker = await asyncio.to_thread(serve, pulse, "--concurrency", "1")
    async with Bus(pulse.url) as bus:
        began = time.monotonic()
        running, waiting = await asyncio.gather(
            *(bus.call("rpc.slow", n, timeout=3) for n in range(2)), return_exceptions=True
        )
        assert 3 <= time.monotonic() - began < 10  # by its deadline, never later
        states = sorted(error.state for error in (running, waiting) if isinstance(error, CallTimeout))
        assert states == ["queued", "started"]
        await asyncio.sleep(0.5)  # beyond what clocks are allowed to differ
        # Nothing has to be purged: what nobody waits for any more is not run.
        pulse.open_gate()
        assert (await bus.call("rpc.slow", 9, timeout=20))["iteration"] == 9
    assert [note.split()[1] for note in pulse.notes if note.split()[1] in ("0", "1")] in (["0"], ["1"])
    await asyncio.to_thread(worker.tell)
    assert await asyncio.to_thread(worker.exit_code) == 0


async def test_a_topic_without_a_handler_is_an_error_at_once(pulse: Folder) -> None:
    """Handlers that had not been imported looked like calls that hang."""
    await asyncio.to_thread(serve, pulse)
    async with Bus(pulse.url) as bus:
        began = time.monotonic()
        with pytest.raises(NoHandler, match=r"rpc\.test\.pong"):
            await bus.call("rpc.test.pong", timeout=60)
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("reply", ["direct", "queue"])
async def test_late_acks_go_together_with_replies_of_either_kind(
    reply: str, rabbit: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The second report: with late acks, every call of `rpc://` stayed pending."""
    folder = Folder(tmp_path_factory.mktemp("pulse"), f"{rabbit.empty_url()}?reply={reply}")
    folder.write("app", APP)
    try:
        await asyncio.to_thread(serve, folder, "--concurrency", "1", processes=2)
        async with Bus(folder.url) as bus:
            answers = [await bus.call("rpc.test.ping", n, timeout=20) for n in range(20)]
        assert [answer["iteration"] for answer in answers] == list(range(20))
    finally:
        folder.end()


@pytest.mark.parametrize("pools", ["one worker", "two workers"])
async def test_a_full_background_pool_never_delays_a_call(pulse: Folder, pools: str) -> None:
    """Calls with prefetch 1 in one pool, background jobs with prefetch 4 in another, as the report advises; and the
    same in one worker, where each queue has slots of its own anyway."""
    background = ("--concurrency", "2", "--prefetch", "4")
    if pools == "two workers":
        await asyncio.to_thread(serve, pulse, "--queues", "pulse", "--concurrency", "1")
        await asyncio.to_thread(serve, pulse, "--queues", "background", *background)
    else:
        await asyncio.to_thread(serve, pulse, *background)
    async with Bus(pulse.url) as bus:
        for number in range(20):
            await bus.send(("report.make", "report.render")[number % 2], number)
        await asyncio.to_thread(pulse.until_notes, 2)
        for number in range(50):
            answer = await bus.call("rpc.test.ping", number, timeout=10)
            assert answer["iteration"] == number
        assert len(pulse.notes) == 2  # the pool is as full as it was
        pulse.open_gate()
        await asyncio.to_thread(pulse.until_notes, 20)
