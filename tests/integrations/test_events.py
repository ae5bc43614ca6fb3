"""A job's life as server-sent events, from both frameworks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from process.commands import Folder

from busline import Bus

from .sites import Site

SERVICE = """
import asyncio
from pathlib import Path
from busline import Bus, Context

HERE = Path(__file__).parent
bus = Bus(service="jobs", store=f"sqlite:///{HERE}/store.db")

@bus.handler("jobs.count")
async def count(upto: int, ctx: Context) -> dict[str, int]:
    for number in range(1, upto + 1):
        await ctx.progress(current=number, total=upto, note="counting\\nup")
        while not (HERE / f"gate{number}").exists():
            await asyncio.sleep(0.02)
    return {"counted": upto}

@bus.handler("jobs.fail", retry=None)
async def fail() -> None:
    raise LookupError("nothing there")
"""
FASTAPI = """
from pathlib import Path
from fastapi import FastAPI
from busline import Bus
from busline.integrations.fastapi import CurrentBus, job_events

bus = Bus(store=f"sqlite:///{Path(__file__).parent}/store.db")
app = FastAPI(lifespan=bus.lifespan)

@app.get("/jobs/{id}/events")
async def events(id: str, bus: CurrentBus):
    return job_events(bus.job(id), lifetime=2)

@app.get("/endless/{id}")
async def endless(id: str, bus: CurrentBus):
    return job_events(bus.job(id), lifetime=None)
"""
AIOHTTP = """
import os
from pathlib import Path
from aiohttp import web
from busline import Bus
from busline.integrations.aiohttp import job_events

bus = Bus(store=f"sqlite:///{Path(__file__).parent}/store.db")
app = web.Application()
bus.setup(app)

async def events(request):
    return await job_events(request, bus.job(request.match_info["id"]), lifetime=2)

async def endless(request):
    return await job_events(request, bus.job(request.match_info["id"]))

app.router.add_get("/jobs/{id}/events", events)
app.router.add_get("/endless/{id}", endless)
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]))
"""

Event = tuple[str, dict[str, Any]]


@pytest.fixture(params=["fastapi", "aiohttp"])
def site(request: pytest.FixtureRequest, folder: Folder) -> Iterator[Site]:
    folder.write("service", SERVICE)
    folder.write("events_app", FASTAPI if request.param == "fastapi" else AIOHTTP)
    worker = folder.worker("service:bus")
    site = Site(folder, request.param, "events_app")
    try:
        worker.until_ready()
        site.until_up()
        yield site
    finally:
        site.end()


@asynccontextmanager
async def sending(folder: Folder) -> AsyncIterator[Bus]:
    async with Bus(folder.url, store=f"sqlite:///{folder.path}/store.db") as bus:
        yield bus


async def events_of(response: httpx.Response) -> AsyncIterator[Event]:
    """As a browser reads them."""
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def test_progress_arrives_as_it_is_made_and_the_result_at_the_end(site: Site, folder: Folder) -> None:
    async with sending(folder) as bus, site.client() as client:
        job = await bus.send("jobs.count", 3, track=True)
        seen: list[Event] = []
        async with client.stream("GET", f"/endless/{job.id}") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            async for name, data in events_of(response):
                seen.append((name, data))
                if data["progress"] is not None:
                    (folder.path / f"gate{int(data['progress']['current'])}").touch()
        names = [name for name, _ in seen]
        assert names == ["job"] * (len(seen) - 1) + ["end"]
        told = [data["progress"]["current"] for _, data in seen if data["progress"] is not None]
        assert sorted(set(told)) == [1, 2, 3]
        _, last = seen[-1]
        assert last["id"] == job.id
        assert (last["state"], last["result"], last["attempts"]) == ("SUCCESS", {"counted": 3}, 1)
        assert last["progress"] == {"current": 3, "total": 3, "note": "counting\nup"}
        # Who comes afterwards hears the end at once.
        async with client.stream("GET", f"/jobs/{job.id}/events") as response:
            assert [name async for name, _ in events_of(response)] == ["end"]


async def test_a_failed_job_ends_with_its_error_and_an_unknown_one_is_not_found(site: Site, folder: Folder) -> None:
    async with sending(folder) as bus, site.client() as client:
        job = await bus.send("jobs.fail", track=True)
        async with client.stream("GET", f"/endless/{job.id}") as response:
            last = [data async for _, data in events_of(response)][-1]
        assert last["state"] == "FAILURE"
        assert last["error"] == {"type": "LookupError", "message": "nothing there"}
        unknown = await client.get("/endless/nobody")
        assert (unknown.status_code, unknown.json()) == (404, {"detail": "there is no such job"})


async def test_streams_end_when_the_site_is_told_to_stop_and_hold_it_up_no_longer(site: Site, folder: Folder) -> None:
    async with sending(folder) as bus, site.client() as client:
        job = await bus.send("jobs.count", 3, track=True)

        async def listen() -> list[str]:
            path = f"/jobs/{job.id}/events" if site.framework == "fastapi" else f"/endless/{job.id}"
            async with client.stream("GET", path) as response:
                heard.set()
                return [name async for name, _ in events_of(response)]

        heard = asyncio.Event()
        listening = asyncio.create_task(listen())
        await heard.wait()
        site.terminate()
        assert "end" not in await listening
    assert await asyncio.to_thread(site.left_in_good_order), site.output
    assert "Traceback" not in site.output


async def test_a_listener_that_leaves_is_noticed(site: Site, folder: Folder) -> None:
    """And costs no line in the log."""
    async with sending(folder) as bus, site.client() as client:
        job = await bus.send("jobs.count", 3, track=True)
        for _ in range(5):
            async with client.stream("GET", f"/endless/{job.id}") as response:
                async for _event in events_of(response):
                    break
    site.terminate()
    assert await asyncio.to_thread(site.left_in_good_order), site.output
    assert "Traceback" not in site.output
