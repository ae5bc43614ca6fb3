"""What holds up an event loop is not done on it: neither by uvicorn's nor by aiohttp's, whichever broker and store.

In the application, an audit hook notes what is done on the loop's thread that may wait for a disk, a name server, a
lock or a child; a ticker measures by how much the loop is late, beside the same requests without a bus.
"""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from process.commands import Folder

from tests.servers import Rabbit
from tests.store_servers import Server

from .sites import LIMITS, PATIENCE, Site

WATCHING = """
import asyncio, fcntl, os, sys, threading, time

MAY_WAIT = {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "fcntl.flock", "fcntl.lockf", "time.sleep",
    "socket.getaddrinfo", "socket.gethostbyname", "sqlite3.connect", "subprocess.Popen", "os.fork"}
loop, done, lags = [], [], []

def note(event, *details):
    waits = event != "fcntl.flock" or not details[1] & fcntl.LOCK_NB
    if event == "time.sleep":  # Python tells of it since 3.13; some microseconds are for the lock of SQLite's file
        waits = details[0] > 1e-4
    if loop and threading.get_ident() == loop[0] and waits:
        done.append(f"{event} {details[:1]}")

def noted(name):
    real = getattr(os, name)
    def sync(fd):
        note(name, os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)
    setattr(os, name, sync)

noted("fsync")
noted("fdatasync")
sys.addaudithook(lambda event, details: note(event, *details) if event in MAY_WAIT else None)

async def tick():
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.002)
        lags.append(time.perf_counter() - begun - 0.002)

def start():
    loop[:] = [threading.get_ident()]
    open(os.devnull).close()
    asyncio.get_running_loop().ticker = asyncio.create_task(tick())

def taken():
    told = sorted(lags), list(done)
    lags.clear(), done.clear()
    return told
"""
SERVICE = """
import os
from busline import Bus

bus = Bus(service="sums", store=os.environ.get("STORE"))

@bus.handler("sums.double")
async def double(number: int) -> int:
    return 2 * number
"""
WORK = """
async def work(number):
    answer = await bus.call("sums.double", number)
    job = await bus.send("sums.double", number, track=True)
    await job.status()
    await bus.publish("sums.done", number)
    return answer
"""
FASTAPI = f"""
import watching
import os
from fastapi import FastAPI
from busline import Bus

bus = Bus(store=os.environ.get("STORE"))
app = FastAPI(lifespan=bus.lifespan)
{WORK}
@app.get("/start")
async def start():
    watching.start()

@app.get("/taken")
async def taken():
    return watching.taken()

@app.get("/job/{{number}}")
async def with_bus(number: int):
    return await work(number)

@app.get("/alone/{{number}}")
async def without(number: int):
    return 2 * number
"""
AIOHTTP = f"""
import watching
import os
from aiohttp import web
from busline import Bus

bus = Bus(store=os.environ.get("STORE"))
app = web.Application()
bus.setup(app)
{WORK}
async def start(request):
    watching.start()
    return web.json_response(None)

async def taken(request):
    return web.json_response(watching.taken())

async def with_bus(request):
    return web.json_response(await work(int(request.match_info["number"])))

async def without(request):
    return web.json_response(2 * int(request.match_info["number"]))

app.router.add_get("/start", start)
app.router.add_get("/taken", taken)
app.router.add_get("/job/{{number}}", with_bus)
app.router.add_get("/alone/{{number}}", without)
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None)
"""
REQUESTS, AT_ONCE = 120, 30
OF_LIVENESS = re.compile(r"open .*/bus\.db-run/\w+\.lock'")
"""On SQLite, a few times a second: does another process still hold its lock? Nobody waits for that."""


async def ask(client: httpx.AsyncClient, path: str) -> None:
    """Many times, and be answered correctly each time."""

    async def some(first: int) -> None:
        for number in range(first, REQUESTS, AT_ONCE):
            assert (await client.get(f"{path}/{number}")).json() == 2 * number

    await asyncio.gather(*(some(first) for first in range(AT_ONCE)))


def told(lags: list[float]) -> str:
    p50, p99, longest = (lags[int(len(lags) * part)] * 1e3 for part in (0.5, 0.99, 0.9999))
    return f"p50 {p50:.1f}, p99 {p99:.1f}, longest {longest:.1f} ms"


@pytest.mark.parametrize("framework", ["fastapi", "aiohttp"])
@pytest.mark.parametrize("broker", ["sqlite", "rabbitmq"])
async def test_nothing_that_may_wait_is_done_on_the_loop_of_a_web_application(
    broker: str, framework: str, folder: Folder, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broker == "rabbitmq":
        rabbit: Rabbit = request.getfixturevalue("rabbit")
        store: Server = request.getfixturevalue("postgres")
        monkeypatch.setenv("STORE", store.url)
        folder.url = rabbit.empty_url()
    folder.write("watching", WATCHING)
    folder.write("service", SERVICE)
    folder.write("site_app", FASTAPI if framework == "fastapi" else AIOHTTP)
    worker = folder.worker("service:bus", "--concurrency", "50")
    site = Site(folder, framework, "site_app")
    try:
        await asyncio.to_thread(worker.until_ready)
        await asyncio.to_thread(site.until_up)
        async with httpx.AsyncClient(base_url=site.url, timeout=PATIENCE, limits=LIMITS) as client:
            await ask(client, "/job")  # what happens once has happened
            await client.get("/start")
            await ask(client, "/alone")
            (alone, seen) = (await client.get("/taken")).json()
            await ask(client, "/job")
            (beside, done) = (await client.get("/taken")).json()
        print(f"\n{framework} on {broker}: the loop is late by {told(beside)}; without a bus by {told(alone)}")
        assert any("null" in each for each in seen), "what is done is noted"
        assert [each for each in done if not OF_LIVENESS.search(each)] == []
    finally:
        site.end()
