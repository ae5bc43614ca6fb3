"""Two web applications call workers that are redeployed under their feet, over RabbitMQ; no visitor notices.

The applications are started as FastAPI's and aiohttp's own documents say. There are two workers; one after the other is
told to leave by SIGTERM and replaced, while both sites are asked at a steady rate.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from integrations.sites import Site
from process.commands import Folder, Running, until

from tests.servers import Rabbit

SERVICE = """
import asyncio, os
from busline import Bus

bus = Bus(service="sums")

@bus.handler("sums.double")
async def double(number: int) -> dict[str, int]:
    await asyncio.sleep(0.01)
    return {"answer": 2 * number, "pid": os.getpid()}
"""
FASTAPI = """
from fastapi import FastAPI
from busline import Bus
from busline.integrations.fastapi import CurrentBus, install

bus = Bus()
app = FastAPI(lifespan=bus.lifespan)
install(app, timeout=20)

@app.get("/double/{number}")
async def double(number: int, bus: CurrentBus) -> dict[str, int]:
    return await bus.call("sums.double", number, returns=dict[str, int])
"""
AIOHTTP = """
import os
from aiohttp import web
from busline import Bus

bus = Bus()

async def double(request: web.Request) -> web.Response:
    return web.json_response(await bus.call("sums.double", int(request.match_info["number"])))

app = web.Application()
bus.setup(app, timeout=20)
app.router.add_get("/double/{number}", double)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None)
"""
RATE = 50
"""Requests a second to each of the two; fewer where the machine has no more to give."""
AT_ONCE = 60
"""Requests that may wait at each of the two."""
AT_LEAST = 1000
"""Requests in all while workers come and go."""
IDLE = 1.0
"""Seconds for which a visitor keeps a connection that is idle; as for any proxy, less than for the server: uvicorn
closes it after 5 s, maybe just when a request is on its way."""
ROUNDS = 2
"""How often each worker is replaced."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def shop(rabbit: Rabbit, tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path, rabbit.empty_url())
    for name, source in (("service", SERVICE), ("fastapi_app", FASTAPI), ("aiohttp_app", AIOHTTP)):
        folder.write(name, source)
    yield folder
    folder.end()


class Visitors:
    """Ask a site at a steady rate, each for the double of his own number, and remember what they were told."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.told: list[str] = []
        """What was wrong."""
        self.served_by: Counter[int] = Counter()
        """Requests by the worker process that handled them."""

    async def _ask(self, client: aiohttp.ClientSession, number: int, places: asyncio.Semaphore) -> None:
        try:
            async with client.get(f"/double/{number}") as response:
                told = await response.json()
            if response.status != 200 or told["answer"] != 2 * number:
                self.told.append(f"{response.status} {told}")
            else:
                self.served_by[told["pid"]] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.told.append(repr(error))
        finally:
            places.release()

    async def come(self) -> None:
        """Until cancelled; then those who are there wait for their answers."""
        began, places = time.monotonic(), asyncio.Semaphore(AT_ONCE)
        idle = aiohttp.TCPConnector(keepalive_timeout=IDLE)
        async with aiohttp.ClientSession(self._site.url, connector=idle) as client, asyncio.TaskGroup() as visits:
            try:
                for number in count():
                    await places.acquire()
                    visits.create_task(self._ask(client, number, places))
                    await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            except asyncio.CancelledError:
                return  # told to stop; the group waits for the rest


@asynccontextmanager
async def visited(*sites: Site) -> AsyncIterator[list[Visitors]]:
    """Visitors of all of them while the block runs."""
    visitors = [Visitors(site) for site in sites]
    tasks = [asyncio.create_task(each.come()) for each in visitors]
    yield visitors
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks)


def redeploy(shop: Folder, old: Running) -> Running:
    """SIGTERM, and a new one up."""
    old.tell()
    new = shop.worker("service:bus", "--concurrency", "20")
    new.until_ready()
    assert old.exit_code(60) == 0, old.err.read_text()
    return new


def served_by(visitors: list[Visitors]) -> int:
    """Worker processes that have had their share."""
    return len({pid for each in visitors for pid in each.served_by})


async def test_no_request_fails_while_all_workers_are_replaced_one_after_the_other(shop: Folder) -> None:
    workers = [shop.worker("service:bus", "--concurrency", "20") for _ in range(2)]
    sites = [Site(shop, "fastapi", "fastapi_app"), Site(shop, "aiohttp", "aiohttp_app")]
    try:
        for each in workers:
            await asyncio.to_thread(each.until_ready)
        for site in sites:
            await asyncio.to_thread(site.until_up)
        began = time.monotonic()
        async with visited(*sites) as visitors:
            for number in range(2 * ROUNDS):
                share = f"{number + 2} have served"
                await asyncio.to_thread(until, lambda least=number + 2: served_by(visitors) >= least, share, 60)
                place = number % 2
                workers[place] = await asyncio.to_thread(redeploy, shop, workers[place])
            await asyncio.to_thread(until, lambda: served_by(visitors) == 2 + 2 * ROUNDS, "each has served", 60)
            await asyncio.to_thread(
                until, lambda: sum(each.served_by.total() for each in visitors) >= AT_LEAST, "many requests", 60
            )
        took = time.monotonic() - began
        for each in visitors:
            assert each.told == []
        served = sum((each.served_by for each in visitors), Counter[int]())
        print(f"{served.total()} requests in {took:.1f} s, by {dict(served)}")
    finally:
        for site in sites:
            site.end()
