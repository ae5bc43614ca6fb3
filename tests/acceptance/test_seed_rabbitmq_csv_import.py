"""The CSV import of a field report, with the worker as it is started in production, 20 times as fast.

There it was a RabbitMQ queue with priorities and a ttl, retries after 2, 4 and 8 s, a queue of failed tasks that is
shared and kept for a week, 10 imports a minute, and a soft limit of 55 minutes within a hard one of an hour.
"""

import asyncio
import json
import time
from itertools import pairwise
from typing import Any

import pytest
from process.commands import Folder, Running, until

from busline import Bus

APP = """
import asyncio, os, time
from pathlib import Path
from busline import Bus, Context, Queue, Retry, SoftTimeLimitExceeded, TimeLimitExceeded

HERE = Path(__file__).parent
bus = Bus(service="imports", max_clock_skew=0.2)  # all on one machine; RabbitMQ cannot know that

def note(*words):
    file = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, words)) + "\\n").encode())
    os.close(file)

async def tell_the_user(error: Exception, job: dict):
    note("told", job["job_id"], type(error).__name__)

BACK_OFF = Retry(max_retries=3, first=0.1, factor=2.0, cap=30, jitter=False)

@bus.handler("import.csv",
    queue=Queue("import_queue", message_ttl=1.5, max_priority=10, dead_letter="failed_tasks"),
    retry=BACK_OFF.on(TimeLimitExceeded, dead_letter=True),
    soft_time_limit=2, time_limit=3, rate_limit="200/m", concurrency=1, on_failure=tell_the_user)
async def import_csv(job_id: str, ctx: Context, do: str = "") -> str:
    note("start", job_id, time.time(), ctx.attempt, os.getpid())
    if do == "fail":
        raise OSError("the database is away")
    try:
        while do == "hold" and not (HERE / "gate").exists():
            await asyncio.sleep(0.01)
        if do not in ("", "hold"):
            await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        note("cleaned", job_id)
        if do == "clean up":
            return "500 of 10000 rows"
        await asyncio.sleep(60)
    return "all rows"

@bus.handler("bulk.operations",
    queue=Queue("bulk_ops_queue", message_ttl=60, max_priority=5, dead_letter="failed_tasks", dead_letter_ttl=2.5),
    retry=BACK_OFF, on_failure=tell_the_user)
async def bulk(job: dict, ctx: Context):
    note("start", job["job_id"], time.time(), ctx.attempt, os.getpid())
    raise OSError("the database is away")
"""
SPACING = 0.3
"""Seconds between two starts at 200/m."""


@pytest.fixture
def imports(place: Folder) -> Folder:
    place.write("app", APP)
    return place


def serve(folder: Folder, *options: str, processes: int = 1) -> Running:
    worker = folder.worker("app:bus", "--processes", str(processes), *options)
    worker.until_ready(processes)
    return worker


def starts(folder: Folder, job_id: str = "") -> list[tuple[str, float, int, str]]:
    """Job, instant, attempt and process of each start, in the order of time."""
    told = [note.split()[1:] for note in folder.notes if note.startswith("start")]
    found = [(job, float(at), int(attempt), pid) for job, at, attempt, pid in told if job_id in ("", job)]
    return sorted(found, key=lambda start: start[1])


def gaps(folder: Folder, job_id: str = "") -> list[float]:
    """Seconds between starts."""
    instants = [at for _, at, _, _ in starts(folder, job_id)]
    return [later - earlier for earlier, later in pairwise(instants)]


def failed_tasks(folder: Folder) -> list[dict[str, Any]]:
    """The letters in the shared queue, by `busline dlq`."""
    return json.loads(folder.run("dlq", "list", "failed_tasks", "--json").stdout)


