"""What the PostgreSQL store does beyond the checks of stores: transactions, locks, standbys, errors at startup."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from busline.errors import ClaimLost, ConfigurationError, StoreUnavailable
from busline.stores import from_url
from busline.stores.base import Claimed, Completed, InProgress, Transactional
from busline.stores.postgres import PostgresStore
from tests.store_servers import PASSWORD, Postgres

LONG = 600.0


class Place:
    """A schema of one's own with a table of the application's own, and its store."""

    def __init__(self, server: Postgres, schema: str) -> None:
        self.server_url = server.url
        self.schema = schema
        self.url = f"{server.url}?schema={schema}"
        self.db: Any = None

    async def effects(self) -> list[str]:
        return [row["what"] for row in await self.db.fetch(f"SELECT what FROM {self.schema}.effect")]

    @asynccontextmanager
    async def opened(self, **options: object) -> AsyncIterator[PostgresStore]:
        store = from_url(self.url + "".join(f"&{name}={value}" for name, value in options.items()))
        assert isinstance(store, PostgresStore)
        await store.open()
        try:
            yield store
        finally:
            await store.aclose()

    async def pay(self, store: PostgresStore, claimed: Claimed, error: Exception | None = None) -> None:
        """One effect and its completion in one transaction, which then fails with `error`."""
        async with store.transaction() as connection:
            await connection.execute(f"INSERT INTO {self.schema}.effect VALUES ('paid')")
            await store.complete_in(connection, claimed, b"paid", b"", ttl=LONG)
            if error:
                raise error


@pytest.fixture
async def place(postgres: Postgres) -> AsyncIterator[Place]:
    place = Place(postgres, f"test_{uuid.uuid4().hex[:12]}")
    place.db = await asyncpg.connect(postgres.url)
    await place.db.execute(f"CREATE SCHEMA {place.schema}; CREATE TABLE {place.schema}.effect (what TEXT)")
    yield place
    await place.db.close()


async def take(store: PostgresStore, key: str = "key") -> Claimed:
    claimed = await store.claim(key, "", lease=LONG, ttl=LONG)
    assert isinstance(claimed, Claimed)
    return claimed


async def test_a_transaction_commits_the_effect_and_the_result_together(place: Place) -> None:
    async with place.opened() as store:
        assert isinstance(store, Transactional)
        claimed = await take(store)
        async with store.transaction() as connection:
            assert isinstance(connection, asyncpg.pool.PoolConnectionProxy)
            await connection.execute(f"INSERT INTO {place.schema}.effect VALUES ('paid')")
            await store.complete_in(connection, claimed, b"paid", b"", ttl=LONG)
            assert await place.effects() == [], "nobody sees it before"
            found = await store.read("key")
            assert found is not None
            assert found.state == "PROCESSING"
        assert await place.effects() == ["paid"]
        assert await store.claim("key", "", lease=LONG, ttl=LONG) == Completed(b"paid", b"")


async def test_an_error_in_a_transaction_undoes_both(place: Place) -> None:
    async with place.opened() as store:
        claimed = await take(store)
        with pytest.raises(ZeroDivisionError):
            await place.pay(store, claimed, ZeroDivisionError())
        assert await place.effects() == []
        await store.complete(claimed, b"at last", b"", ttl=LONG)


async def test_a_lost_claim_undoes_the_effect(place: Place) -> None:
    async with place.opened() as store:
        first = await store.claim("key", "", lease=0.01, ttl=LONG)
        assert isinstance(first, Claimed)
        await asyncio.sleep(0.05)
        await take(store)
        with pytest.raises(ClaimLost):
            await place.pay(store, first)
        assert await place.effects() == []


async def test_a_handler_that_commits_by_itself_is_told(place: Place) -> None:
    async with place.opened() as store:
        claimed = await take(store)

        async def commits(completes: bool) -> None:
            async with store.transaction() as connection:
                await connection.execute("COMMIT")
                if completes:
                    await store.complete_in(connection, claimed, b"", b"", ttl=LONG)

        for completes in (False, True):
            with pytest.raises(ConfigurationError, match="ended the transaction itself"):
                await commits(completes)
        await store.complete(claimed, b"", b"", ttl=LONG)


async def test_transactions_leave_the_stores_own_connections_alone(place: Place) -> None:
    async with place.opened(pool=2, timeout=20) as store:
        inside, leave = asyncio.Semaphore(0), asyncio.Event()

        async def hold(number: int) -> None:
            claimed = await take(store, f"key-{number}")
            async with store.transaction() as connection:
                inside.release()
                await leave.wait()
                await store.complete_in(connection, claimed, b"", b"", ttl=LONG)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(hold(number))
            for _ in range(2):
                await inside.acquire()
            for number in range(4):
                assert isinstance(await store.claim(f"key-{number}", "", lease=LONG, ttl=LONG), InProgress)
            leave.set()


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_used_again(place: Place) -> None:
    async with place.opened(pool=1, timeout=20) as store:
        for _ in range(3):
            inside = asyncio.Event()

            async def forever(inside: asyncio.Event = inside) -> None:
                async with store.transaction() as connection:
                    await connection.execute(f"INSERT INTO {place.schema}.effect VALUES ('half')")
                    inside.set()
                    await connection.execute("SELECT pg_sleep(600)")

            task = asyncio.create_task(forever())
            await inside.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await place.pay(store, await take(store))
        assert await place.effects() == ["paid"]


async def test_a_connection_that_dies_in_a_transaction_undoes_it(place: Place) -> None:
    async with place.opened(pool=1, timeout=20) as store:
        claimed = await take(store)

        async def die() -> None:
            async with store.transaction() as connection:
                await connection.execute(f"INSERT INTO {place.schema}.effect VALUES ('half')")
                await place.db.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
                await store.complete_in(connection, claimed, b"", b"", ttl=LONG)

        with pytest.raises(StoreUnavailable):
            await die()
        await place.pay(store, claimed)
        assert await place.effects() == ["paid"]


async def test_a_locked_record_is_told_in_time_and_free_afterwards(place: Place) -> None:
    async with place.opened(timeout=0.5) as store:
        claimed = None
        while claimed is None:  # a busy machine may need longer than this short time
            try:
                claimed = await take(store)
            except StoreUnavailable:
                await asyncio.sleep(0)
        async with place.db.transaction():
            await place.db.execute(f"SELECT * FROM {place.schema}.busline_claim FOR UPDATE")
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.5 s"):
                await store.complete(claimed, b"", b"", ttl=LONG)
    async with place.opened() as store:
        await store.complete(claimed, b"", b"", ttl=LONG)


async def test_a_full_disk_is_told_and_loses_nothing(place: Place) -> None:
    async with place.opened() as store:
        claimed = await take(store)
        await place.db.execute(f"""
            CREATE FUNCTION {place.schema}.fill() RETURNS trigger AS $$
            BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$ LANGUAGE plpgsql;
            CREATE TRIGGER fill BEFORE UPDATE ON {place.schema}.busline_claim EXECUTE FUNCTION {place.schema}.fill()""")
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            await store.complete(claimed, b"", b"", ttl=LONG)
        await place.db.execute(f"DROP TRIGGER fill ON {place.schema}.busline_claim")
        await store.complete(claimed, b"", b"", ttl=LONG)


async def test_a_server_that_takes_no_writes_is_told(place: Place) -> None:
    async with place.opened(pool=1) as store:
        claimed = await take(store)
        await place.db.execute(f"""
            CREATE FUNCTION {place.schema}.standby() RETURNS trigger AS $$
            BEGIN RAISE EXCEPTION 'standby' USING ERRCODE = 'read_only_sql_transaction'; END $$ LANGUAGE plpgsql;
            CREATE TRIGGER standby BEFORE UPDATE ON {place.schema}.busline_claim
            EXECUTE FUNCTION {place.schema}.standby()""")
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            await store.complete(claimed, b"", b"", ttl=LONG)


async def test_what_is_wrong_is_said_at_startup_without_the_password(place: Place) -> None:
    async with place.opened():
        await place.db.execute(f"UPDATE {place.schema}.busline_store SET version = 99")
    await place.db.execute(f"CREATE ROLE {place.schema}_guest LOGIN PASSWORD '{PASSWORD}'")
    guest = place.server_url.replace("busline:", f"{place.schema}_guest:")
    wrong = {
        place.url: "version 99",
        place.server_url.replace(PASSWORD, f"not-{PASSWORD}"): "password authentication failed",
        place.server_url.replace("/postgres", "/nowhere"): "does not exist",
        f"{guest}?schema={place.schema}_new": "permission denied",
    }
    for url, match in wrong.items():
        store = from_url(url)
        assert PASSWORD not in repr(store) + store.where
        with pytest.raises(ConfigurationError, match=match) as raised:
            await store.open()
        assert PASSWORD not in repr(raised.getrepr(showlocals=False))
        await store.aclose()


async def test_a_guest_who_may_make_no_tables_uses_those_that_are_there(place: Place) -> None:
    async with place.opened():
        role = f"{place.schema}_guest"
        await place.db.execute(f"""
            CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; GRANT USAGE ON SCHEMA {place.schema} TO {role};
            GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {place.schema} TO {role}""")
    store = from_url(place.url.replace("busline:", f"{role}:", 1))
    await store.open()
    assert isinstance(await store.claim("key", "", lease=LONG, ttl=LONG), Claimed)
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("postgresql:///database", "names no server"),
        ("postgresql://u:s3cret-w0rd@host/db?schema=a-b", "plain name"),
        ("postgresql://u:s3cret-w0rd@host/db?pool=0", "whole number"),
        ("postgresql://u:s3cret-w0rd@host/db?timeout=never", "number of seconds"),
        ("postgresql://u:s3cret-w0rd@host/db?speed=9", "no option 'speed'"),
    ],
)
def test_urls_are_checked(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as raised:
        from_url(url)
    assert PASSWORD not in str(raised.value)


def test_urls_are_shown_without_the_password() -> None:
    for scheme in ("postgres", "postgresql"):
        store = from_url(f"{scheme}://me:{PASSWORD}@db.example:6432/app?sslmode=require&schema=bus")
        assert store.where == f"{scheme}://me@db.example:6432/app"
        assert PASSWORD not in repr(store)
    assert from_url("postgresql:///app?host=/run/postgresql").where == "postgresql:///app"
