"""What type checkers must conclude about the public surface; read by mypy and pyright, never run."""

import collections
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, assert_type

from pydantic import BaseModel

from busline import Bus, Context, Job, Router, SyncJob, Topic, Worker, remote
from busline.depends import Depends


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


async def by_function(cmd: CreateOrder) -> Order: ...  # type: ignore[empty-body]
async def with_context(cmd: CreateOrder, ctx: Context) -> Order: ...  # type: ignore[empty-body]
async def context_first(ctx: Context, cmd: CreateOrder) -> Order: ...  # type: ignore[empty-body]
async def count() -> int: ...  # type: ignore[empty-body]
def plain(cmd: CreateOrder, ctx: Context) -> list[Order]: ...  # type: ignore[empty-body]
async def by_name(sku: str, qty: int = 1) -> Mapping[str, int]: ...  # type: ignore[empty-body]
async def session() -> str: ...  # type: ignore[empty-body]
async def with_dependency(cmd: CreateOrder, session: Annotated[str, Depends(session)]) -> Order: ...  # type: ignore[empty-body]


async def calls_of_functions(bus: Bus) -> None:
    assert_type(await bus.call(by_function, CreateOrder(sku="tea")), Order)
    assert_type(await bus.call(with_context, CreateOrder(sku="tea"), timeout=1.0), Order)
    assert_type(await bus.call(context_first, CreateOrder(sku="tea")), Order)
    assert_type(await bus.call(with_dependency, CreateOrder(sku="tea")), Order)
    assert_type(await bus.call(count), int)
    assert_type(await bus.call(plain, CreateOrder(sku="tea")), list[Order])
    assert_type(await bus.call(by_name, {"sku": "tea"}), Mapping[str, int])
    assert_type(await bus.send(with_context, CreateOrder(sku="tea"), delay=5.0), Job)
    assert_type(await bus.send(count), Job)


async def mistakes_with_functions(bus: Bus) -> None:
    await bus.call(by_function, Order(id="1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await bus.send(with_context, Order(id="1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await bus.send(ORDERS_CREATE, Order(id="1"))  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]


class OrdersService(Protocol):
    async def create(self, cmd: CreateOrder) -> Order: ...
    async def find(self, sku: str, limit: int = 10) -> list[Order]: ...
    async def forget(self, sku: str) -> Job: ...


async def clients(bus: Bus) -> None:
    orders = bus.client(OrdersService, timeout=1.0)
    assert_type(orders, OrdersService)
    assert_type(await orders.create(CreateOrder(sku="tea")), Order)
    assert_type(await orders.find("tea", limit=1), list[Order])
    assert_type(await orders.forget("tea"), Job)
    await orders.create(Order(id="1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Orders:
    by_function = remote(by_function)
    with_context = remote(with_context)
    context_first = remote(context_first)
    count = remote(count)
    plain = remote(plain)
    by_name = remote(by_name)

    async def with_dependency(self, cmd: CreateOrder) -> Order: ...  # type: ignore[empty-body]


async def clients_of_handlers(bus: Bus, router: Router) -> None:
    orders = bus.client(Orders, prefix="orders.", timeout=1.0)
    assert_type(orders, Orders)
    assert_type(await orders.by_function(CreateOrder(sku="tea")), Order)
    assert_type(await orders.by_function(cmd=CreateOrder(sku="tea")), Order)
    assert_type(await orders.with_context(CreateOrder(sku="tea")), Order)
    assert_type(await orders.context_first(cmd=CreateOrder(sku="tea")), Order)
    assert_type(await orders.count(), int)
    assert_type(await orders.plain(CreateOrder(sku="tea")), list[Order])
    assert_type(await orders.by_name("tea", qty=2), Mapping[str, int])
    assert_type(await orders.with_dependency(CreateOrder(sku="tea")), Order)
    await orders.by_function(Order(id="1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await orders.by_name(2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await orders.delete()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    for client in (bus.client(router, timeout=1.0), bus.client(collections)):
        assert_type(await client.whatever(1), Any)


def without_await(bus: Bus) -> None:
    with bus.sync() as sync:
        assert_type(sync.call(ORDERS_CREATE, CreateOrder(sku="tea")), Order)
        assert_type(sync.call("orders.count", returns=float), float)
        assert_type(sync.call(by_function, CreateOrder(sku="tea")), Order)
        assert_type(sync.call(plain, CreateOrder(sku="tea")), list[Order])
        assert_type(sync.call(by_name, {"sku": "tea"}), Mapping[str, int])
        assert_type(sync.send(with_context, CreateOrder(sku="tea"), delay=5.0), SyncJob)
        sync.call("orders.create", timout=1.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
