"""Dependencies of handlers: when they begin and end, what they see, and what is refused."""

import asyncio
import functools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Annotated, Any

import anyio
import fastapi
import pytest
from pydantic import BaseModel

from busline import Bus, ConfigurationError, Context, RemoteError, Retry, Router, SoftTimeLimitExceeded
from busline.depends import Depends, per_worker
from busline.testing import BusTest

story: list[str] = []
"""What happened, in order."""


@pytest.fixture(autouse=True)
def _new_story() -> None:
    story.clear()


@pytest.fixture
def bus() -> Bus:
    return Bus("memory://", service="shop")


class Order(BaseModel):
    sku: str


async def session() -> AsyncIterator[str]:
    story.append("session begins")
    await asyncio.sleep(0)
    try:
        yield "a session"
    except BaseException as error:
        story.append(f"session sees {type(error).__name__}")
        raise
    finally:
        await asyncio.sleep(0.001)
        story.append("session ends")


Session = Annotated[str, Depends(session)]


async def orders(session: Session) -> str:
    story.append("orders")
    return f"orders in {session}"


def audit(session: Session, ctx: Context, order: Order) -> Iterator[str]:
    story.append(f"audit of {order.sku} in {ctx.topic}, thread {threading.current_thread() is threading.main_thread()}")
    yield "an audit"
    story.append("audit ends")


async def test_what_a_handler_needs_begins_before_it_and_ends_before_its_message_is_settled(bus: Bus) -> None:
    @bus.handler("create")
    async def create(
        order: Order,
        orders: Annotated[str, Depends(orders)],
        ctx: Context,
        audit: Annotated[str, Depends(audit)],
        session: Session,
    ) -> str:
        await ctx.publish("created", order)
        story.append("handler")
        return f"{order.sku}: {orders}, {audit}, {session}"

    @bus.subscriber("created")
    async def on_created(order: Order, session: Session) -> None:
        story.append(f"subscriber in {session}")

    async with BusTest(bus) as t:
        assert await t.call(create, Order(sku="tea")) == "tea: orders in a session, an audit, a session"
        await t.settle()
    assert story == [
        *("session begins", "orders", "audit of tea in create, thread False", "handler"),
        *("audit ends", "session ends"),
        *("session begins", "subscriber in a session", "session ends"),
    ]


async def test_plain_functions_get_them_too_and_still_run_in_a_thread(bus: Bus) -> None:
    class Settings:
        def __init__(self, ctx: Context) -> None:
            self.topic = ctx.topic

    @bus.handler("report")
    def report(months: list[int], year: int, settings: Annotated[Settings, Depends(Settings)], session: Session) -> str:
        assert threading.current_thread() is not threading.main_thread()
        return f"{settings.topic} {year} {months} in {session}"

    async with BusTest(bus) as t:
        assert await t.call(report, {"months": [1], "year": 2026}) == "report 2026 [1] in a session"
    assert story == ["session begins", "session ends"]


async def test_an_error_is_seen_by_what_the_handler_used_and_stays_its_error(bus: Bus) -> None:
    async def forgiving(session: Session) -> AsyncIterator[None]:
        try:
            yield
        except ValueError:
            story.append("forgiven")

    @bus.handler("create")
    async def create(order: Order, forgiving: Annotated[None, Depends(forgiving)]) -> str:
        raise ValueError("sold out")

    async with BusTest(bus) as t:
        with pytest.raises(RemoteError, match="sold out"):
            await t.call("create", Order(sku="tea"))
    assert story == ["session begins", "forgiven", "session ends"]


