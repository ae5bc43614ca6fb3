"""Topics named by the functions that handle them, and clients of whole services."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated, Any, Protocol

import pytest
from pydantic import BaseModel

from busline import Bus, CodecError, ConfigurationError, Context, Job, Router, remote
from busline.depends import Depends


class Order(BaseModel):
    sku: str
    qty: int = 1


class Receipt(BaseModel):
    text: str


router = Router()
sent: list[str] = []


@router.handler("create")
async def create(order: Order, ctx: Context) -> Receipt:
    return Receipt(text=f"{order.qty} {order.sku} for {ctx.headers.get('user', 'nobody')}")


@router.handler("find")
def find(sku: str, limit: int = 10) -> list[Order]:
    return [Order(sku=sku, qty=limit)]


@router.handler("forget")
async def forget(sku: str) -> None:
    sent.append(sku)


@router.handler("count")
async def count() -> int:
    return 7


def discount() -> int:
    return 3


@router.handler("price")
async def price(ctx: Context, sku: str, qty: int, discount: Annotated[int, Depends(discount)]) -> int:
    """What it costs."""
    return len(sku) * qty - discount


@router.subscriber("created")
async def created(order: Order) -> None: ...


@router.handler("untyped")
async def untyped(thing):  # type: ignore[no-untyped-def]
    return thing


def bus_of_orders() -> Bus:
    bus = Bus("memory://", service="shop")
    bus.include(router, prefix="orders.")
    return bus


async def test_a_handler_is_called_by_itself_and_its_annotation_reads_the_reply() -> None:
    async with (bus := bus_of_orders()).worker():
        assert await bus.call(create, Order(sku="tea")) == Receipt(text="1 tea for nobody")
        assert await bus.call(find, {"sku": "tea", "limit": 3}) == [Order(sku="tea", qty=3)]
        assert await bus.call(count) == 7
        assert await bus.call(untyped, {"a": 1}) == {"a": 1}
        assert (await bus.send(forget, "tea")).topic == "orders.forget"


async def test_a_function_that_stands_for_no_topic_or_for_two_is_refused() -> None:
    async with bus_of_orders() as bus:
        with pytest.raises(ConfigurationError, match="bus_of_orders handles no topic"):
            await bus.call(bus_of_orders)
        bus.handler("orders.create.again")(create)
        with pytest.raises(ConfigurationError, match=r"create handles orders\.create and orders\.create\.again"):
            await bus.call(create, Order(sku="tea"))


async def test_a_handler_of_several_values_is_given_them_by_name() -> None:
    async with bus_of_orders().worker() as worker, bus_of_orders() as bus:
        assert worker.running == 0
        with pytest.raises(ConfigurationError, match="takes sku, limit: give it a dict of them, not str"):
            await bus.call(find, "tea")  # type: ignore[arg-type]  # the mistake that it is about


class OrdersService(Protocol):
    async def create(self, order: Order) -> Receipt: ...
    async def find(self, sku: str, limit: int = 5) -> list[Order]: ...
    async def forget(self, sku: str) -> Job: ...
    async def count(self) -> int: ...


async def test_a_client_calls_the_topics_of_its_service() -> None:
    async with (bus := bus_of_orders()).worker():
        orders = bus.client(OrdersService, headers={"user": "ada"}, timeout=5.0)
        assert await orders.create(Order(sku="tea")) == Receipt(text="1 tea for ada")
        assert await orders.create(order=Order(sku="tea", qty=2)) == Receipt(text="2 tea for ada")
        assert await orders.find("tea") == [Order(sku="tea", qty=5)]
        assert await orders.find(limit=2, sku="tea") == [Order(sku="tea", qty=2)]
        assert await orders.count() == 7
        assert isinstance(await orders.forget("tea"), Job)
        assert repr(orders) == "<client of OrdersService at orders.*>"
        with pytest.raises(TypeError, match="sku"):
            await orders.find()  # type: ignore[call-arg]  # the mistake that it is about


async def test_a_client_says_when_a_reply_is_not_what_its_method_returns() -> None:
    class OrdersService(Protocol):
        async def count(self) -> Receipt: ...

    async with (bus := bus_of_orders()).worker():
        with pytest.raises(CodecError, match=r"reply of 'orders\.count'"):
            await bus.client(OrdersService).count()


def test_the_prefix_is_the_name_of_the_service_unless_it_is_given() -> None:
    class UserAccountsService(Protocol):
        async def close(self) -> None: ...

    class Service(Protocol):
        async def close(self) -> None: ...

    bus = Bus("memory://")
    assert repr(bus.client(UserAccountsService)).endswith("at user_accounts.*>")
    assert repr(bus.client(Service, prefix="shop.")).endswith("at shop.*>")
    with pytest.raises(ConfigurationError, match="give the prefix"):
        bus.client(Service)
    with pytest.raises(ConfigurationError, match="pattern"):
        bus.client(Service, prefix="shop.*.")


class Orders:
    create = remote(create)
    find = remote(find)
    count = remote(count)
    cost = remote(price)

    async def forget(self, sku: str) -> Job: ...  # type: ignore[empty-body]


async def test_a_class_of_handlers_makes_a_client_with_their_topics_and_types() -> None:
    async with (bus := bus_of_orders()).worker():
        orders = bus.client(Orders, prefix="orders.", headers={"user": "ada"}, timeout=5.0)
        assert await orders.create(Order(sku="tea")) == Receipt(text="1 tea for ada")
        assert await orders.find("tea") == [Order(sku="tea", qty=10)], "the handler's own default"
        assert await orders.find(limit=2, sku="tea") == [Order(sku="tea", qty=2)]
        assert await orders.count() == 7
        assert await orders.cost("tea", qty=4) == 9  # type: ignore[call-arg]  # no checker can leave a dependency out
        assert isinstance(await orders.forget("tea"), Job)
        assert repr(orders) == "<client of Orders at orders.*>"
        with pytest.raises(ConfigurationError, match=r"create is called through a client"):
            await Orders.create(Order(sku="tea"))


@pytest.mark.parametrize("service", [router, sys.modules[__name__]], ids=["router", "module"])
async def test_a_client_of_a_router_or_a_module_has_its_handlers_without_what_the_worker_gives(service: Any) -> None:
    async with (bus := bus_of_orders()).worker():
        orders = bus.client(service, headers={"user": "ada"})
        assert await orders.create(order=Order(sku="tea")) == Receipt(text="1 tea for ada")
        assert await orders.price("tea", 4) == 9
        assert str(inspect.signature(orders.price)) == "(sku: 'str', qty: 'int') -> 'int'"
        assert inspect.getdoc(orders.price) == "What it costs."
        with pytest.raises(TypeError, match="discount"):
            await orders.price("tea", 4, discount=0)
        with pytest.raises(AttributeError, match=r"no 'created'; it has count, create, find, forget, price, untyped$"):
            await orders.created(Order(sku="tea"))


def test_handlers_that_a_client_cannot_tell_apart_or_find_are_refused() -> None:
    bus, again = bus_of_orders(), Router()
    with pytest.raises(ConfigurationError, match="has its router been included"):
        Bus("memory://").client(router)
    with pytest.raises(ConfigurationError, match="has no handler of this bus"):
        bus.client(inspect)
    with pytest.raises(ConfigurationError, match="handlers know their topics"):
        bus.client(router, prefix="orders.")  # type: ignore[call-overload]  # the mistake that it is about
    again.handler("create")(create)
    again.handler("renew")(lambda: None)
    again.handler("drop")(lambda: None)
    with pytest.raises(ConfigurationError, match="two handlers named <lambda>"):
        bus.client(again)


class Plain(Protocol):
    def create(self, order: Order) -> Receipt: ...


class Silent(Protocol):
    async def create(self, order: Order): ...  # type: ignore[no-untyped-def]


class Vague(Protocol):
    async def create(self, order) -> Receipt: ...  # type: ignore[no-untyped-def]


class Greedy(Protocol):
    async def create(self, *orders: Order) -> Receipt: ...


class Confused(Protocol):
    async def create(self, order: Order, ctx: Context) -> Receipt: ...


class Unreadable(Protocol):
    async def create(self, order: Order) -> Bus: ...


class Field(Protocol):
    name: str


class Empty(Protocol): ...


@pytest.mark.parametrize(
    ("service", "why"),
    [
        (Plain, "is not async"),
        (Silent, "does not say what it returns"),
        (Vague, "does not say what order is"),
        (Greedy, "named, one by one"),
        (Confused, "asks for the context"),
        (Unreadable, "cannot be read from JSON"),
        (Field, "is not a method"),
        (Empty, "no public methods"),
        (create, "is not a class"),
    ],
)
def test_a_service_that_cannot_be_called_is_refused_when_its_client_is_made(service: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Bus("memory://").client(service)
