"""What bounded, passive and published-to queues cost in the file, and what expires in it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from busline.errors import ConfigurationError, QueueFull
from busline.message import Binding, Message, QueueSpec, ToQueue
from busline.transports.sqlite import SqliteTransport

from .sqlite_files import JOBS, eventually, job, opened, schema_of


async def test_an_event_for_nobody_costs_no_transaction(path: Path) -> None:
    async with opened(path) as transport, opened(path) as other:
        await transport.attach(JOBS)
        statements: list[str] = []
        transport._opened().db.set_trace_callback(statements.append)
        assert await transport.publish("an.event", job("1")) is False
        assert [statement.split()[0] for statement in statements] == ["SELECT", "SELECT"]
        statements.clear()
        assert await transport.publish("an.event", job("1")) is False
        assert len(statements) == 1
        transport._opened().db.set_trace_callback(None)
        await other.attach(QueueSpec("events", "tests", patterns=frozenset({"an.*"})))
        assert await transport.publish("an.event", job("1")) is True
        await other.detach("events", delete=True)
        assert await transport.publish("an.event", job("1")) is False


async def test_a_file_without_bounded_queues_does_not_count(path: Path) -> None:
    def triggers() -> set[str]:
        return {name for name, kind in schema_of(path).items() if kind == {"trigger"}}

    async with opened(path) as transport:
        await transport.attach(JOBS)
        assert triggers() == set()
        await transport.attach(QueueSpec("bounded", max_length=1))
        assert triggers() == {"count_stored", "count_changed", "count_deleted"}


async def test_the_count_of_a_bounded_queue_is_what_waits_whatever_happens(path: Path) -> None:
    dice = random.Random(7)
    bounded, free = QueueSpec("bounded", max_length=20), QueueSpec("free")

    def agrees() -> bool:
        db = sqlite3.connect(path)
        count = "(SELECT count(*) FROM message WHERE queue = queue.id AND token IS NULL)"
        (same,) = db.execute(f"SELECT waiting = {count} FROM queue WHERE name = 'bounded'").fetchone()
        db.close()
        return bool(same)

    async with opened(path) as transport:
        await transport.attach(free)
        await transport.attach(QueueSpec("bounded"))
        await transport.send(ToQueue("bounded"), *[job("early")] * 3)
        await transport.attach(bounded)
        consumers = {name: await transport.consume(name, slots=100) for name in ("bounded", "free")}

        async def send() -> None:
            ttl = dice.choice((None, 0.001))
            message = Message("job", b"", delay=dice.choice((0, 0, 0.005)), ttl=ttl, expendable=ttl is not None)
            with contextlib.suppress(QueueFull):
                await transport.send(ToQueue(dice.choice(("bounded", "free"))), *[message] * dice.randrange(1, 8))

        async def receive() -> None:
            name = dice.choice(("bounded", "free"))
            task = asyncio.create_task(consumers[name].receive(dice.randrange(1, 4)))
            await asyncio.wait([task], timeout=0.01)
            if task.cancel():
                await asyncio.wait([task])
            else:
                settle = dice.choice((consumers[name].ack, consumers[name].release))
                await settle(*task.result())

        async def move() -> None:
            await transport.move(*dice.choice((("bounded", "free"), ("free", "bounded"))), limit=3)

        async def purge() -> None:
            await transport.purge(dice.choice(("bounded", "free")))

        for _ in range(150):
            await dice.choice((send, send, send, receive, receive, move, purge))()
            assert agrees()
        dying = SqliteTransport(path)
        await dying.open()
        await transport.send(ToQueue("free"), job("held"))
        await transport.move("free", "bounded", 1)
        await (await dying.consume("bounded", slots=1)).receive(1)
        dying._die()

        async def is_given_back() -> bool:
            return (await transport.stats())[0].leased == 0

        await consumers["bounded"].aclose()
        await eventually(is_given_back)
        assert agrees()


async def test_an_expired_call_is_dropped_and_a_job_is_not(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        inbox = await transport.open_inbox(lambda _: None, lambda: None)
        for _ in range(700):
            await inbox.send(ToQueue("jobs"), Message("job", b"call", ttl=0.001))
        await transport.send(ToQueue("jobs"), Message("job", b"job", ttl=0.001))
        await inbox.send(ToQueue("jobs"), Message("job", b"alive", ttl=60))
        await asyncio.sleep(0.01)
        consumer = await transport.consume("jobs", slots=2)
        bodies = [delivery.message.body for _ in range(2) for delivery in await consumer.receive(1)]
        assert bodies == [b"job", b"alive"]
        [stats] = await transport.stats()
        assert (stats.ready, stats.leased) == (0, 2)


async def test_expired_messages_leave_the_file_though_nobody_looks(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(JOBS)
        await transport.send(ToQueue("jobs"), *[Message("job", b"", ttl=0.01, expendable=True)] * 1200)

        async def file_is_empty() -> bool:
            db = sqlite3.connect(path)
            (count,) = db.execute("SELECT count(*) FROM message").fetchone()
            db.close()
            return bool(count == 0)

        await eventually(file_is_empty)


@pytest.mark.parametrize("option", [{"kind": "quorum"}, {"bindings": (Binding("orders", "#"),)}])
async def test_what_only_rabbitmq_has_is_refused(path: Path, option: dict[str, object]) -> None:
    async with opened(path) as transport:
        with pytest.raises(ConfigurationError, match="only RabbitMQ"):
            await transport.attach(QueueSpec("jobs", **option))  # type: ignore[arg-type]  # one of each
        assert await transport.stats() == []


async def test_a_passive_queue_is_verified(path: Path) -> None:
    async with opened(path) as transport:
        await transport.attach(QueueSpec("jobs", "tests", frozenset({"job"}), frozenset({"e.#"}), max_priority=3))
        before = await transport.stats()
        passive = QueueSpec("jobs", "guests", frozenset({"job"}), frozenset({"e.#"}), max_priority=3, passive=True)
        assert (await transport.attach(passive)).priorities == 3
        for other in (
            replace(passive, max_priority=4),
            replace(passive, max_length=1),
            replace(passive, ephemeral=True),
        ):
            with pytest.raises(ConfigurationError, match="is passive, with"):
                await transport.attach(other)
        with pytest.raises(ConfigurationError, match=r"no \['e.x'\]"):
            await transport.attach(replace(passive, patterns=frozenset({"e.x"})))
        assert await transport.stats() == before
