"""Applications that handle messages themselves, and what they are made of, within this process."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from aiohttp import ClientPayloadError, ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from process.commands import Folder, until

from busline import Bus, CallTimeout, ConfigurationError, TransportClosed
from busline.integrations.aiohttp import get_bus as aiohttp_bus
from busline.integrations.fastapi import CurrentBus, combine, install, serving
from tests.servers import free_ports

from .sites import Site

FASTAPI = """
import asyncio
from pathlib import Path
from fastapi import FastAPI
from busline import Bus
from busline.integrations.fastapi import CurrentBus, serving

bus = Bus(service="both")
app = FastAPI(lifespan=serving(bus, concurrency=20))
"""
AIOHTTP = """
import asyncio, os
from pathlib import Path
from aiohttp import web
from busline import Bus

bus = Bus(service="both")
app = web.Application()
bus.setup(app, worker={"concurrency": 20})
"""
HANDLERS = """
HERE = Path(__file__).parent

@bus.handler("both.slow")
async def slow(number: int) -> int:
    with (HERE / "notes").open("a") as notes:
        notes.write("begun\\n")
    await asyncio.sleep(1.5)
    with (HERE / "notes").open("a") as notes:
        notes.write("done\\n")
    return -number
"""
FASTAPI_END = """
@app.get("/slow/{number}")
async def ask(number: int, bus: CurrentBus):
    return await bus.call("both.slow", number)

@app.get("/send/{number}")
async def send(number: int, bus: CurrentBus):
    return (await bus.send("both.slow", number)).id
"""
AIOHTTP_END = """
async def ask(request):
    return web.json_response(await bus.call("both.slow", int(request.match_info["number"])))

async def send(request):
    return web.json_response((await bus.send("both.slow", int(request.match_info["number"]))).id)

app.router.add_get("/slow/{number}", ask)
app.router.add_get("/send/{number}", send)
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]))
"""


@pytest.mark.parametrize("framework", ["fastapi", "aiohttp"])
async def test_an_application_that_is_its_own_worker_finishes_both_its_requests_and_its_jobs(
    framework: str, folder: Folder
) -> None:
    begin, end = (FASTAPI, FASTAPI_END) if framework == "fastapi" else (AIOHTTP, AIOHTTP_END)
    folder.write("both_app", begin + HANDLERS + end)
    site = Site(folder, framework, "both_app")
    try:
        await asyncio.to_thread(site.until_up)
        async with site.client() as client:
            assert (await client.get("/send/1")).status_code == 200
            asked = [asyncio.create_task(client.get(f"/slow/{number}")) for number in range(9)]
            await asyncio.to_thread(folder.until_noted, "begun", 10)
            site.terminate()
            assert [(await task).json() for task in asked] == [-number for number in range(9)]
        assert await asyncio.to_thread(site.left_in_good_order), site.output
        assert folder.noted("done") == 10
    finally:
        site.end()


async def test_a_worker_that_ends_before_its_application_is_told_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db", service="lonely")

    @bus.handler("lonely.ping")
    async def ping() -> None: ...

    async def application() -> None:
        async with serving(bus)(None):
            await bus.transport.aclose()
            await asyncio.to_thread(until, lambda: "worker in this application has ended" in caplog.text, "it is told")

    with pytest.raises(TransportClosed):
        await application()
    assert {record.levelno for record in caplog.records if "has ended" in record.message} == {logging.CRITICAL}


async def test_lifespans_are_entered_in_order_and_left_in_reverse_with_the_states_of_all() -> None:
    steps: list[str] = []

    def lifespan(name: str, state: Mapping[str, Any] | None) -> Any:
        @asynccontextmanager
        async def own(app: object) -> AsyncIterator[Mapping[str, Any] | None]:
            steps.append(f"+{name}")
            try:
                yield state
            finally:
                steps.append(f"-{name}")

        return own

    async with combine(lifespan("a", {"a": 1}), lifespan("b", None), lifespan("c", {"c": 3}))(None) as state:
        assert state == {"a": 1, "c": 3}
    assert steps == ["+a", "+b", "+c", "-c", "-b", "-a"]
    with pytest.raises(ConfigurationError, match="name 'a'"):
        async with combine(lifespan("x", {"a": 1}), lifespan("y", {"a": 2}))(None):
            pass
    assert steps[-4:] == ["+x", "+y", "-y", "-x"]


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[ClientSession]:
    """By a uvicorn in this loop; a client of it."""
    [port] = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, ws="wsproto"))
    task = asyncio.create_task(server.serve())
    async with ClientSession(f"http://127.0.0.1:{port}") as client:
        await asyncio.to_thread(until, lambda: server.started or task.done(), "uvicorn has started")
        yield client
    server.should_exit = True
    await task


async def test_websockets_and_mounted_applications_have_the_bus_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    app, mounted = FastAPI(lifespan=bus.lifespan), FastAPI()
    app.mount("/below", mounted)
    install(app, timeout=5)

    @mounted.get("/service")
    async def service(bus: CurrentBus) -> str:
        return bus.url

    @app.websocket("/socket")
    async def socket(socket: WebSocket, bus: CurrentBus) -> None:
        await socket.accept()
        await socket.send_text(bus.url)
        await socket.close()

    async with served(app) as client:
        async with client.get("/below/service") as response:
            assert await response.json() == bus.url
        async with client.ws_connect("/socket") as connection:
            assert await connection.receive_str() == bus.url
    async with served(mounted) as client, client.get("/service") as response:
        assert response.status == 500
    assert "give it lifespan=bus.lifespan" in caplog.text


async def test_an_answer_that_has_begun_cannot_become_another_in_fastapi(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    app = FastAPI(lifespan=bus.lifespan)
    install(app)

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise CallTimeout("any", 1.0, "queued", "here")

        return StreamingResponse(parts())

    async with served(app) as client, client.get("/half") as response:
        with pytest.raises(ClientPayloadError):
            await response.read()
    assert "Exception in ASGI application" in caplog.text


async def test_an_answer_that_has_begun_cannot_become_another_in_aiohttp(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    app, below = web.Application(), web.Application()
    bus.setup(app, timeout=5)

    async def half(request: web.Request) -> web.StreamResponse:
        assert aiohttp_bus(request) is bus
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise CallTimeout("any", 1.0, "queued", "here")

    below.router.add_get("/half", half)
    app.add_subapp("/below", below)
    with pytest.raises(ConfigurationError, match="has a bus already"):
        bus.setup(app)
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/below/half")
        with pytest.raises(ClientPayloadError):
            await response.read()
    assert "Error handling request" in caplog.text


async def test_an_aiohttp_application_without_a_bus_is_told_how_to_get_one(caplog: pytest.LogCaptureFixture) -> None:
    app = web.Application()

    async def ask(request: web.Request) -> web.Response:
        return web.json_response(await aiohttp_bus(request).call("any"))

    app.router.add_get("/", ask)
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/")).status == 500
    assert "call bus.setup(app) before it is started" in caplog.text


@pytest.mark.parametrize("missing", ["starlette", "fastapi", "aiohttp"])
def test_without_the_library_the_extra_is_named(missing: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nimport busline.integrations.{missing}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    extra = "aiohttp" if missing == "aiohttp" else "fastapi"
    assert f"pip install 'busline[{extra}]'" in done.stderr.splitlines()[-1]
