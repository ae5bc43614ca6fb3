"""A pretended model server: slow, and away at times. `python model_server.py [port]`"""

import asyncio
import sys

from aiohttp import web
from app import SCALE

LONG = 60.0
"""Seconds that a long answer takes."""


async def health(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def generate(request: web.Request) -> web.Response:
    prompt = (await request.json())["prompt"]
    if "long" in prompt:
        await asyncio.sleep(LONG * SCALE)
    if "broken" in prompt:
        raise web.HTTPBadGateway(text="the model has crashed\n")
    return web.json_response({"text": f"{prompt.capitalize()}? That depends."})


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_post("/generate", generate)
    web.run_app(app, port=int(sys.argv[1]) if sys.argv[1:] else 8100)
