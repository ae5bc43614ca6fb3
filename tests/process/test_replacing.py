"""A worker process that has done its share, is stuck or is blocked is replaced, and its messages are not lost."""

import time
from collections import Counter

import pytest

from busline.cli.exits import Exit
from process.commands import Folder, lives, until

APP = """
import asyncio, os, time
from pathlib import Path
from busline import Bus, Context, Retry, SoftTimeLimitExceeded

HERE = Path(__file__).parent
bus = Bus("sqlite:///bus.db", service="work")
hoard = []

def note(text):
    file = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{text}\\n".encode())
    os.close(file)

@bus.handler("count")
async def count(number: int):
    await asyncio.sleep(0.01)
    note(f"{number} {os.getpid()}")

@bus.handler("long", queue="long")
async def long(number: int):
    note(f"begin {number} {os.getpid()}")
    while not (HERE / "gate").exists():
        await asyncio.sleep(0.01)
    note(f"end {number} {os.getpid()}")

@bus.handler("hoard", queue="hoard")
async def keep(number: int):
    hoard.append(bytearray(os.urandom(1_000_000) * 40))
    note(f"{number} {os.getpid()}")

@bus.handler("block", queue="block")
async def block(ctx: Context):
    note(f"block {ctx.redelivered} {ctx.attempt} {os.getpid()}")
    if not ctx.redelivered:
        time.sleep(60)

@bus.handler("stubborn", time_limit=0.2, retry=Retry(max_retries=0), queue="stubborn")
async def stubborn(ctx: Context):
    note(f"stubborn {ctx.redelivered} {os.getpid()}")
    while not ctx.redelivered:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@bus.handler("endless", time_limit=2, executor="process", retry=Retry(max_retries=0), queue="endless")
def endless(number: int):
    note(f"endless {os.getpid()}")
    time.sleep(60)

@bus.handler("limited", rate_limit="20/s")
async def limited(number: int):
    note(f"{time.time()} {os.getpid()}")

@bus.handler("soft", soft_time_limit=0.2, time_limit=5, queue="soft")
async def soft() -> str:
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        return "what was ready by then"
"""


@pytest.fixture
def work(folder: Folder) -> Folder:
    """A folder with an app of difficult handlers."""
    folder.write("work", APP)
    return folder


def pids(notes: list[str]) -> Counter[str]:
    """How many notes each process made."""
    return Counter(note.split()[-1] for note in notes)


def test_a_process_that_has_taken_its_messages_is_replaced_and_none_is_lost_or_repeated(work: Folder) -> None:
    worker = work.worker("work:bus", "--max-messages-per-process", "10", "--concurrency", "2")
    worker.until_ready()
    work.send(*(("count", number) for number in range(30)))
    notes = work.until_notes(30)
    assert sorted(int(note.split()[0]) for note in notes) == list(range(30))
    assert len(pids(notes)) >= 3
    assert max(pids(notes).values()) <= 11
    worker.until_logged("recycled", 2)
    worker.tell()
    assert worker.exit_code() == Exit.OK
    assert worker.logged("process_died") == 0
    assert len(work.notes) == 30


def test_a_process_that_retires_finishes_long_work_while_its_successor_takes_new(work: Folder) -> None:
    worker = work.worker("work:bus", "--max-messages-per-process", "2", "--drain-timeout", "0.1", "--concurrency", "2")
    (old,) = worker.until_ready()
    work.send(("long", 1))
    work.until_notes(1)
    work.send(("count", 1))
    _, new = worker.until_ready(2)
    work.send(("count", 2))
    assert work.until_notes(3) == [f"begin 1 {old}", f"1 {old}", f"2 {new}"]
    time.sleep(0.3)  # longer than a drain may take
    assert lives(old)
    work.open_gate()
    until(lambda: not lives(old), "the old process has ended")
    assert work.noted(f"end 1 {old}") == 1


