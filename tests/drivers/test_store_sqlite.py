"""What the SQLite store does beyond the checks of stores: locks, full disks, its file's other users, transactions."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from busline.errors import ClaimLost, ConfigurationError, StoreUnavailable
from busline.message import Message, QueueSpec, ToQueue
from busline.stores import from_url
from busline.stores.base import Claimed, Completed, Transactional
from busline.stores.sqlite import SqliteStore
from busline.transports.sqlite import SqliteTransport

LONG = 600.0
SPEC = QueueSpec("jobs", "tests", frozenset({"job"}))


@asynccontextmanager
async def opened(path: Path, timeout: float = 20.0) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, timeout=timeout)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program writes to the file for as long as this lasts."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.close()


async def take(store: SqliteStore, key: str = "key") -> Claimed:
    claimed = await store.claim(key, "", lease=LONG, ttl=LONG)
    assert isinstance(claimed, Claimed)
    return claimed


async def pay(store: SqliteStore, claimed: Claimed, error: Exception | None = None) -> None:
    """One effect and its completion in one transaction, which then fails with `error`."""
    async with store.transaction() as connection:
        connection.execute("INSERT INTO effect VALUES ('paid')")
        await store.complete_in(connection, claimed, b"paid", b"", ttl=LONG)
        if error:
            raise error


def effects(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    try:
        return [what for (what,) in db.execute("SELECT what FROM effect")]
    finally:
        db.close()


@pytest.fixture
def business(path: Path) -> Path:
    """A file with a table of the application's own."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE effect (what TEXT)")
    db.close()
    return path


async def test_a_locked_file_is_told_in_time_and_used_again_afterwards(path: Path) -> None:
    async with opened(path, timeout=0.3) as store:
        claimed = await take(store)
        with locked(path):
            with pytest.raises(StoreUnavailable, match="locked the file"):
                await store.complete(claimed, b"", b"", ttl=LONG)
            assert await store.read("key") is not None, "readers wait for nobody"
        await store.complete(claimed, b"done", b"", ttl=LONG)
        assert await store.claim("key", "", lease=LONG, ttl=LONG) == Completed(b"done", b"")


async def test_a_lock_that_ends_in_time_is_waited_for_without_holding_up_the_loop(path: Path) -> None:
    async with opened(path) as store:
        with locked(path):
            waiting = asyncio.create_task(take(store))
            for _ in range(20):
                await asyncio.wait_for(asyncio.sleep(0.01), 5.0)
            assert not waiting.done()
        assert (await waiting).attempt == 1


async def test_a_file_that_is_not_open_to_others_for_a_moment_is_waited_for(path: Path) -> None:
    """As while its last other user closes it: then not even the mode can be asked for."""
    async with opened(path) as store, opened(path) as other:
        alone = sqlite3.connect(path, isolation_level=None)
        alone.execute("PRAGMA locking_mode = EXCLUSIVE")
        alone.execute("BEGIN EXCLUSIVE")
        waiting = [asyncio.create_task(take(store)), asyncio.create_task(_begun(other))]
        await asyncio.wait(waiting, timeout=0.2)
        assert not any(each.done() for each in waiting)
        alone.close()
        await asyncio.gather(*waiting)


async def _begun(store: SqliteStore) -> None:
    async with store.transaction() as connection:
        connection.execute("SELECT 1")


async def test_a_full_disk_is_told_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from busline.stores.sqlite import desk, schema

    def small(path: str) -> sqlite3.Connection:
        db = schema.connect(path)
        db.execute("PRAGMA max_page_count = 60")
        return db

    monkeypatch.setattr(desk, "connect", small)
    async with opened(path) as store:
        kept, full = await take(store, "kept"), await take(store, "full")
        results = await asyncio.gather(
            store.complete(full, bytes(1_000_000), b"", ttl=LONG),
            store.complete(kept, b"small", b"", ttl=LONG),
            return_exceptions=True,
        )
        assert isinstance(results[0], StoreUnavailable)
        assert "disk is full" in str(results[0])
        assert results[1] is None, "one that fails takes nobody with it"
        assert await store.claim("kept", "", lease=LONG, ttl=LONG) == Completed(b"small", b"")
        await store.complete(full, b"smaller", b"", ttl=LONG)


