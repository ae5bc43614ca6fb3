"""aiohttp: a request over HTTP with no broker at all, as a reference."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from benchmarks.peers.common import Order, Shape, main


class _Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def call(self, order: Order) -> Order:
        async with self._session.post(self._url, data=order.model_dump_json().encode()) as answer:
            return Order.model_validate_json(await answer.read())

    async def send(self, order: Order) -> None:
        raise SystemExit("HTTP keeps nothing")


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[_Client]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30.0)) as session:
        yield _Client(session, url)


async def serve(url: str, shape: Shape, ready: Callable[[], None]) -> None:
    async def echo(request: web.Request) -> web.Response:
        order = Order.model_validate_json(await request.read())
        return web.Response(body=order.model_dump_json().encode(), content_type="application/json")

    app = web.Application()
    app.router.add_post("/", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", urlsplit(url).port).start()
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main(sys.modules[__name__])