async def test_what_fails_at_the_beginning_or_the_end_fails_the_attempt_before_anything_has_left(bus: Bus) -> None:
    failing = ["begin", "commit"]

    async def transaction(session: Session) -> AsyncIterator[None]:
        if failing[:1] == ["begin"]:
            raise ConnectionError(failing.pop(0))
        yield
        if failing:
            raise ConnectionError(failing.pop(0))
        story.append("committed")

    @bus.handler("create", retry=Retry(delays=[1, 1, 1]))
    async def create(order: Order, ctx: Context, transaction: Annotated[None, Depends(transaction)]) -> None:
        await ctx.send("mail", order.sku)

    @bus.handler("mail")
    async def mail(text: str) -> None: ...

    async with BusTest(bus) as t:
        await t.send_and_settle("create", Order(sku="tea"))
        assert [str(failure.error) for failure in t.retried] == ["begin"]
        await t.advance(2)
        assert [str(failure.error) for failure in t.retried] == ["begin", "commit"]
        assert not t.sent.to("mail")
        await t.advance(10)
        assert t.sent.to("mail").payloads == ["tea"]
        assert t.handled.one("create").attempt == 3
    assert story[-2:] == ["committed", "session ends"]


async def test_a_time_limit_lets_them_end_in_peace(bus: Bus) -> None:
    @bus.handler("slow", soft_time_limit=10, time_limit=20, retry=Retry(max_retries=0))
    async def slow(stubborn: bool, session: Session) -> None:
        try:
            await asyncio.sleep(1000)
        except SoftTimeLimitExceeded:
            if not stubborn:
                raise
            await asyncio.sleep(1000)

    async with BusTest(bus, patience=0.1) as t:
        await t.send("slow", False)
        await t.advance(11)
        assert story == ["session begins", "session sees SoftTimeLimitExceeded", "session ends"]
        story.clear()
        await t.send("slow", True)
        await t.advance(21)
        assert story == ["session begins", "session sees CancelledError", "session ends"]
        assert [str(letter.reason) for letter in t.dead_lettered] == ["failed", "failed"]


async def test_a_worker_that_leaves_lets_them_end_in_peace_whatever_they_are(bus: Bus) -> None:
    def plain() -> Iterator[None]:
        try:
            yield
        finally:
            story.append("plain ends")

    started = asyncio.Event()

    @bus.handler("slow")
    async def slow(session: Session, plain: Annotated[None, Depends(plain)]) -> None:
        started.set()
        await asyncio.sleep(1000)

    async with bus.worker(drain_timeout=0.0):
        await bus.send("slow")
        await asyncio.wait_for(started.wait(), 10)
    assert story == ["session begins", "plain ends", "session sees CancelledError", "session ends"]


