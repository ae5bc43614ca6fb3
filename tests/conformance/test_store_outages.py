"""Stores whose server is killed, restarted, silent: only StoreUnavailable, in time, and all is well afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import redis.asyncio

from busline import Bus, Idempotency
from busline.errors import StoreUnavailable
from busline.stores import from_url
from busline.stores.base import Claimed, Completed, InProgress, JobRecord, Store
from busline.stores.dynamodb import DynamoStore
from busline.testing.scenes import eventually
from busline.testing.stored import Failing
from busline.transports.memory import MemoryBroker, MemoryTransport
from tests.aws_proxy import AwsProxy, refuse
from tests.proxy import Proxy
from tests.store_servers import Server, private

LONG = 600.0
TIMEOUT = 1.5
"""Of an operation, as the URL says. Everything ends within some seconds more on a busy machine."""
GRACE = 15.0
KINDS = ["postgres", "redis", "dynamo"]

T = TypeVar("T")


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with private(request.param) as server:
        yield server


def url_of(server: Server, port: int, timeout: float = TIMEOUT) -> str:
    url = server.url.replace(str(server.port), str(port))
    return f"{url}{'&' if '?' in url else '?'}timeout={timeout:g}"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = from_url(url)
    async with asyncio.timeout(60):
        while True:
            try:
                await store.open()
                break
            except StoreUnavailable:  # a busy machine needs longer than the short time of these tests
                continue
    try:
        yield store
    finally:
        async with asyncio.timeout(TIMEOUT + GRACE):
            await store.aclose()


async def take(store: Store, key: str) -> Claimed:
    claimed = await in_the_end(lambda: store.claim(key, "", lease=LONG, ttl=LONG))
    assert isinstance(claimed, Claimed)
    return claimed


async def in_the_end(act: Callable[[], Awaitable[T]]) -> T:
    """What it returns when the store is there again."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await act()
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def each_is_unavailable(store: Store, claimed: Claimed) -> None:
    """Every kind of operation says so, in time."""
    job = JobRecord("job", "topic", time.time(), b"")
    acts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.claim("other", "", lease=LONG, ttl=LONG, job="job"),
        lambda: store.claim("kept", "", lease=LONG, ttl=LONG, message_id="m", message=b"m"),
        lambda: store.extend(claimed, lease=LONG),
        lambda: store.complete(claimed, b"", b"", ttl=LONG),
        lambda: store.fail(claimed, b"", ttl=LONG),
        lambda: store.release(claimed),
        lambda: store.reopen("key"),
        lambda: store.read("key"),
        lambda: store.orphans(10),
        lambda: store.add_job(job, ttl=LONG, unique="name", unique_for=LONG),
        lambda: store.drop_job("job"),
        lambda: store.job("job"),
        lambda: store.jobs(10),
        lambda: store.set_progress("job", b""),
        lambda: store.request_cancel("job"),
        lambda: store.changed(job, None, LONG),
    ]
    if not isinstance(store, DynamoStore):  # which needs no sweeper
        acts.append(lambda: store.sweep(10))
    outcomes = await asyncio.wait_for(asyncio.gather(*(act() for act in acts), return_exceptions=True), TIMEOUT + GRACE)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * len(acts), outcomes
    assert all("s3cret" not in f"{outcome}{outcome!r}" for outcome in outcomes)


@pytest.mark.timeout(180)
async def test_a_killed_server_is_told_and_used_again_when_it_is_back(server: Server) -> None:
    async with opened(url_of(server, server.port)) as store:
        done, held = await take(store, "done"), await take(store, "held")
        await in_the_end(lambda: store.complete(done, b"result", b"", ttl=LONG))
        server.stop()
        await each_is_unavailable(store, held)
        server.start()
        assert await in_the_end(lambda: store.claim("done", "", lease=LONG, ttl=LONG)) == Completed(b"result", b"")
        assert isinstance(await in_the_end(lambda: store.claim("held", "", lease=LONG, ttl=LONG)), InProgress)
        await in_the_end(lambda: store.complete(held, b"late", b"", ttl=LONG))
        assert (await take(store, "fresh")).attempt == 1


