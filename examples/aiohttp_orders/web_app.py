"""The web application: takes orders over HTTP and asks the service. `python web_app.py [port [host]]`"""

import sys

from aiohttp import web
from app import CreateOrder, Order, SoldOut, bus
from pydantic import TypeAdapter, ValidationError

from busline.integrations.aiohttp import get_bus

ORDERS = TypeAdapter(list[Order])


async def create(request: web.Request) -> web.Response:
    try:
        cmd = CreateOrder.model_validate_json(await request.read())
    except ValidationError as error:
        raise web.HTTPUnprocessableEntity(text=error.json(), content_type="application/json") from error
    try:
        order = await get_bus(request).call("orders.create", cmd, returns=Order)
    except SoldOut as error:
        raise web.HTTPConflict(text=f"{error}\n") from error
    return web.Response(text=order.model_dump_json(), status=201, content_type="application/json")


async def list_orders(request: web.Request) -> web.Response:
    orders = await get_bus(request).call("orders.list", returns=list[Order])
    return web.Response(body=ORDERS.dump_json(orders), content_type="application/json")


def make_app() -> web.Application:
    app = web.Application()
    bus.setup(app, timeout=5)  # open while the application runs; failed calls are answered with 503 and 504
    app.router.add_post("/orders", create)
    app.router.add_get("/orders", list_orders)
    return app


if __name__ == "__main__":
    port, host = int(sys.argv[1]) if sys.argv[1:] else 8000, sys.argv[2] if sys.argv[2:] else "127.0.0.1"
    web.run_app(make_app(), host=host, port=port)