def test_a_process_that_uses_too_much_memory_is_replaced(work: Folder) -> None:
    worker = work.worker("work:bus", "--max-memory-per-process", "200", "--concurrency", "1")
    worker.until_ready()
    work.send(*(("hoard", number) for number in range(10)))
    notes = work.until_notes(10)
    assert sorted(int(note.split()[0]) for note in notes) == list(range(10))
    assert 2 <= len(pids(notes)) <= 5
    assert "MB in use" in worker.err.read_text()


def test_a_limit_below_what_the_app_itself_needs_is_refused(work: Folder) -> None:
    run = work.run("worker", "work:bus", "--max-memory-per-process", "5")
    assert run.returncode == Exit.CONFIGURATION
    assert "before its first message" in run.stderr


def test_a_process_whose_loop_is_blocked_is_replaced_and_its_message_given_to_another(work: Folder) -> None:
    worker = work.worker("work:bus", "--processes", "2", "--block-timeout", "1")
    worker.until_ready(2)
    work.send(("block", None))
    first, again = work.until_notes(2)
    assert (first.split()[:3], again.split()[:3]) == (["block", "False", "1"], ["block", "True", "1"])
    assert first.split()[-1] != again.split()[-1]
    worker.until_ready(3)
    log = worker.err.read_text()
    assert f"exit code {Exit.BLOCKED:d}" in log
    assert "time.sleep(60)" in log  # the stack of what blocked it
    worker.tell()
    assert worker.exit_code() == Exit.OK


def test_a_handler_that_swallows_its_cancellation_costs_its_process_and_nobody_elses_work(work: Folder) -> None:
    worker = work.worker("work:bus", "--concurrency", "2")
    (old,) = worker.until_ready()
    work.send(("stubborn", None))
    work.send(("long", 1))
    work.until_notes(2)
    _, new = worker.until_ready(2)
    assert f"exit code {Exit.STUCK:d}" in worker.err.read_text()
    assert not lives(old)
    work.open_gate()
    work.until_noted(f"end 1 {new}")
    work.until_noted(f"stubborn True {new}")
    assert work.noted(f"end 1 {old}") == 0


def test_a_plain_function_in_a_process_is_killed_at_its_limit_and_the_worker_lives(work: Folder) -> None:
    worker = work.worker("work:bus")
    (pid,) = worker.until_ready()
    work.send(("endless", 1))
    (note,) = work.until_notes(1)
    worker.until_logged("failed")
    until(lambda: not lives(int(note.split()[-1])), "its process is gone")
    work.send(("count", 1))
    assert work.until_notes(2)[-1] == f"1 {pid}"
    assert worker.logged("process_died") == 0


def test_a_rate_limit_holds_for_all_processes_together(work: Folder) -> None:
    worker = work.worker("work:bus", "--processes", "2")
    worker.until_ready(2)
    work.send(*(("limited", number) for number in range(40)))
    notes = work.until_notes(40)
    starts = sorted(float(note.split()[0]) for note in notes)
    assert len(pids(notes)) == 2
    # 40 starts at 20/s take 1.9 s, if two processes begin at once; a process that took the whole rate would take half.
    assert 1.7 < starts[-1] - starts[0] < 6
    assert all(later - earlier > 0.4 for earlier, later in zip(starts, starts[12:], strict=False))


def test_a_soft_limit_lets_a_handler_return_what_it_has(work: Folder) -> None:
    work.worker("work:bus").until_ready()
    run = work.run("call", "soft")
    assert (run.returncode, run.stdout) == (Exit.OK, '"what was ready by then"\n')


def test_a_worker_without_a_parent_is_the_process_itself_and_is_not_replaced(work: Folder) -> None:
    worker = work.worker("work:bus", "--processes", "0", "--max-messages-per-process", "1")
    assert worker.until_ready() == [worker.process.pid]
    assert "in this process" in worker.out.read_text()
    work.send(("count", 1))
    assert worker.exit_code() == Exit.RECYCLED
    assert work.noted(f"1 {worker.process.pid}") == 1
