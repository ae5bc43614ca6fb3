"""`bus.sync()`: the verbs for code that does not await, over one SQLite file with a worker in another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from busline import (
    Bus,
    CallTimeout,
    ConfigurationError,
    Context,
    Job,
    JobTimeout,
    NoHandler,
    RemoteError,
    ReplyLost,
    Retry,
    TransportClosed,
)
from busline.sync_jobs import SyncJob
from busline.transports.memory import MemoryBroker, MemoryTransport


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/bus.db"


@pytest.fixture
def served(url: str) -> Iterator[Bus]:
    """A bus of the same file, whose worker runs in a thread of its own, as another process would."""
    bus = Bus(url, service="sums")
    got = bus.got = []  # type: ignore[attr-defined]  # what the subscriber saw, for the tests

    @bus.handler("sums.double")
    def double(number: int) -> int:
        return 2 * number

    @bus.handler("sums.fail")
    def fail(text: str) -> None:
        raise ValueError(text)

    @bus.handler("sums.hang")
    async def hang() -> None:
        await anyio.sleep(60)

    @bus.handler("sums.through")
    def through(number: int, ctx: Context) -> list[object]:
        with Bus(url).sync() as sync:  # from the thread of a handler
            seen = sync.call("sums.who", returns=list[object])
        return [ctx.id, ctx.deadline, *seen]

    @bus.handler("sums.who")
    async def who(ctx: Context) -> list[object]:
        return [ctx.causation_id, ctx.deadline]

    @bus.subscriber("sums.seen")
    async def on_seen(number: int) -> None:
        got.append(number)

    with in_thread(bus):
        yield bus


@contextmanager
def in_thread(bus: Bus) -> Iterator[None]:
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with bus.worker(concurrency=20, drain_timeout=0.1):
            ready.set()
            await anyio.to_thread.run_sync(stop.wait)

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        stop.set()
        thread.join(20)


def loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "busline sync"]


def until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_at, "not within 20 s"
        time.sleep(0.01)


def test_the_verbs_are_those_of_the_bus(served: Bus, url: str) -> None:
    with Bus(url).sync() as sync:
        assert sync.call("sums.double", 21, returns=int, timeout=20) == 42
        with pytest.raises(RemoteError, match="ValueError: no luck"):
            sync.call("sums.fail", "no luck")
        with pytest.raises(NoHandler):
            sync.call("sums.nobody")
        with pytest.raises(CallTimeout):
            sync.call("sums.hang", timeout=0.1)
        assert sync.send("sums.double", 1, delay=0.1).topic == "sums.double"
        sync.publish("sums.seen", 7)
        until(lambda: served.got == [7])  # type: ignore[attr-defined]  # set by the fixture


def test_many_threads_share_one_and_each_gets_its_own_answers(served: Bus, url: str) -> None:
    with Bus(url).sync() as sync, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: sync.call("sums.double", number, returns=int), range(500)))
        assert len(loops()) == 1
    assert answers == [2 * number for number in range(500)]
    assert not loops()


def test_it_opens_when_first_used_by_one_of_the_threads_that_come_at_once(served: Bus, url: str) -> None:
    sync = Bus(url).sync()
    assert not loops()
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda number: sync.call("sums.double", number, returns=int), range(8))) == 56
    sync.close()
    sync.close()
    with pytest.raises(TransportClosed, match="make another"):
        sync.call("sums.double", 1)


def test_a_call_from_a_handlers_thread_belongs_to_its_conversation_and_ends_by_its_deadline(
    served: Bus, url: str
) -> None:
    with Bus(url).sync() as sync:
        cause, deadline, causation, inner = sync.call("sums.through", 1, timeout=10, returns=list[str | float])
    assert causation == cause
    assert isinstance(inner, float)
    assert isinstance(deadline, float)
    assert inner <= deadline + 0.001


def test_a_block_bounds_all_its_calls_together(served: Bus, url: str) -> None:
    bus = Bus(url)
    with bus.sync() as sync, bus.within(0.3):
        with pytest.raises(CallTimeout):
            sync.call("sums.hang", timeout=60)
        with pytest.raises(CallTimeout):
            sync.call("sums.double", 1, timeout=60)


def test_closing_ends_what_is_pending_in_other_threads(served: Bus, url: str) -> None:
    sync = Bus(url).sync()
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(sync.call, "sums.hang", timeout=60) for _ in range(4)]
        until(lambda: sync._bus.calls_in_flight == 4)
        sync.close()
        for each in pending:
            with pytest.raises(ReplyLost):
                each.result(20)


async def test_its_bus_may_be_open_in_another_loop_at_the_same_time(served: Bus, url: str) -> None:
    bus = Bus(url)
    async with bus:
        with bus.sync() as sync:
            blocked = anyio.to_thread.run_sync(lambda: sync.call("sums.double", 2, returns=int))
            assert await bus.call("sums.double", 3) == 6
            assert await blocked == 4
        assert await bus.call("sums.double", 4) == 8


def test_what_cannot_be_opened_says_so_and_may_be_tried_again(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "later"
    sync = Bus(f"sqlite:///{folder}/bus.db").sync()
    for _ in range(2):
        with pytest.raises(Exception, match="later"):
            sync.publish("any.thing")
    folder.mkdir()
    sync.publish("any.thing")
    sync.close()


async def test_a_transport_that_lives_in_one_event_loop_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="given URLs"):
        Bus(MemoryTransport(MemoryBroker())).sync()
    async with Bus("memory://shared-by-loops") as bus:
        with pytest.raises(ConfigurationError, match="lives in one event loop"):
            bus.sync().publish("any.thing")


def run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env={**os.environ, "BUSLINE_URL": f"sqlite:///{folder}/bus.db", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_script_need_not_close_it_and_leaves_nothing_behind(served: Bus, tmp_path: Path) -> None:
    mine, temporary = tmp_path / "bus.db-run", tmp_path / "tmp"
    temporary.mkdir()
    before = set(mine.iterdir())
    done = run("from busline import Bus; print(Bus().sync().call('sums.double', 4))", tmp_path, TMPDIR=str(temporary))
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
    assert (set(mine.iterdir()), list(temporary.iterdir())) == (before, [])


def test_what_keeps_it_from_closing_at_the_end_of_the_program_is_told(served: Bus, tmp_path: Path) -> None:
    program = """
