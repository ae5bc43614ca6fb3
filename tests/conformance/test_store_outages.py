"""Stores whose server is killed, restarted, silent: only StoreUnavailable, in time, and all is well afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from busline.errors import StoreUnavailable
from busline.stores import from_url
from busline.stores.base import Claimed, Completed, InProgress, JobRecord, Store
from busline.stores.dynamodb import DynamoStore
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