def test_a_failing_import_is_tried_after_2_4_and_8_s_and_then_kept_with_its_story(imports: Folder) -> None:
    worker = serve(imports)
    imports.send(("bulk.operations", {"job_id": "bulk-1"}))
    (sent,) = imports.send(("import.csv", {"job_id": "import-1", "do": "fail"}))
    worker.until_logged("dead_lettered", 2)
    for wanted, gap in zip([0.1, 0.2, 0.4], gaps(imports, "bulk-1"), strict=True):
        assert wanted <= gap < wanted + 1
    for wanted, gap in zip([SPACING, SPACING, 0.4], gaps(imports, "import-1"), strict=True):
        assert gap > wanted - 0.1  # the rate limit counts for retries, too
    assert [attempt for _, _, attempt, _ in starts(imports, "import-1")] == [1, 2, 3, 4]
    assert sorted(note for note in imports.notes if note.startswith("told")) == [
        "told bulk-1 OSError",
        "told import-1 OSError",
    ]
    (letter,) = (letter for letter in failed_tasks(imports) if letter["queue"] == "import_queue")
    assert {"id": sent, "topic": "import.csv", "reason": "failed", "type": "OSError", "attempts": 4}.items() <= (
        letter.items()
    )
    # The letters of the other queue are kept for a time only, though both are in one.
    until(lambda: [letter["queue"] for letter in failed_tasks(imports)] == ["import_queue"], "the ttl of letters")


async def test_what_waits_starts_by_priority_and_what_waited_too_long_not_at_all(imports: Folder) -> None:
    worker = await asyncio.to_thread(serve, imports)
    async with Bus(imports.url) as bus:
        await bus.send("import.csv", {"job_id": "first", "do": "hold"})
        await asyncio.to_thread(imports.until_notes, 1)
        # All at once: the first one is held for less than its soft time limit.
        impatient = bus.send("import.csv", {"job_id": "impatient"}, priority=10, ttl=0.2)
        others = [bus.send("import.csv", {"job_id": str(n)}, priority=n) for n in (0, 10, 5, 0, 10, 5, 0, 0)]
        await asyncio.gather(impatient, *others)
        await asyncio.sleep(0.5)  # too long for the impatient one, though clocks may differ by 0.2 s
        imports.open_gate()
    await asyncio.to_thread(_have_started_or_expired, imports, worker)


def _have_started_or_expired(imports: Folder, worker: Running) -> None:
    until(lambda: len(starts(imports)) + worker.logged("dead_lettered") == 10, "all have started or expired")
    started = [job for job, *_ in starts(imports)]
    assert started == ["first", "10", "10", "5", "5", "0", "0", "0", "0"][: len(started)]
    assert 0 < len(started) < 10  # one starts every 0.3 s, and a message is worth starting for 1.5 s
    letters = failed_tasks(imports)
    assert {(letter["topic"], letter["reason"]) for letter in letters} == {("import.csv", "expired")}
    assert len(letters) == 10 - len(started)


def test_ten_a_minute_is_said_of_all_processes_together(imports: Folder) -> None:
    serve(imports, processes=2)
    imports.send(*(("import.csv", {"job_id": f"job-{number}"}) for number in range(4)))
    imports.until_notes(4)
    by_process: dict[str, list[float]] = {}
    for _, at, _, pid in starts(imports):
        by_process.setdefault(pid, []).append(at)
    assert len(by_process) == 2
    for instants in by_process.values():  # each has half of the rate
        assert all(b - a > 2 * SPACING - 0.1 for a, b in pairwise(instants))


async def test_the_soft_limit_lets_an_import_clean_up_and_the_hard_one_ends_it(imports: Folder) -> None:
    worker = await asyncio.to_thread(serve, imports)
    async with Bus(imports.url) as bus:
        began = time.monotonic()
        rows = await bus.call("import.csv", {"job_id": "soft", "do": "clean up"}, timeout=20)
        assert rows == "500 of 10000 rows"
        assert 2 <= time.monotonic() - began < 8
        await bus.send("import.csv", {"job_id": "hard", "do": "go on"})
    await asyncio.to_thread(worker.until_logged, "dead_lettered")
    assert [note for note in imports.notes if not note.startswith("start")] == [
        "cleaned soft",
        "cleaned hard",
        "told hard TimeLimitExceeded",
    ]
    (letter,) = await asyncio.to_thread(failed_tasks, imports)
    assert (letter["type"], letter["attempts"]) == ("TimeLimitExceeded", 1)
