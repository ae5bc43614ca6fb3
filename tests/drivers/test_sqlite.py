"""What only the SQLite transport promises: files, locks, several processes, disks that fail."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from busline.errors import ConfigurationError, TransportError
from busline.message import Message, ToQueue
from busline.transports import from_url
from busline.transports.sqlite import SqliteTransport

from .sqlite_files import JOBS, eventually, is_idle, job, line_of, opened, transport_files, worker


async def test_the_file_is_in_wal_mode_and_a_send_has_synced_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr("busline.transports.sqlite.walsync._datasync", note)
    async with opened(path) as transport:
        await transport.attach(JOBS)
        synced.clear()
        await transport.send(ToQueue("jobs"), job("1"))
        assert synced == [f"{path}-wal"]
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.close()


async def test_no_send_is_synced_by_the_loop_however_quick_the_disk_has_been(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(
        "busline.transports.sqlite.walsync._datasync", lambda fd: threads.append(threading.current_thread())
    )
    async with opened(path) as transport:
        await transport.attach(JOBS)
        for number in range(10):
            await transport.send(ToQueue("jobs"), job(str(number)))
    assert len(threads) > 10
    assert threading.main_thread() not in threads


async def test_what_is_synced_is_the_log_that_is_written_whatever_lies_in_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    async with opened(path) as transport:
        await transport.attach(JOBS)
        os.rename(f"{path}-wal", f"{path}-moved")
        os.close(os.open(f"{path}-wal", os.O_CREAT))
        monkeypatch.setattr(
            "busline.transports.sqlite.walsync._datasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        )
        before = os.stat(f"{path}-moved").st_size
        await transport.send(ToQueue("jobs"), job("1"))
        assert os.stat(f"{path}-moved").st_size > before
        assert synced == [f"{path}-moved"]
        os.replace(f"{path}-moved", f"{path}-wal")


async def test_a_send_asks_for_no_time_stamp_of_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After which a sync would write the next one, too: one more write where there is no journal."""
    asked: list[object] = []

    def noting(ask: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def note(what: int | str, **options: object) -> os.stat_result:
            asked.append(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what)
            return ask(what, **options)

        return note

    async with opened(path) as transport:
        await transport.attach(JOBS)
        monkeypatch.setattr("os.stat", noting(os.stat))
        monkeypatch.setattr("os.fstat", noting(os.fstat))
        os.stat(path)
        for number in range(100):
            await transport.send(ToQueue("jobs"), job(str(number)))
    assert path in asked
    assert f"{path}-wal" not in asked


async def test_a_send_that_is_being_synced_when_the_transport_closes_is_settled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def sync(fd: int) -> None:
        begun.set()
        assert end.wait(10)

    async with opened(path) as transport:
        await transport.attach(JOBS)
        monkeypatch.setattr("busline.transports.sqlite.walsync._datasync", sync)
        first = asyncio.create_task(transport.send(ToQueue("jobs"), job("1")))
        assert await asyncio.to_thread(begun.wait, 10)
        second = asyncio.create_task(transport.send(ToQueue("jobs"), job("2")))
        closing = asyncio.create_task(transport.aclose())
        asyncio.get_running_loop().call_later(0.2, end.set)
        await asyncio.gather(first, second, closing)


async def test_sends_at_the_same_time_share_one_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("busline.transports.sqlite.walsync._datasync", synced.append)
    async with opened(path) as transport:
        await transport.attach(JOBS)
        synced.clear()
        await asyncio.gather(*(transport.send(ToQueue("jobs"), job(str(n))) for n in range(50)))
        assert len(synced) == 1


async def test_sends_at_the_same_time_share_syncs_though_the_ones_before_came_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("busline.transports.sqlite.walsync._datasync", synced.append)
    async with opened(path) as transport:
        await transport.attach(JOBS)
        for number in range(10):
            await transport.send(ToQueue("jobs"), job(str(number)))
        synced.clear()
        await asyncio.gather(*(transport.send(ToQueue("jobs"), job(str(n))) for n in range(50)))
        assert len(synced) <= 2, "one of the first, which nobody was seen with, and one of the others"


async def test_a_send_alone_that_the_file_does_not_take_fails_for_its_sender(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        for number in range(10):
            await transport.send(ToQueue("jobs"), job(str(number)))
        with pytest.raises(TransportError):
            await transport.send(ToQueue("jobs"), Message("job", b"", meta="\ud800"))
        await transport.send(ToQueue("jobs"), job("11"))
        (stats,) = await transport.stats()
        assert stats.ready == 11


async def test_a_send_whose_sync_fails_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    async with opened(path) as transport:
        await transport.attach(JOBS)
        monkeypatch.setattr("busline.transports.sqlite.walsync._datasync", fail)
        with pytest.raises(TransportError, match="could not be synced"):
            await transport.send(ToQueue("jobs"), job("1"))


async def test_after_a_sync_that_failed_nothing_is_durable_before_the_log_is_new(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel could not write, and takes for written, may be missing in the middle of the old one."""
    failing = True

    def sync(fd: int) -> None:
        if failing:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("busline.transports.sqlite.walsync._RENEWAL", 0.1)
    async with opened(path) as transport:
        await transport.attach(JOBS)
        monkeypatch.setattr("busline.transports.sqlite.walsync._datasync", sync)
        with pytest.raises(TransportError, match="Input/output error"):
            await transport.send(ToQueue("jobs"), job("1"))
        failing = False
        with sqlite3.connect(path, isolation_level=None) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM message").fetchone()
            with pytest.raises(TransportError, match="others have used the log"):
                await transport.send(ToQueue("jobs"), job("2"))
            reader.execute("COMMIT")
        reader.close()
        await transport.send(ToQueue("jobs"), job("3"))
        shutil.copy(path, tmp_path / "without_log.db")
        await transport.send(ToQueue("jobs"), job("4"))
        assert os.stat(f"{path}-wal").st_size > 0, "and then all is as before"
    copy = sqlite3.connect(tmp_path / "without_log.db")
    assert copy.execute("SELECT body FROM message ORDER BY id").fetchall() == [(b"1",), (b"2",), (b"3",)]
    copy.close()


async def test_a_sleeping_worker_in_another_process_starts_at_once(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        async with worker(path) as process:
            took = []
            for number in range(30):
                await eventually(lambda: is_idle(transport))
                sent = time.time()
                await transport.send(ToQueue("jobs"), job(str(number)))
                took.append(json.loads(await line_of(process))[1] - sent)
    print(f"wake-up across processes: median {statistics.median(took) * 1e3:.2f} ms, worst {max(took) * 1e3:.2f} ms")
    assert statistics.median(took) < 0.05


async def test_a_killed_processs_message_comes_again_long_before_its_lease_ends(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        await transport.send(ToQueue("jobs"), job("1"))
        async with worker(path, "hold") as process:
            assert await line_of(process) == "holding"
            consumer = await transport.consume("jobs", slots=1)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            died = time.monotonic()
            async with asyncio.timeout(9):
                (delivery,) = await consumer.receive(1)
            took = time.monotonic() - died
        print(f"takeover after SIGKILL: {took * 1e3:.0f} ms")
        assert took < 2
        assert delivery.deliveries == 2
        await consumer.ack(delivery)
        [own] = transport_files(path, "lock")
        assert own


async def test_a_child_that_was_forked_does_not_keep_its_parent_alive(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        dying = SqliteTransport(path)
        await dying.open()
        await dying.send(ToQueue("jobs"), job("1"))
        await (await dying.consume("jobs", slots=1)).receive(1)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        try:
            dying._die()
            async with asyncio.timeout(5):
                assert await (await transport.consume("jobs", slots=1)).receive(1)
        finally:
            os.close(writing)
            await asyncio.to_thread(os.waitpid, child, 0)


async def test_four_processes_handle_each_message_exactly_once(path: Path) -> None:
    async def collect(process: asyncio.subprocess.Process) -> None:
        while len(seen) < 2000:
            seen.append(json.loads(await line_of(process))[0])

    seen: list[str] = []
    async with opened(path) as transport, AsyncExitStack() as stack:
        await transport.attach(JOBS)
        processes = [await stack.enter_async_context(worker(path)) for _ in range(4)]
        tasks = [asyncio.create_task(collect(process)) for process in processes]
        for start in range(0, 2000, 100):
            await transport.send(ToQueue("jobs"), *(job(str(n)) for n in range(start, start + 100)))

        async def all_are_settled() -> bool:
            [stats] = await transport.stats()
            return len(seen) >= 2000 and stats.ready == stats.leased == 0

        await eventually(all_are_settled)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert sorted(map(int, seen)) == list(range(2000))


async def test_a_file_that_somebody_else_locks_only_takes_longer(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        locked, unlock = threading.Event(), threading.Event()

        def lock() -> None:
            db = sqlite3.connect(path, isolation_level=None)
            db.execute("BEGIN IMMEDIATE")
            locked.set()
            unlock.wait(5)
            db.execute("COMMIT")
            db.close()

        thread = threading.Thread(target=lock)
        thread.start()
        await asyncio.to_thread(locked.wait)
        loop = asyncio.get_running_loop()
        loop.call_later(0.3, unlock.set)
        began = loop.time()
        sending = asyncio.gather(*(transport.send(ToQueue("jobs"), job(str(n))) for n in range(100)))
        longest = await longest_stall_until(sending)
        await sending
        assert 0.29 < loop.time() - began < 2
        assert longest < 0.1, "the event loop was blocked"
        thread.join()
        assert len(await transport.peek("jobs", 200)) == 100


async def longest_stall_until(done: asyncio.Future[list[None]]) -> float:
    loop, longest = asyncio.get_running_loop(), 0.0
    while not done.done():
        before = loop.time()
        await asyncio.sleep(0.001)
        longest = max(longest, loop.time() - before)
    return longest


async def test_a_file_that_stays_locked_is_named_in_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busline.transports.sqlite.engine.PATIENCE", 0.1)
    async with opened(path) as transport:
        await transport.attach(JOBS)
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransportError, match=f"{path} has been locked"):
            await transport.send(ToQueue("jobs"), job("1"))
        assert transport.health().status == "degraded"
        db.execute("ROLLBACK")
        db.close()
        await transport.send(ToQueue("jobs"), job("2"))
        assert transport.health().status == "healthy"


async def test_a_full_disk_is_told_and_loses_nothing(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        db = transport._opened().db
        await transport.send(ToQueue("jobs"), job("before"))
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages + 2}")
        outcomes = await asyncio.gather(
            *(transport.send(ToQueue("jobs"), Message("job", bytes(size))) for size in (100, 100_000, 200)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), TransportError, type(None)]
        assert "disk is full" in str(outcomes[1])
        db.execute("PRAGMA max_page_count = 1000000")
        await transport.send(ToQueue("jobs"), job("after"))
        bodies = [len(message.body) for message in await transport.peek("jobs", 10)]
        assert bodies == [6, 100, 200, 5]


async def test_an_ack_that_the_disk_refuses_is_kept_until_there_is_room(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        await transport.send(ToQueue("jobs"), job("1"))
        consumer = await transport.consume("jobs", slots=1)
        (delivery,) = await consumer.receive(1)
        db = transport._opened().db
        db.execute("PRAGMA query_only = ON")
        await consumer.ack(delivery)

        async def is_degraded() -> bool:
            return transport.health().status == "degraded"

        await eventually(is_degraded)
        db.execute("PRAGMA query_only = OFF")

        async def is_gone() -> bool:
            return (await transport.stats())[0].leased == 0

        await eventually(is_gone)


async def test_a_message_that_sqlite_cannot_take_fails_alone(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        outcomes = await asyncio.gather(
            transport.send(ToQueue("jobs"), job("1")),
            transport.send(ToQueue("jobs"), Message("job", b"", correlation_id="\ud800")),
            transport.send(ToQueue("jobs"), job("2")),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), TransportError, type(None)]
        assert [message.body for message in await transport.peek("jobs", 10)] == [b"1", b"2"]


async def test_a_priority_above_ten_is_refused(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        with pytest.raises(ConfigurationError, match="0 to 10"):
            await transport.send(ToQueue("jobs"), Message("job", b"", priority=11))


async def test_what_is_no_database_is_refused(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"hello world, " * 1000)
    with pytest.raises(ConfigurationError, match="not an SQLite database"):
        await SqliteTransport(path).open()


async def test_a_reply_that_no_encoding_takes_is_a_typed_error(path: Path) -> None:
    async with opened(path) as one, opened(path) as other:
        replies: asyncio.Queue[Message] = asyncio.Queue()
        inbox = await other.open_inbox(replies.put_nowait, lambda: None)
        for bad in (
            Message("\ud800", b""),
            Message("t", b"", meta="\ud800"),
            Message("t", b"", headers={"h": "\ud800"}),
        ):
            with pytest.raises(TransportError, match="surrogates"):
                await one.reply(inbox.address, bad)
            assert await one.reply("999.1", bad) is False
        assert await one.reply(inbox.address, job("good"))
        assert (await replies.get()).body == b"good"


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("UPDATE broker SET version = version + 1")
    db.close()
    with pytest.raises(ConfigurationError, match="upgrade busline"):
        await SqliteTransport(path).open()


async def test_another_programs_database_is_refused_and_not_touched(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE message (text)")
    db.close()
    with pytest.raises(ConfigurationError, match="another program"):
        await SqliteTransport(path).open()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("message",)]
    db.close()


async def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"folder .* does not exist"):
        await SqliteTransport(tmp_path / "nowhere" / "bus.db").open()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///x.db?leese=3", "known is lease"),
        ("sqlite:///x.db?lease=soon", "number of seconds"),
        ("sqlite:///x.db?lease=-1", "number of seconds"),
    ],
)
def test_a_wrong_url_says_what_to_write(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        from_url(url)


def test_a_url_names_a_relative_or_an_absolute_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_url("sqlite:///a%20b.db").where == str(tmp_path / "a b.db")
    assert from_url("sqlite:////srv/bus.db?lease=3").where == "/srv/bus.db"


async def test_a_path_too_long_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("f" * 120)
    folder.mkdir()
    path = folder / "bus.db"
    async with opened(path) as one, opened(path) as other:
        await one.attach(JOBS)
        replies: asyncio.Queue[Message] = asyncio.Queue()
        inbox = await other.open_inbox(replies.put_nowait, lambda: None)
        assert await one.reply(inbox.address, job("hello"))
        assert (await replies.get()).body == b"hello"
        sockets = [Path(session.files.address) for session in (one._opened(), other._opened())]
        assert all(len(os.fsencode(socket)) < 100 and socket.exists() for socket in sockets)
    assert not any(socket.parent.exists() for socket in sockets)


async def test_two_transports_in_one_process_are_two_processes(path: Path) -> None:
    async with opened(path) as one:
        await one.attach(JOBS)
        async with opened(path) as other:
            first, second = await one.consume("jobs", slots=1), await other.consume("jobs", slots=1)
            waiting = [asyncio.create_task(consumer.receive(1)) for consumer in (first, second)]  # type: ignore[arg-type]
            await eventually(lambda: is_idle(one))
            await one.send(ToQueue("jobs"), job("1"), job("2"))
            assert {d.message.body for [d] in await asyncio.gather(*waiting)} == {b"1", b"2"}
        assert (await first.extend(*waiting[0].result(), lease=1)) == []


async def test_the_run_folder_is_gone_after_the_last_has_left(path: Path) -> None:
    async with opened(path):
        async with opened(path):
            assert len(transport_files(path, "lock")) == len(transport_files(path, "sock")) == 2
        assert len(transport_files(path, "lock")) == len(transport_files(path, "sock")) == 1
    assert sorted(os.listdir(path.parent)) == ["bus.db"]


async def test_a_run_folder_that_somebody_deleted_comes_back(path: Path) -> None:
    async with opened(path) as living, opened(path) as dying:
        await living.attach(JOBS)
        await living.send(ToQueue("jobs"), job("1"))
        await (await dying.consume("jobs", slots=1)).receive(1)
        inbox_replies: asyncio.Queue[Message] = asyncio.Queue()
        inbox = await living.open_inbox(inbox_replies.put_nowait, lambda: None)
        await asyncio.to_thread(shutil.rmtree, path.parent / "bus.db-run")

        async def is_back() -> bool:
            return len(transport_files(path, "lock")) == len(transport_files(path, "sock")) == 2

        await eventually(is_back)
        async with opened(path) as stranger:
            assert await stranger.reply(inbox.address, job("reply"))
            assert (await inbox_replies.get()).body == b"reply"
            assert (await living.stats())[0].leased == 1, "the living keep what they hold"
            dying._die()
            async with asyncio.timeout(5):
                (delivery,) = await (await living.consume("jobs", slots=1)).receive(1)
        assert delivery.deliveries == 2
    assert sorted(os.listdir(path.parent)) == ["bus.db"]


async def test_what_a_dead_process_left_behind_is_cleared_up(path: Path) -> None:
    dead = SqliteTransport(path)
    await dead.open()
    dead._die()
    (path.parent / "bus.db-run" / "0123456789abcdef.lock").touch()
    async with opened(path):
        assert len(transport_files(path, "lock")) == len(transport_files(path, "sock")) == 1


async def test_only_those_who_may_use_the_database_may_use_its_sockets(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT, 0o640))
    async with opened(path):
        modes = [oct(entry.stat().st_mode & 0o777) for entry in sorted(path.parent.glob("bus.db-run*/*"))]
        assert modes == ["0o640", "0o640"]
        assert (path.parent / "bus.db-run").stat().st_mode & 0o777 == 0o750


def written_by_this_thread() -> int:
    """Bytes, also those that wait to be synced."""
    with open("/proc/thread-self/io", "rb") as figures:
        return int(dict(line.split(b": ") for line in figures.read().splitlines())[b"wchar"])


async def test_what_a_long_reader_has_left_in_the_log_is_moved_without_the_loop(path: Path) -> None:
    """Once it lets go, all of it can be: 20 MB by whoever commits next, who must not be the loop."""
    async with opened(path) as transport:
        await transport.attach(JOBS)
        with sqlite3.connect(path, isolation_level=None) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM message").fetchone()
            for _ in range(20):
                await transport.send(ToQueue("jobs"), Message("job", b"x" * 1_000_000))
            size = os.stat(path).st_size
            assert os.stat(f"{path}-wal").st_size > 20_000_000
            reader.execute("COMMIT")
        reader.close()
        before = written_by_this_thread()
        for number in range(400):
            await transport.send(ToQueue("jobs"), job(str(number)))

        async def is_moved() -> bool:
            return os.stat(path).st_size > size + 20_000_000

        await eventually(is_moved)
        assert written_by_this_thread() - before < 15_000_000, "small messages in the log, and none of the large ones"
        before = written_by_this_thread()
    assert written_by_this_thread() - before < 1_000_000, "nor at the end"


async def test_the_log_stays_small_however_busy_its_writers_are(path: Path) -> None:
    async with opened(path) as first, opened(path) as second:
        await first.attach(JOBS)

        async def write(transport: SqliteTransport) -> None:
            for _ in range(100):
                await asyncio.gather(*(transport.send(ToQueue("jobs"), job("x" * 1000)) for _ in range(50)))

        await asyncio.gather(write(first), write(second))
        assert os.stat(path).st_size > 10_000_000
        assert os.stat(f"{path}-wal").st_size < 20_000_000


async def test_a_log_that_cannot_be_moved_into_the_database_is_told_and_so_is_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits go on, so nothing else would tell of it before the disk is full."""

    def fail(db: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    async def told(status: str) -> None:
        async with asyncio.timeout(30):
            while transport.health().status != status:
                await transport.send(ToQueue(JOBS.name), job("x" * 100_000))

    async with opened(path) as transport:
        await transport.attach(JOBS)
        with monkeypatch.context() as broken:
            broken.setattr("busline.transports.sqlite.checkpoints._checkpoint", fail)
            await told("degraded")
        health = transport.health()
        assert health.tolerable
        assert "is not moved into the database and grows" in health.detail
        assert "the disk reports an error" in health.detail
        await told("healthy")