from busline import Bus
from busline.transports.sqlite import SqliteTransport
async def fails(transport):
    raise OSError("the disk is full")
print(Bus().sync().call("sums.double", 4))
SqliteTransport.aclose = fails
"""
    done = run(program, tmp_path)
    assert done.stdout == "8\n"
    assert "a bus could not be closed at the end of the program: the disk is full" in done.stderr


def test_a_call_that_hangs_in_a_forgotten_thread_does_not_keep_the_script_alive(served: Bus, tmp_path: Path) -> None:
    program = """
import threading, time
from busline import Bus
sync = Bus().sync()
threading.Thread(target=lambda: sync.call("sums.hang", timeout=300), daemon=True).start()
print(sync.call("sums.double", 2))
"""
    began = time.monotonic()
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, "4\n")
    assert "Fatal" not in done.stderr
    assert time.monotonic() - began < 30


def test_after_a_fork_it_refuses_and_another_works(served: Bus, tmp_path: Path) -> None:
    program = """
import os
from busline import Bus, ConfigurationError
unused = Bus().sync()
with Bus().sync() as sync:
    sync.call("sums.double", 1)
    if (pid := os.fork()) == 0:
        try:
            sync.call("sums.double", 2)
        except ConfigurationError as error:
            print(error)
        print(unused.call("sums.double", 3), flush=True)
        raise SystemExit  # and neither `with` nor the end of the program waits for a thread that is not here
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print(sync.call("sums.double", 4))
"""
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    refusal, *answers = done.stdout.splitlines()
    assert "of which this one is a fork" in refusal
    assert answers == ["6", "8"]


def test_ctrl_c_ends_a_call_at_once(served: Bus, tmp_path: Path) -> None:
    program = """
import os, signal, threading
from busline import Bus
sync = Bus().sync()
sync.call("sums.double", 1)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    sync.call("sums.hang", timeout=300)
except KeyboardInterrupt:
    print(sync.call("sums.double", 2), sync._bus.calls_in_flight)
"""
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, "4 0\n"), done.stderr


def test_jobs_are_followed_without_await_too(tmp_path: Path, url: str) -> None:
    bus = Bus(url, service="jobs", store=f"sqlite:///{tmp_path}/store.db")
    go = threading.Event()

    @bus.handler("jobs.count", retry=Retry(max_retries=0))
    async def count(upto: int, ctx: Context) -> dict[str, int]:
        for each in range(1, upto + 1):
            await ctx.progress(current=each, total=upto)
            if each == 2:
                assert await anyio.to_thread.run_sync(go.wait, 20)
        if upto == 1:
            raise ValueError("too few")
        return {"counted": upto}

    @bus.handler("jobs.hang")
    async def hang() -> None:
        await anyio.sleep(60)

    with in_thread(bus), bus.sync() as sync:
        job = sync.send("jobs.count", 3, track=True)
        for info in job.watch():
            if info.progress is not None and info.progress.current == 2:
                go.set()
        assert info.state == "SUCCESS"
        assert job.result(20, returns=dict[str, int]) == {"counted": 3}
        same = sync.job(job.id)
        assert (same.status(), same.topic, job.topic) == ("SUCCESS", "", "jobs.count")
        progress = same.progress()
        assert progress is not None
        assert progress.fraction == 1.0
        assert same.cancel() is False
        with pytest.raises(ConfigurationError, match="what is retried has failed"):
            same.retry()
        with pytest.raises(JobTimeout):
            sync.send("jobs.hang", track=True).result(0.1)
        failed = sync.send("jobs.count", 1, track=True)
        with pytest.raises(RemoteError, match="too few"):
            failed.result(20)
        failed.retry()
        assert [info.state for info in failed.watch()][-1] == "FAILURE"
        assert {info.id for info in sync.jobs(topic="jobs.count")} == {job.id, failed.id}


def test_a_sync_job_has_every_verb_of_a_job() -> None:
    for_senders = {"tracked", "untracked"}
    assert {name for name in vars(Job) if name[0] != "_"} - for_senders == {n for n in vars(SyncJob) if n[0] != "_"}
