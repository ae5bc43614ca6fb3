"""What the Redis store does beyond the checks of stores: full memory, scripts that are forgotten, errors at startup."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import asyncio as client

from busline.errors import ConfigurationError, StoreUnavailable
from busline.stores import from_url
from busline.stores.base import Claimed, Completed, JobRecord, Transactional
from busline.stores.redis import RedisStore
from tests.store_servers import PASSWORD, Redis, private

LONG = 600.0


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisStore]:
    store = from_url(url)
    assert isinstance(store, RedisStore)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def admin(server: Redis) -> AsyncIterator[Any]:
    connection = client.Redis.from_url(server.url)
    try:
        yield connection
    finally:
        await connection.aclose()


def own_url(server: Redis) -> str:
    return f"{server.url}?timeout=20&prefix=test-{uuid.uuid4().hex}:"


async def take(store: RedisStore, key: str = "key", ttl: float = LONG) -> Claimed:
    claimed = await store.claim(key, "", lease=ttl, ttl=ttl)
    assert isinstance(claimed, Claimed)
    return claimed


async def test_a_full_memory_is_told_and_loses_nothing() -> None:
    with private("redis") as server:
        assert isinstance(server, Redis)
        async with opened(own_url(server)) as store, admin(server) as there:
            claimed = await take(store)
            await there.config_set("maxmemory", "1mb")
            with pytest.raises(StoreUnavailable, match="its memory is full"):
                await store.complete(claimed, bytes(100), b"", ttl=LONG)
            await there.config_set("maxmemory", "0")
            await store.complete(claimed, b"done", b"", ttl=LONG)
            assert await store.claim("key", "", lease=LONG, ttl=LONG) == Completed(b"done", b"")


async def test_a_server_that_forgets_records_is_refused_unless_that_is_accepted() -> None:
    with private("redis") as server:
        assert isinstance(server, Redis)
        async with admin(server) as there:
            await there.config_set("maxmemory", "100mb")
            await there.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(ConfigurationError, match="set noeviction there"):
                await from_url(own_url(server)).open()
            async with opened(f"{own_url(server)}&eviction=accept") as store:
                await take(store)


async def test_a_replica_is_told_and_waited_for() -> None:
    with private("redis") as server:
        assert isinstance(server, Redis)
        async with opened(own_url(server)) as store, admin(server) as there:
            claimed = await take(store)
            await there.replicaof("127.0.0.1", 1)
            with pytest.raises(StoreUnavailable, match="replica"):
                await store.complete(claimed, b"", b"", ttl=LONG)
            await there.replicaof("NO", "ONE")
            await store.complete(claimed, b"", b"", ttl=LONG)


async def test_scripts_that_the_server_has_forgotten_are_sent_again(redis: Redis) -> None:
    async with opened(own_url(redis)) as store, admin(redis) as there:
        claimed = await take(store)
        await there.script_flush()
        await store.complete(claimed, b"done", b"", ttl=LONG)
        await there.script_flush()
        assert await store.read("key") is not None


async def test_redis_itself_deletes_what_has_expired_and_nothing_is_left(redis: Redis) -> None:
    url = own_url(redis)
    prefix = url.rpartition("prefix=")[2]
    async with opened(url) as store, admin(redis) as there:
        for number in range(10):
            job = JobRecord(f"job-{number}", "topic", 1e9, b"")
            await store.add_job(job, ttl=0.2, unique=f"name-{number}", unique_for=0.2)
            claimed = await store.claim(f"key-{number}", "", lease=0.2, ttl=0.2, job=job.id)
            assert isinstance(claimed, Claimed)
            await store.complete(claimed, b"", b"", ttl=0.2)
        async with asyncio.timeout(30):
            swept = 0
            while await there.keys(f"{prefix}*"):
                swept += await store.sweep(7)
                await asyncio.sleep(0.02)
        assert swept == 10


async def test_a_prefix_is_a_store_of_its_own(redis: Redis) -> None:
    async with opened(own_url(redis)) as one, opened(own_url(redis)) as other:
        await take(one)
        await take(other)


async def test_what_is_wrong_is_said_at_startup_without_the_password(redis: Redis) -> None:
    wrong = {
        redis.url.replace(PASSWORD, f"not-{PASSWORD}"): "invalid username-password|WRONGPASS",
        redis.url.replace("/0", "/999"): "out of range",
    }
    for url, match in wrong.items():
        store = from_url(url)
        assert PASSWORD not in repr(store) + store.where
        with pytest.raises(ConfigurationError, match=match) as raised:
            await store.open()
        assert PASSWORD not in repr(raised.getrepr(showlocals=False))
        await store.aclose()


async def test_redis_claims_no_transactions_with_other_data(redis: Redis) -> None:
    assert not isinstance(from_url(redis.url), Transactional)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("redis:///0", "names no server"),
        ("redis://:s3cret-w0rd@host/zero", "must be a number"),
        ("redis://:s3cret-w0rd@host/0?pool=-1", "whole number"),
        ("redis://:s3cret-w0rd@host/0?eviction=maybe", "refuse or accept"),
        ("redis://:s3cret-w0rd@host/0?decode_responses=1", "no option 'decode_responses'"),
    ],
)
def test_urls_are_checked(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as raised:
        from_url(url)
    assert PASSWORD not in str(raised.value)


def test_urls_are_shown_without_the_password() -> None:
    store = from_url(f"rediss://me:{PASSWORD}@cache.example:6380/2?prefix=app:&ssl_cert_reqs=none")
    assert store.where == "rediss://me@cache.example:6380/2"
    assert PASSWORD not in repr(store)