@pytest.mark.timeout(180)
async def test_a_restart_that_nobody_has_noticed_fails_no_read(server: Server) -> None:
    """The ends of the kept connections were announced, and nobody has read that yet."""
    async with opened(url_of(server, server.port, timeout=30)) as store:
        await asyncio.gather(*(store.claim(f"key-{each}", "", lease=LONG, ttl=LONG) for each in range(20)))
        for _ in range(2):
            server.stop()  # these two hold up the event loop
            server.start()
            found = await asyncio.gather(*(store.read(f"key-{each}") for each in range(20)))
            assert all(found)


@pytest.mark.timeout(180)
async def test_a_server_that_says_nothing_is_given_up_in_time(server: Server) -> None:
    proxy = Proxy(server.port)
    await proxy.start()
    try:
        async with opened(url_of(server, proxy.port)) as store:
            held = await take(store, "held")
            proxy.swallow()
            for _ in range(2):  # the second time on new connections, which nobody accepts
                await each_is_unavailable(store, held)
            proxy.pass_again()
            assert isinstance(await in_the_end(lambda: store.claim("held", "", lease=LONG, ttl=LONG)), InProgress)
            await in_the_end(lambda: store.complete(held, b"late", b"", ttl=LONG))
            assert await in_the_end(lambda: store.claim("held", "", lease=1, ttl=1)) == Completed(b"late", b"")
            proxy.swallow()
            async with asyncio.timeout(TIMEOUT + GRACE):
                await store.aclose()
    finally:
        await proxy.close()


@pytest.mark.timeout(180)
async def test_who_waits_for_a_job_survives_a_restart_of_the_server(server: Server) -> None:
    async with opened(url_of(server, server.port, timeout=30)) as store, opened(url_of(server, server.port)) as other:
        job = await store.add_job(JobRecord("job", "topic", time.time(), b""), ttl=LONG)

        async def wait() -> None:
            await in_the_end(lambda: store.changed(job, None, LONG))
            while (await in_the_end(lambda: store.job("job"))) == job:
                await in_the_end(lambda: store.changed(job, None, LONG))

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.2)
        server.stop()
        server.start()
        await in_the_end(lambda: other.set_progress("job", b"half"))
        async with asyncio.timeout(60):
            await waiting


@pytest.mark.timeout(180)
async def test_operations_that_are_cancelled_leave_the_store_usable(server: Server) -> None:
    async with opened(url_of(server, server.port, timeout=30)) as store:
        for each in range(50):
            task = asyncio.create_task(store.claim(f"key-{each}", "", lease=LONG, ttl=LONG))
            await asyncio.sleep(0.0005 * each % 0.01)
            task.cancel()
            await asyncio.wait([task])
        results = await asyncio.gather(*(store.claim(f"later-{each}", "", lease=LONG, ttl=LONG) for each in range(50)))
        assert all(isinstance(result, Claimed) for result in results)


# -- no effect without a record ---------------------------------------------------------------------------------------