async def test_after_a_sync_that_failed_nothing_is_durable_before_the_log_is_new(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel could not write, and takes for written, may be missing in the middle of the old one."""
    failing = True

    def sync(fd: int) -> None:
        if failing:
            raise OSError(5, "Input/output error")

    async with opened(path) as store:
        monkeypatch.setattr("busline.stores.sqlite.desk._datasync", sync)
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await store.complete(await take(store, "first"), b"1", b"", ttl=LONG)
        failing = False
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM busline_claim").fetchone()
            with pytest.raises(StoreUnavailable, match="others use the log"):
                await store.complete(await take(store, "second"), b"2", b"", ttl=LONG)
        await store.complete(await take(store, "third"), b"3", b"", ttl=LONG)
        shutil.copy(path, tmp_path / "without_log.db")
    async with opened(tmp_path / "without_log.db") as copied:
        for key, result in (("first", b"1"), ("second", b"2"), ("third", b"3")):
            assert await copied.claim(key, "", lease=LONG, ttl=LONG) == Completed(result, b"")


@pytest.mark.parametrize("store_first", [True, False])
async def test_the_store_lives_beside_the_transport_in_one_file(path: Path, store_first: bool) -> None:
    store, transport = SqliteStore(path), SqliteTransport(path)
    for each in (store, transport) if store_first else (transport, store):
        await each.open()
    await transport.attach(SPEC)
    consumer = await transport.consume(SPEC.name, slots=8)
    try:

        async def one(number: int) -> None:
            key = f"key-{number}"
            await transport.send(ToQueue(SPEC.name), Message("job", key.encode()))
            (delivery,) = await consumer.receive(1)
            claimed = await take(store, delivery.message.body.decode())
            await store.complete(claimed, delivery.message.body, b"", ttl=LONG)
            await consumer.ack(delivery)

        async with asyncio.timeout(30):
            await asyncio.gather(*(one(number) for number in range(200)))
        for number in range(200):
            key = f"key-{number}"
            assert await store.claim(key, "", lease=LONG, ttl=LONG) == Completed(key.encode(), b"")
        assert (await transport.stats())[0].ready == 0
    finally:
        await transport.aclose()
        await store.aclose()


async def test_what_is_wrong_with_the_file_is_said_at_startup(path: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to look at " * 100)
    (tmp_path / "folder").mkdir()
    async with opened(path):
        pass
    db = sqlite3.connect(path)
    db.execute("UPDATE busline_store SET version = 99")
    db.commit()
    db.close()
    wrong = {
        "text": "not an SQLite database",
        "folder": "is a folder",
        "missing/store.db": "does not exist",
        path.name: "version 99",
    }
    for name, match in wrong.items():
        with pytest.raises(ConfigurationError, match=match):
            await SqliteStore(path if name == path.name else tmp_path / name).open()


def test_urls_are_checked() -> None:
    assert from_url("sqlite:////srv/some%20app.db").where == "/srv/some app.db"
    assert from_url("sqlite:////srv/app.db?timeout=2&lease=5").where == "/srv/app.db"
    for url in ("sqlite://", "sqlite://app.db", "sqlite:///app.db?timeout=0", "sqlite:///app.db?speed=1"):
        with pytest.raises(ConfigurationError):
            from_url(url)


async def test_closing_ends_the_thread_and_whoever_waits(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    waiting = asyncio.create_task(store.read("key"))
    await asyncio.sleep(0)
    await store.aclose()
    assert await waiting is None, "what was begun is finished"
    assert "busline-store" not in {thread.name for thread in threading.enumerate()}


async def test_a_transaction_commits_the_effect_and_the_result_together(business: Path) -> None:
    async with opened(business) as store:
        assert isinstance(store, Transactional)
        claimed = await take(store)
        async with store.transaction() as connection:
            connection.execute("INSERT INTO effect VALUES ('paid')")
            await store.complete_in(connection, claimed, b"paid", b"", ttl=LONG)
            assert effects(business) == [], "nobody sees it before"
        assert effects(business) == ["paid"]
        assert await store.claim("key", "", lease=LONG, ttl=LONG) == Completed(b"paid", b"")


async def test_an_error_in_a_transaction_undoes_both(business: Path) -> None:
    async with opened(business) as store:
        claimed = await take(store)
        with pytest.raises(ZeroDivisionError):
            await pay(store, claimed, ZeroDivisionError())
        assert effects(business) == []
        await store.complete(claimed, b"at last", b"", ttl=LONG)


async def test_a_lost_claim_undoes_the_effect(business: Path) -> None:
    async with opened(business) as store:
        first = await store.claim("key", "", lease=0.01, ttl=LONG)
        assert isinstance(first, Claimed)
        await asyncio.sleep(0.05)
        await take(store)
        with pytest.raises(ClaimLost):
            await pay(store, first)
        assert effects(business) == []


async def test_a_cancelled_transaction_lets_go_of_the_file(business: Path) -> None:
    async with opened(business) as store:
        inside = asyncio.Event()

        async def forever() -> None:
            async with store.transaction() as connection:
                connection.execute("INSERT INTO effect VALUES ('half')")
                inside.set()
                await asyncio.Event().wait()

        for wait in (True, False):  # inside the block, and while the lock is being taken
            task = asyncio.create_task(forever())
            if wait:
                await inside.wait()
            else:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        assert (await take(store)).attempt == 1
        assert effects(business) == []


async def test_transactions_of_one_process_take_turns(business: Path) -> None:
    async with opened(business) as store:

        async def count_and_pay(number: int) -> None:
            claimed = await take(store, f"key-{number}")
            async with store.transaction() as connection:
                (count,) = connection.execute("SELECT count(*) FROM effect").fetchone()
                connection.execute("INSERT INTO effect VALUES (?)", (str(count),))
                await store.complete_in(connection, claimed, b"", b"", ttl=LONG)

        await asyncio.gather(*(count_and_pay(number) for number in range(50)))
        assert effects(business) == [str(number) for number in range(50)]


async def test_a_transaction_of_somebody_else_is_waited_for_and_given_up_in_time(business: Path) -> None:
    async with opened(business, timeout=0.3) as store:
        with locked(business), pytest.raises(StoreUnavailable, match="locked the file"):
            async with store.transaction():
                pytest.fail("somebody else has it")
        async with store.transaction() as outer:
            outer.execute("INSERT INTO effect VALUES ('outer')")
            with pytest.raises(StoreUnavailable, match="last too long"):
                async with store.transaction():
                    pytest.fail("somebody else has it")
        assert effects(business) == ["outer"]


async def test_a_handler_that_commits_by_itself_is_told(business: Path) -> None:
    async with opened(business) as store:
        claimed = await take(store)

        async def commits(completes: bool) -> None:
            async with store.transaction() as connection:
                connection.commit()
                if completes:
                    await store.complete_in(connection, claimed, b"", b"", ttl=LONG)

        for completes in (False, True):
            with pytest.raises(ConfigurationError, match="ended the transaction itself"):
                await commits(completes)
        await store.complete(claimed, b"", b"", ttl=LONG)
