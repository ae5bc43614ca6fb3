"""The field report of `acks_late` on SQS, without its troubles: nothing runs twice, nothing is lost, no call hangs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from process.commands import Folder, Running, until

from busline import Bus
from busline.testing.scenes import eventually
from tests.ministack import Ministack

THOROUGH = os.environ.get("BUSLINE_THOROUGH") == "1"
JOBS, KILLS, PROCESSES = (2_000, 20, 4) if THOROUGH else (200, 4, 2)
PATIENCE = 600.0 if THOROUGH else 90.0


@pytest.fixture
def sqs(ministack: Ministack, tmp_path: Path) -> Iterator[Folder]:
    """An empty folder for apps, whose broker is an SQS with a visibility timeout of two seconds."""
    options = f"prefix={uuid.uuid4().hex[:8]}-&wait=2&lease=2&cache=0"
    folder = Folder(tmp_path, f"sqs://us-east-1?endpoint_url={ministack.endpoint}&{options}")
    yield folder
    folder.end()


JOBS_APP = """
import asyncio, os, random
from pathlib import Path
from busline import Bus, Context, Idempotency

bus = Bus(service="jobs", store="sqlite:///store.db", max_deliveries=100)
LEDGER = os.open(Path(__file__).parent / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@bus.handler("jobs.extract", idempotency=Idempotency(key="job_id", lease=2))
async def extract(job_id: str, page: int, ctx: Context) -> None:
    os.write(LEDGER, job_id.encode() + b"\\n")
    await asyncio.sleep(random.uniform(0.01, 0.05))
    async with ctx.transaction() as connection:
        connection.execute("INSERT INTO effects VALUES (?)", (job_id,))
"""


def kill_some(worker: Running, database: Path, chance: random.Random) -> int:
    """SIGKILL for a process at random moments of the work; returns how many were killed."""
    killed: list[int] = []
    for done in sorted(chance.sample(range(1, JOBS * 9 // 10), KILLS)):
        until(lambda: effects(database) >= done, f"{done} effects", PATIENCE)  # noqa: B023  # called at once
        until(lambda: len(worker.pids) > len(killed), "a process is there to be killed", PATIENCE)
        killed.append(chance.choice([pid for pid in worker.pids if pid not in killed]))
        os.kill(killed[-1], signal.SIGKILL)
    return len(killed)


def effects(database: Path) -> int:
    """Rows, counted by somebody who has nothing to do with the bus."""
    with sqlite3.connect(database, timeout=30) as connection:
        (number,) = connection.execute("SELECT count(*) FROM effects").fetchone()
    connection.close()
    return int(number)


@pytest.mark.timeout(PATIENCE * 2)
async def test_jobs_survive_killed_workers_and_each_takes_effect_once(sqs: Folder) -> None:
    database = sqs.path / "store.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE effects (job_id TEXT)")
    connection.close()
    sqs.write("app", JOBS_APP)
    worker = sqs.worker("app:bus", "--processes", str(PROCESSES))
    await asyncio.to_thread(until, lambda: len(worker.pids) >= PROCESSES, "the processes are ready", PATIENCE)
    wanted = {f"job-{number}" for number in range(JOBS)}
    # From the beginning: sending takes as long as the work, and a worker without any loses nothing by its death.
    killing = asyncio.create_task(asyncio.to_thread(kill_some, worker, database, random.Random(7)))
    async with Bus(sqs.url) as bus:
        await asyncio.gather(*(bus.send("jobs.extract", {"job_id": job_id, "page": 1}) for job_id in sorted(wanted)))
    killed = await killing
    await asyncio.to_thread(until, lambda: effects(database) >= JOBS, f"{JOBS} effects", PATIENCE)
    with sqlite3.connect(database) as connection:
        found = Counter(row[0] for row in connection.execute("SELECT job_id FROM effects"))
    connection.close()
    starts = Counter(sqs.notes)
    print(f"{JOBS} jobs, {killed} workers killed: {found.total()} effects, {starts.total() - JOBS} began again")
    assert killed == KILLS
    assert set(found) == wanted, "none is lost"
    assert found.total() == JOBS, "and none took effect twice"


CALLS_APP = """
import asyncio
from busline import Bus

bus = Bus(service="oracle")

@bus.handler("oracle.double")
async def double(number: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * number
"""


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.timeout(180)
async def test_a_hundred_of_a_hundred_calls_are_answered(sqs: Folder, processes: int) -> None:
    """What Celery's rpc:// with late acks and prefetching does six times out of ten."""
    sqs.write("app", CALLS_APP)
    worker = sqs.worker("app:bus", "--processes", str(processes))
    await asyncio.to_thread(until, lambda: len(worker.pids) >= processes, "the processes are ready", 90)
    async with Bus(sqs.url) as bus:
        answers = await asyncio.gather(*(bus.call("oracle.double", number, timeout=80) for number in range(100)))
    assert answers == [2 * number for number in range(100)]


LONG_APP = """
import asyncio, os
from pathlib import Path
from busline import Bus, Context, Idempotency

bus = Bus(service="long", store="sqlite:///store.db")
HERE = Path(__file__).parent
LEDGER = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@bus.handler("long.work")
async def work(seconds: float) -> None:
    os.write(LEDGER, f"begun {os.getpid()}\\n".encode())
    await asyncio.sleep(seconds)
    os.write(LEDGER, b"done\\n")

@bus.handler("long.early", queue="long.early", ack="early", idempotency=Idempotency(key="job_id", lease=2))
async def early(job_id: str, page: int, ctx: Context) -> None:
    os.write(LEDGER, f"{job_id} {ctx.attempt}\\n".encode())
    if not (HERE / "gate").exists():
        await asyncio.sleep(3600)
    os.write(LEDGER, f"{job_id} done\\n".encode())
"""


async def test_a_handler_that_runs_five_times_the_visibility_timeout_runs_once(sqs: Folder) -> None:
    sqs.write("app", LONG_APP)
    worker = sqs.worker("app:bus", "--processes", "2")
    await asyncio.to_thread(until, lambda: len(worker.pids) >= 2, "the processes are ready", 90)
    async with Bus(sqs.url) as bus:
        await bus.send("long.work", 10.0)
    await asyncio.to_thread(until, lambda: "done" in sqs.notes, "it is done", 60)
    assert len(sqs.notes) == 2, sqs.notes


async def test_an_early_acked_job_whose_worker_died_is_failed_and_the_user_may_send_it_again(sqs: Folder) -> None:
    """Acked at once, claimed by its key; the orphan is found by its claim, is FAILED, and can be sent anew."""
    sqs.write("app", LONG_APP)
    worker = sqs.worker("app:bus", "--processes", "2")
    await asyncio.to_thread(until, lambda: len(worker.pids) >= 2, "the processes are ready", 90)
    async with Bus(sqs.url, store=f"sqlite:///{sqs.path}/store.db") as bus:
        await bus.send("long.early", {"job_id": "j1", "page": 1})
        await asyncio.to_thread(until, lambda: "j1 1" in sqs.notes, "it has begun", 60)
        (stats,) = [each for each in await bus.transport.stats() if each.name == "long.early"]  # type: ignore[attr-defined]
        assert (stats.ready, stats.leased) == (0, 0), "it was acked before it ran"
        for pid in worker.pids:
            os.kill(pid, signal.SIGKILL)
        sqs.open_gate()

        async def letters() -> int:
            found = [each for each in await bus.transport.stats() if each.name == "long.early.dead"]  # type: ignore[attr-defined]
            return found[0].ready if found else 0

        await eventually(letters, 90)
    replayed = await asyncio.to_thread(sqs.run, "dlq", "replay", "long.early")
    assert replayed.returncode == 0, replayed.stderr
    await asyncio.to_thread(until, lambda: "j1 done" in sqs.notes, "it is done", 60)


CLAIMED_APP = """
import asyncio, os
from pathlib import Path
from busline import Bus, Context, Idempotency

bus = Bus(service="claimed", store="sqlite:///store.db")
HERE = Path(__file__).parent
LEDGER = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@bus.handler("claimed.work", idempotency=Idempotency(key="job_id", lease=LEASE))
async def work(job_id: str, page: int, ctx: Context) -> None:
    os.write(LEDGER, f"begun {os.getpid()}\\n".encode())
    while not (HERE / "gate").exists():
        await asyncio.sleep(0.05)
    async with ctx.transaction() as connection:
        connection.execute("INSERT INTO effects VALUES (?)", (job_id,))
    os.write(LEDGER, f"done {os.getpid()}\\n".encode())
"""


def two_workers(folder: Folder, lease: float = 2) -> dict[int, Running]:
    """Of the app that claims its jobs, each a process of its own, by process id."""
    with sqlite3.connect(folder.path / "store.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE effects (job_id TEXT)")
    connection.close()
    folder.write("app", CLAIMED_APP.replace("LEASE", str(lease)))
    workers = [folder.worker("app:bus", "--processes", "0", "--concurrency", "1") for _ in range(2)]
    return {worker.until_ready()[0]: worker for worker in workers}


def begun(folder: Folder) -> list[int]:
    """The processes in which the job was begun, in that order."""
    return [int(note.split()[1]) for note in folder.notes if note.startswith("begun")]


def until_empty(folder: Folder) -> None:
    """Nothing waits in the queue of the app and nothing is worked on."""

    def is_empty() -> bool:
        told = json.loads(folder.run("queues", "claimed", "--json").stdout)
        return [(each["ready"], each["leased"]) for each in told] == [(0, 0)]

    until(is_empty, "the queue is empty", 60)


@pytest.mark.timeout(180)
def test_a_second_copy_of_a_job_at_work_is_told_at_info_as_already_claimed_and_does_not_run(sqs: Folder) -> None:
    """What SQS delivers twice, or a user sends twice, is no error and no second run."""
    sqs.url = sqs.url.replace("lease=2", "lease=20")  # which a busy machine can keep
    workers = two_workers(sqs, lease=20)
    sqs.send(("claimed.work", {"job_id": "j1", "page": 1}))
    until(lambda: len(begun(sqs)) == 1, "it has begun", 60)
    (first,) = begun(sqs)
    (other,) = [worker for pid, worker in workers.items() if pid != first]
    sqs.send(("claimed.work", {"job_id": "j1", "page": 1}))
    other.until_logged("already_claimed")
    (line,) = [line for line in other.err.read_text().splitlines() if " already_claimed: " in line][:1]
    assert " INFO " in line
    assert "already claimed by another worker, key claimed/claimed.work/j1" in line
    sqs.open_gate()
    sqs.until_noted(f"done {first}")
    until_empty(sqs)
    assert begun(sqs) == [first]
    assert effects(sqs.path / "store.db") == 1


@pytest.mark.timeout(180)
def test_a_worker_that_was_stopped_beyond_the_visibility_timeout_has_no_second_effect(sqs: Folder) -> None:
    """Its message runs elsewhere meanwhile; when it goes on, what it still wanted to do is refused by the store."""
    workers = two_workers(sqs)
    sqs.send(("claimed.work", {"job_id": "j1", "page": 1}))
    until(lambda: len(begun(sqs)) == 1, "it has begun", 60)
    (first,) = begun(sqs)
    os.kill(first, signal.SIGSTOP)
    try:
        until(lambda: len(begun(sqs)) == 2, "it has begun elsewhere", 60)
        second = begun(sqs)[1]
        assert second != first
        sqs.open_gate()
        sqs.until_noted(f"done {second}")
        until(lambda: effects(sqs.path / "store.db") == 1, "its effect is committed", 60)
    finally:
        os.kill(first, signal.SIGCONT)
    stopped = workers[first]
    until(lambda: stopped.logged("lease_lost") + stopped.logged("claim_lost") > 0, "the first one learns of it", 60)
    until_empty(sqs)
    assert f"done {first}" not in sqs.notes
    assert effects(sqs.path / "store.db") == 1