@asynccontextmanager
async def down(server: Server) -> AsyncIterator[None]:
    await asyncio.to_thread(server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def full_redis(server: Server) -> AsyncIterator[None]:
    async with redis.asyncio.Redis.from_url(server.url) as there:
        await there.config_set("maxmemory", "1mb")
        yield
        await there.config_set("maxmemory", "0")


@asynccontextmanager
async def full_postgres(server: Server) -> AsyncIterator[None]:
    db = await asyncpg.connect(server.url)
    try:
        await db.execute("""
            CREATE FUNCTION fill() RETURNS trigger AS $$
            BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$ LANGUAGE plpgsql;
            CREATE TRIGGER fill BEFORE INSERT OR UPDATE ON busline_claim EXECUTE FUNCTION fill()""")
        yield
        await db.execute("DROP TRIGGER fill ON busline_claim")
    finally:
        await db.close()


@asynccontextmanager
async def locked_postgres(server: Server) -> AsyncIterator[None]:
    db = await asyncpg.connect(server.url)
    try:
        async with db.transaction():
            await db.execute("LOCK TABLE busline_claim IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await db.close()


@asynccontextmanager
async def locked_sqlite(file: Path) -> AsyncIterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


@asynccontextmanager
async def throttled(front: AwsProxy) -> AsyncIterator[None]:
    front.fail("UpdateItem", refuse("ProvisionedThroughputExceededException"), times=1_000_000)
    yield
    front.rules.clear()


@asynccontextmanager
async def silent(proxy: Proxy) -> AsyncIterator[None]:
    proxy.swallow()
    yield
    proxy.pass_again()


class Shop:
    """A bus whose one handler notes its effects; it holds on to what it is told to."""

    def __init__(self, url: str) -> None:
        self.store: Any = Failing(from_url(url))
        self.bus = Bus(MemoryTransport(MemoryBroker()), service="shop", store=self.store)
        self.effects: list[str] = []
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.bus.handler("shop.sell", idempotency=Idempotency(lease=60))(self.sell)

    async def sell(self, order: str) -> str:
        self.effects.append(order)
        if order.startswith("held"):
            self.begun.set()
            await self.go.wait()
        return order.upper()

    async def survives(self, what: str, trouble: AbstractAsyncContextManager[None]) -> None:
        """What it did cannot be recorded meanwhile, so nobody is told; what comes meanwhile does not run."""
        self.begun.clear()
        self.go.clear()
        held, fresh = f"held {what}", f"fresh {what}"
        first = asyncio.create_task(self.bus.call("shop.sell", held, idempotency_key=held, timeout=100))
        await asyncio.wait_for(self.begun.wait(), 60)
        async with trouble:
            self.store.did.clear()
            second = asyncio.create_task(self.bus.call("shop.sell", fresh, idempotency_key=fresh, timeout=100))
            self.go.set()
            await eventually(lambda: self.store.did.count("complete") >= 2 and self.store.did.count("claim") >= 2)
            assert not first.done()
            assert not second.done()
            assert self.effects[-1] == held
        assert (await first, await second) == (held.upper(), fresh.upper())
        assert self.effects[-2:] == [held, fresh]


@asynccontextmanager
async def troubled(kind: str, folder: Path) -> AsyncIterator[tuple[str, dict[str, AbstractAsyncContextManager[None]]]]:
    """The URL of a store, and what can befall it."""
    if kind == "sqlite":
        file = folder / "store.db"
        yield f"sqlite:///{file}?timeout={TIMEOUT:g}", {"locked": locked_sqlite(file)}
        return
    with private(kind) as server:
        proxy = Proxy(server.port)
        await proxy.start()
        async with AwsProxy(f"http://127.0.0.1:{proxy.port}") as front:
            of_all: dict[str, AbstractAsyncContextManager[None]] = {"down": down(server), "silent": silent(proxy)}
            own: dict[str, dict[str, AbstractAsyncContextManager[None]]] = {
                "postgres": {"full": full_postgres(server), "locked": locked_postgres(server)},
                "redis": {"full": full_redis(server)},
                "dynamo": {"throttled": throttled(front)},
            }
            yield url_of(server, front.port if kind == "dynamo" else proxy.port), of_all | own[kind]
        await proxy.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["sqlite", *KINDS])
async def test_no_effect_happens_without_a_record_and_its_message_comes_back(kind: str, tmp_path: Path) -> None:
    async with troubled(kind, tmp_path) as (url, troubles):
        shop = Shop(url)
        async with opened(url), shop.bus.worker(concurrency=2):
            for what, trouble in troubles.items():
                await shop.survives(what, trouble)
        assert len(shop.effects) == 2 * len(troubles)
