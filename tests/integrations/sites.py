"""The same small application in FastAPI and in aiohttp, served as their documents say."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
from process.commands import Folder, until

from tests.servers import free_ports

PATIENCE = httpx.Timeout(60)
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)

SERVICE = """
import asyncio, time
from pathlib import Path
from busline import Bus, Context

HERE = Path(__file__).parent
bus = Bus(service="sums")

@bus.handler("sums.double")
async def double(number: int) -> int:
    return 2 * number

@bus.handler("sums.hold")
async def hold(number: int) -> int:
    with (HERE / "held").open("a") as held:
        held.write(f"{number}\\n")
    while not (HERE / "gate").exists():
        await asyncio.sleep(0.02)
    return 2 * number

@bus.handler("sums.left")
async def left(ctx: Context) -> float:
    return ctx.deadline - time.time()

@bus.handler("sums.hang")
async def hang() -> None:
    await asyncio.sleep(60)

@bus.handler("sums.fail")
async def fail() -> None:
    raise ValueError("no luck")

@bus.handler("sums.closed", requires=[lambda: False], on_down="answer")
async def closed() -> None: ...

@bus.handler("sums.note")
async def note(what: str) -> None:
    with (HERE / "notes").open("a") as notes:
        notes.write(f"{what}\\n")
"""

FASTAPI = """
import asyncio
from contextlib import asynccontextmanager
from fastapi import BackgroundTasks, FastAPI, Request
from busline import Bus
from busline.integrations.fastapi import CurrentBus, combine, install

bus = Bus(call_timeout=100)

@asynccontextmanager
async def own(app):
    print("own begins", flush=True)
    yield {"greeting": "hello"}
    print("own ends", flush=True)

app = FastAPI(lifespan=combine(own, bus.lifespan))
install(app, timeout=60, timeout_header="X-Timeout", retry_after=2.5)

@app.get("/own")
async def greet(request: Request):
    return request.state.greeting

@app.get("/call/{topic}")
async def call(topic: str, bus: CurrentBus, number: int | None = None, timeout: float | None = None):
    return await bus.call(f"sums.{topic}", number, timeout=timeout)

@app.get("/twice/{topic}")
async def twice(topic: str, bus: CurrentBus):
    first = await bus.call(f"sums.{topic}")
    return [first, await bus.call(f"sums.{topic}")]

@app.get("/later")
async def later(tasks: BackgroundTasks, bus: CurrentBus):
    async def work():
        await asyncio.sleep(1)
        await bus.call("sums.note", "after the answer")
    tasks.add_task(work)
    return "accepted"
"""

AIOHTTP = """
import asyncio, os
from aiohttp import web
from busline import Bus
from busline.integrations.aiohttp import get_bus

bus = Bus(call_timeout=100)
app = web.Application()
tasks = set()
GREETING = web.AppKey("greeting", str)

async def own(app):
    print("own begins", flush=True)
    app[GREETING] = "hello"
    yield
    print("own ends", flush=True)

app.cleanup_ctx.append(own)
bus.setup(app, timeout=60, timeout_header="X-Timeout", retry_after=2.5)

async def greet(request):
    return web.json_response(request.app[GREETING])

async def call(request):
    number, timeout = request.query.get("number"), request.query.get("timeout")
    topic = f"sums.{request.match_info['topic']}"
    answer = await get_bus(request).call(
        topic, None if number is None else int(number), timeout=None if timeout is None else float(timeout)
    )
    return web.json_response(answer)

async def twice(request):
    topic = f"sums.{request.match_info['topic']}"
    first = await get_bus(request).call(topic)
    return web.json_response([first, await get_bus(request).call(topic)])

async def later(request):
    async def work():
        await asyncio.sleep(1)
        await bus.call("sums.note", "after the answer")
    tasks.add(asyncio.create_task(work()))
    return web.json_response("accepted")

app.router.add_get("/own", greet)
app.router.add_get("/call/{topic}", call)
app.router.add_get("/twice/{topic}", twice)
app.router.add_get("/later", later)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]))
"""


class Site:
    """An application that is served by a process of its own, until `end`."""

    def __init__(self, folder: Folder, framework: str, module: str) -> None:
        [self.port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.framework = framework
        command = [sys.executable, "-W", "error", f"{module}.py"]
        if framework == "fastapi":
            command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(self.port), "--no-access-log"]
        self._output = folder.path / f"{module}.{self.port}.log"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder.path,
                env={**folder.environment, "PORT": str(self.port)},
                stdout=output,
                stderr=output,
            )

    def listens(self) -> bool:
        """Does it take connections?"""
        try:
            httpx.get(f"{self.url}/nothing/here", timeout=PATIENCE)
        except httpx.TransportError:
            return False
        return True

    def until_up(self) -> None:
        """Wait until it answers."""
        until(lambda: self.listens() or self.process.poll() is not None, "the site answers")
        assert self.process.poll() is None, self.output

    @property
    def output(self) -> str:
        """What it has printed and logged."""
        return self._output.read_text()

    def client(self) -> httpx.AsyncClient:
        """One that waits as long as it takes, on any number of connections."""
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, limits=LIMITS)

    def get(self, path: str, **headers: str) -> httpx.Response:
        """One request."""
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=PATIENCE)

    def terminate(self) -> None:
        """As whoever deploys it does."""
        self.process.send_signal(signal.SIGTERM)

    def left_in_good_order(self) -> bool:
        """Wait for its end; uvicorn ends by the signal that it was sent."""
        return self.process.wait(40) == (-signal.SIGTERM if self.framework == "fastapi" else 0)

    def until_logged(self, what: str) -> None:
        """Wait for a line with this in it."""
        until(lambda: what in self.output, f"{what!r} is logged: {self.output}")

    def end(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait(10)


def lines(folder: Folder, name: str) -> list[str]:
    """Of a file that a handler writes."""
    path = folder.path / name
    return path.read_text().splitlines() if path.exists() else []
