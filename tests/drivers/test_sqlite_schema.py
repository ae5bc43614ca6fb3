"""Files of older versions are brought up to ours, whole or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from busline.errors import ConfigurationError, QueueFull
from busline.message import Message, QueueSpec, ToTopic
from busline.transports.sqlite import SqliteTransport

from .sqlite_files import eventually, job, opened, schema_of, worker

VERSION_1 = """
CREATE TABLE broker (version INTEGER NOT NULL, epoch INTEGER NOT NULL);
CREATE TABLE queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, service TEXT NOT NULL,
    ephemeral INTEGER NOT NULL, owner INTEGER);
CREATE TABLE topic (topic TEXT PRIMARY KEY, queue INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE pattern (pattern TEXT NOT NULL, queue INTEGER NOT NULL, PRIMARY KEY (pattern, queue)) WITHOUT ROWID;
CREATE TABLE process (
    id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, pid INTEGER NOT NULL, address TEXT NOT NULL);
CREATE TABLE consumer (
    queue INTEGER NOT NULL, process INTEGER NOT NULL,
    waiting REAL NOT NULL DEFAULT 0,
    UNIQUE (queue, process));
CREATE TABLE message (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, priority INTEGER NOT NULL, due REAL, token INTEGER, owner INTEGER,
    deliveries INTEGER NOT NULL DEFAULT 0, topic TEXT NOT NULL, meta TEXT NOT NULL, headers TEXT,
    correlation_id TEXT, reply_to TEXT, ttl REAL, body BLOB NOT NULL);
CREATE INDEX ready ON message (queue, priority DESC, id) WHERE due IS NULL;
CREATE INDEX delayed ON message (queue, due) WHERE due IS NOT NULL AND token IS NULL;
CREATE INDEX leased ON message (queue, due, owner) WHERE token IS NOT NULL;
INSERT INTO broker (version, epoch) VALUES (1, 7);
INSERT INTO queue (name, service, ephemeral) VALUES ('jobs', 'tests', 0);
INSERT INTO topic (topic, queue) VALUES ('job', 1);
INSERT INTO message (queue, priority, topic, meta, ttl, body) VALUES
    (1, 0, 'job', '', 0.001, x'31'), (1, 0, 'job', '', NULL, zeroblob(20000));
"""


def make_version_1(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(VERSION_1)
    db.close()


async def test_a_file_of_the_version_before_is_brought_up_in_place(path: Path, tmp_path: Path) -> None:
    make_version_1(path)
    async with opened(path) as transport, opened(tmp_path / "new.db"):
        await transport.attach(QueueSpec("jobs", "tests", frozenset({"job"}), max_length=4))
        await transport.send(ToTopic("job"), job("3"), Message("job", b"4", ttl=60, expendable=True))
        with pytest.raises(QueueFull):
            await transport.send(ToTopic("job"), job("5"))
        found = [(m.body, m.ttl, m.expendable) for m in await transport.peek("jobs", 10)]
        assert found == [(b"1", 0.001, False), (bytes(20000), None, False), (b"3", None, False), (b"4", 60, True)]
        consumer = await transport.consume("jobs", slots=9)
        await consumer.ack(*await consumer.receive(9), confirm=True)
        upgraded, fresh = schema_of(path), schema_of(tmp_path / "new.db")
        assert {name: columns for name, columns in upgraded.items() if columns != {"trigger"}} == fresh
    async with opened(path) as transport:
        assert (await transport.stats())[0].ready == 0


async def test_an_upgrade_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_version_1(path)
    before = schema_of(path)
    upgrade = "ALTER TABLE queue ADD COLUMN max_length INTEGER;\nALTER TABLE nothing ADD COLUMN x;\n"
    monkeypatch.setattr("busline.transports.sqlite.schema._UPGRADES", {1: upgrade})
    with pytest.raises(ConfigurationError):
        await SqliteTransport(path).open()
    assert schema_of(path) == before


async def test_processes_that_open_an_old_file_at_once_upgrade_it_once(path: Path) -> None:
    make_version_1(path)
    async with AsyncExitStack() as stack:
        entering = [stack.enter_async_context(worker(path)) for _ in range(3)]
        await asyncio.gather(*entering)
        async with opened(path) as transport:

            async def all_are_settled() -> bool:
                [stats] = await transport.stats()
                return (stats.ready, stats.leased, stats.consumers) == (0, 0, 3)

            await eventually(all_are_settled)
    db = sqlite3.connect(path)
    assert db.execute("SELECT version, epoch FROM broker").fetchone() == (2, 8)
    db.close()