async def test_what_never_ends_is_cut_off(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busline.injection.CLEANUP", 0.05)

    async def endless() -> AsyncIterator[None]:
        try:
            yield
        finally:
            story.append("ending")
            await anyio.sleep(1000)

    started = asyncio.Event()

    @bus.handler("slow")
    async def slow(session: Session, endless: Annotated[None, Depends(endless)]) -> None:
        started.set()
        await asyncio.sleep(1000)

    async with asyncio.timeout(20), bus.worker(drain_timeout=0.0):
        await bus.send("slow")
        await started.wait()
    assert story == ["session begins", "ending", "session sees CancelledError", "session ends"]


async def test_no_payload_and_no_neighbour_takes_the_place_of_a_dependency(bus: Bus) -> None:
    """As it would where all arguments live in one namespace."""

    async def admin() -> bool:
        return False

    async def user(admin: Annotated[bool, Depends(admin)]) -> str:
        return f"admin={admin}"

    async def other() -> bool:
        return True

    @bus.handler("by.name")
    async def by_name(admin: bool, text: str, user: Annotated[str, Depends(user)]) -> str:
        return user

    @bus.handler("neighbour")
    async def neighbour(admin: Annotated[bool, Depends(other)], user: Annotated[str, Depends(user)]) -> str:
        return user

    async with BusTest(bus) as t:
        assert await t.call("by.name", {"admin": True, "text": "", "user": "root"}) == "admin=False"
        assert await t.call("neighbour") == "admin=False"


@per_worker
async def engine() -> AsyncIterator[list[str]]:
    story.append("engine begins")
    async with anyio.create_task_group():  # which must be left by the task that entered it
        yield story
    story.append("engine ends")


@per_worker
def pool(engine: Annotated[list[str], Depends(engine)]) -> list[str]:
    story.append("pool")
    return engine


async def connection(pool: Annotated[list[str], Depends(pool)]) -> AsyncIterator[list[str]]:
    pool.append("connection")
    yield pool


async def test_what_belongs_to_the_worker_is_made_once_before_it_consumes_and_ends_when_it_has_left(bus: Bus) -> None:
    router = Router()

    @router.handler("one")
    async def one(connection: Annotated[list[str], Depends(connection)]) -> None:
        connection.append("one")

    @router.handler("two")
    async def two(engine: Annotated[list[str], Depends(engine)]) -> None:
        engine.append("two")

    @router.worker_lifespan
    async def metrics() -> AsyncIterator[None]:
        story.append("metrics begin")
        yield
        story.append("metrics end")

    @bus.worker_lifespan
    async def logs() -> AsyncIterator[None]:
        story.append("logs begin")
        yield
        story.append("logs end")

    bus.include(router)
    async with BusTest(bus) as t:
        assert story == ["logs begin", "metrics begin", "engine begins", "pool"]
        story.clear()
        for topic in ("one", "two", "one"):
            await t.send_and_settle(topic)
        assert story == ["connection", "one", "two", "connection", "one"]
        story.clear()
    assert story == ["engine ends", "metrics end", "logs end"]


async def test_a_worker_whose_beginning_fails_does_not_begin(bus: Bus) -> None:
    @bus.worker_lifespan
    async def first() -> AsyncIterator[None]:
        try:
            yield
        finally:
            story.append("first ends")

    @bus.worker_lifespan
    async def second() -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    @bus.handler("one")
    async def one() -> None: ...

    with pytest.raises(ConnectionError, match="no database"):
        async with bus.worker():
            raise AssertionError("it must not begin")
    assert story == ["first ends"]


async def test_a_worker_whose_end_fails_says_so(bus: Bus) -> None:
    @bus.worker_lifespan
    async def flushing() -> AsyncIterator[None]:
        yield
        raise ConnectionError("could not flush")

    @bus.handler("one")
    async def one() -> None: ...

    worker = bus.worker()
    await worker.__aenter__()
    with pytest.raises(ConnectionError, match="could not flush"):
        await worker.__aexit__(None, None, None)


async def test_tests_can_put_something_else_in_the_place_of_a_factory(bus: Bus) -> None:
    async def fake_session(ctx: Context) -> AsyncIterator[str]:
        yield f"a fake for {ctx.topic}"
        story.append("fake ends")

    def fake_engine() -> list[str]:
        return []

    @bus.handler("one")
    async def one(orders: Annotated[str, Depends(orders)], engine: Annotated[list[str], Depends(engine)]) -> str:
        engine.append("one")
        return f"{orders}, {len(engine)}"

    async with BusTest(bus, overrides={session: fake_session, engine: fake_engine}) as t:
        assert await t.call("one") == "orders in a fake for one, 1"
        assert await t.call("one") == "orders in a fake for one, 2"  # the engine's is the worker's
        with bus.override({orders: lambda: "none"}):
            assert await t.call("one") == "none, 3"
        assert await t.call("one") == "orders in a fake for one, 4"
    assert story == ["orders", "fake ends", "orders", "fake ends", "orders", "fake ends"]
    async with BusTest(bus) as t:
        assert await t.call("one") == "orders in a session, 10"  # of its story so far


async def test_context_variables_of_a_dependency_reach_the_handler_and_no_other_message(bus: Bus) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    async def set_tenant(ctx: Context) -> None:
        if name := ctx.headers.get("tenant"):
            tenant.set(name)

    @bus.handler("async")
    async def is_async(tenancy: Annotated[None, Depends(set_tenant)]) -> str:
        return tenant.get()

    @bus.handler("plain")
    def is_plain(tenancy: Annotated[None, Depends(set_tenant)]) -> str:
        return tenant.get()

    async with BusTest(bus, concurrency=1) as t:
        for topic in ("async", "plain"):
            assert await t.call(topic, headers={"tenant": "ada"}) == "ada"
            assert await t.call(topic) == "nobody"


# -- what is refused ---------------------------------------------------------------------------------------------------


def needs_process(order: Order, session: Annotated[str, Depends(session)]) -> None: ...


async def unknown(database: str) -> str:
    return database


@per_worker
async def too_late(session: Session) -> str:
    return session


@per_worker
async def curious(ctx: Context) -> str:
    return ctx.id


def variants() -> dict[str, tuple[Callable[..., Any], str]]:
    async def by_default(order: Order, session: str = Depends(session)) -> None: ...
    async def twice(session: Annotated[str, Depends(session), Depends(orders)]) -> None: ...
    async def of_fastapi(session: Annotated[str, fastapi.Depends(session)]) -> None: ...
    async def asks(value: Annotated[str, Depends(unknown)]) -> None: ...
    async def afresh(session: Annotated[str, Depends(session, use_cache=False)]) -> None: ...
    async def of_worker(value: Annotated[str, Depends(too_late)]) -> None: ...
    async def of_message(value: Annotated[str, Depends(curious)]) -> None: ...

    return {
        "default": (by_default, "put it into the annotation"),
        "twice": (twice, "has two Depends"),
        "fastapi": (of_fastapi, "import Depends from busline.depends"),
        "unknown": (asks, "unknown asks for database"),
        "afresh": (afresh, "leave use_cache alone"),
        "worker": (of_worker, "session is made for each message, and too_late needs it once"),
        "message": (of_message, "curious asks for ctx, and it is made once"),
    }


@pytest.mark.parametrize("kind", variants())
async def test_what_cannot_be_given_is_refused_when_the_worker_starts(bus: Bus, kind: str) -> None:
    function, why = variants()[kind]
    bus.handler("one")(function)
    with pytest.raises(ConfigurationError, match=why):
        async with bus.worker():
            raise AssertionError("it must not begin")


async def test_another_process_gets_no_dependencies(bus: Bus) -> None:
    bus.handler("one", executor="process")(needs_process)
    with pytest.raises(ConfigurationError, match="made in the worker's process"):
        bus.plan()


async def test_on_failure_gets_no_dependencies(bus: Bus) -> None:
    @bus.handler("one", on_failure=needs_process)
    async def one(order: Order) -> None: ...

    with pytest.raises(ConfigurationError, match="on_failure of one has dependencies"):
        bus.plan()


async def test_a_factory_that_depends_on_itself_is_refused(bus: Bus) -> None:
    async def first() -> str:
        return ""

    async def second(first: Annotated[str, Depends(first)]) -> str:
        return first

    @bus.handler("one")
    async def one(second: Annotated[str, Depends(second)]) -> None: ...

    with bus.override({first: second}), pytest.raises(ConfigurationError, match="depends on itself"):
        async with bus.worker():
            raise AssertionError("it must not begin")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda needed: None, "called without arguments"),
        (asyncio.sleep, "called without arguments"),
        (functools.partial(asyncio.sleep, 0), "one `yield`"),
    ],
)
def test_a_lifespan_is_an_async_function_with_one_yield(bus: Bus, function: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        bus.worker_lifespan(function)


def test_who_lacks_the_library_is_told_of_the_extra() -> None:
    code = "import sys; sys.modules['fast_depends'] = None\nimport busline\nimport busline.depends"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigurationError: dependencies need fast-depends: install busline[depends]" in result.stderr
