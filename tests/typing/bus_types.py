"""What type checkers must conclude about the public surface; read by mypy and pyright, never run."""

from typing import Any, assert_type

from pydantic import BaseModel

from busline import Bus, Context, Job, Router, Topic, Worker


class CreateOrder(BaseModel):
    sku: str


class Order(BaseModel):
    id: str


ORDERS_CREATE = Topic("orders.create", CreateOrder, Order)
assert_type(ORDERS_CREATE, Topic[CreateOrder, Order])


async def calls(bus: Bus) -> None:
    assert_type(await bus.call(ORDERS_CREATE, CreateOrder(sku="tea")), Order)
    assert_type(await bus.call("orders.create", CreateOrder(sku="tea"), returns=Order), Order)
    assert_type(await bus.call("orders.count", returns=int, timeout=1.0), int)
    assert_type(await bus.call("orders.create", {"sku": "tea"}), Any)
    assert_type(await bus.send(ORDERS_CREATE, CreateOrder(sku="tea"), delay=1.0), Job)
    assert_type(await bus.publish("orders.created", Order(id="1")), None)


async def mistakes(bus: Bus) -> None:
    # Another payload than the topic's, and a misspelt option.
    await bus.call(ORDERS_CREATE, Order(id="1"))  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await bus.call("orders.create", timout=1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def worker(bus: Bus) -> None:
    async with bus as same:
        assert_type(same, Bus)
    async with bus.worker(concurrency=4) as running:
        assert_type(running, Worker)


def declarations(bus: Bus, router: Router) -> None:
    @bus.handler("orders.create")
    async def create(cmd: CreateOrder, ctx: Context) -> Order:
        return Order(id=cmd.sku)

    @router.handler(ORDERS_CREATE)
    def create_plainly(cmd: CreateOrder) -> Order:
        return Order(id=cmd.sku)

    @bus.subscriber("orders.*")
    async def on_order(order: Order) -> None: ...

    @bus.error("orders.sold_out")
    class SoldOut(Exception): ...

    # A handler stays the function that it was: called in a test, it has its own parameters and result.
    assert_type(create_plainly(CreateOrder(sku="tea")), Order)
    assert_type(SoldOut(), SoldOut)

    async def use(ctx: Context) -> None:
        assert_type(await create(CreateOrder(sku="tea"), ctx), Order)
        await create(Order(id="1"), ctx)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(await on_order(Order(id="1")), None)
