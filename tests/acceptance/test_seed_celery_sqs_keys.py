"""What the field report about Celery on SQS built by hand with conditional updates, as options; here on one file."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from process.commands import Folder, until

from busline import Bus, RemoteError

APP = """
import asyncio
from pathlib import Path
from busline import Bus, Context, Idempotency, Retry

bus = Bus("sqlite:///bus.db", service="problems")
HERE = Path(__file__).parent

def note(text):
    with (HERE / "notes").open("a") as notes:
        notes.write(text + "\\n")

@bus.handler("problems.extract", ack="early", retry=Retry(max_retries=0), time_limit=1800,
             idempotency=Idempotency(key="job_id", lease=1.5, on_conflict="skip"))
async def extract(job: dict[str, str], ctx: Context) -> str:
    note(f"began {job['job_id']}")
    while not (HERE / "go").exists():
        await asyncio.sleep(0.02)
    note(f"did {job['job_id']}")
    return f"problem of {job['job_id']}"
"""


@pytest.mark.timeout(90)
async def test_a_job_whose_worker_died_has_failed_and_its_user_retries_it(folder: Folder) -> None:
    """The queue has forgotten the message before it ran; the claim has not."""
    folder.write("app", APP)
    worker = folder.worker("app:bus", "--processes", "2")
    worker.until_ready(2)
    async with Bus(folder.url) as bus:
        job = await bus.send("problems.extract", {"job_id": "j1"}, track=True)
        await asyncio.to_thread(folder.until_noted, "began j1")
        assert await job.status() == "STARTED"
        for pid in worker.pids[-2:]:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RemoteError) as caught:
            await job.result(30)
        assert caught.value.type == "busline.orphaned"
        assert await job.status() == "FAILURE"
        (folder.path / "go").touch()
        await job.retry()
        assert await job.result(30) == "problem of j1"
    assert folder.notes == ["began j1", "began j1", "did j1"]


@pytest.mark.timeout(90)
async def test_a_second_delivery_is_skipped_and_told_of_at_info(folder: Folder) -> None:
    folder.write("app", APP)
    worker = folder.worker("app:bus", "--processes", "2")
    worker.until_ready(2)
    async with Bus(folder.url) as bus:
        departure = bus.prepare_send("problems.extract", {"job_id": "j2"})
        await departure.leave(bus.transport)
        await asyncio.to_thread(folder.until_noted, "began j2")
        await departure.leave(bus.transport)
        told = "INFO", "already claimed by another worker"
        await asyncio.to_thread(
            until,
            lambda: any(all(t in line for t in told) for line in worker.err.read_text().splitlines()),
            "it is told",
        )
        (folder.path / "go").touch()
        await asyncio.to_thread(folder.until_noted, "did j2")
        await departure.leave(bus.transport)  # done: answered from the store
        await asyncio.to_thread(until, lambda: "is not run again, done before" in worker.err.read_text(), "it is told")
    assert folder.notes == ["began j2", "did j2"]
