"""What the tests of the SQLite driver share: a file, its clients, and other processes that work on it."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from busline.message import Message, QueueSpec
from busline.transports.sqlite import SqliteTransport

JOBS = QueueSpec("jobs", "tests", frozenset({"job"}))

WORKER = """
import asyncio, json, sys, time
from busline.message import Message, QueueSpec
from busline.transports.sqlite import SqliteTransport

async def main(path, what):
    transport = SqliteTransport(path)
    await transport.open()
    consumer = await transport.consume("jobs", slots=4)
    print("ready", flush=True)
    if what == "hold":
        await consumer.receive(1)
        print("holding", flush=True)
        await asyncio.Event().wait()
    while True:
        for delivery in await consumer.receive(4 if what == "many" else 1):
            now = time.time()
            await consumer.ack(delivery)
            print(json.dumps([delivery.message.body.decode(), now]), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteTransport]:
    transport = SqliteTransport(path)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def worker(path: Path, what: str = "work") -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that consumes the jobs and prints what it got and when."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, str(path), what), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await line_of(process) == "ready"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode().strip()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110  # what is waited for happens in a file
            await asyncio.sleep(0.01)


def job(body: str) -> Message:
    return Message("job", body.encode())


def schema_of(path: Path) -> dict[str, set[str]]:
    """The columns of each table, and the indexes."""
    db = sqlite3.connect(path)
    found = {
        name: {column for _, column, *_ in db.execute(f"PRAGMA table_info({name})")} if kind == "table" else {kind}
        for kind, name in db.execute("SELECT type, name FROM sqlite_schema").fetchall()
    }
    db.close()
    return found


def transport_files(path: Path, kind: str) -> list[Path]:
    return list(path.parent.glob(f"bus.db-run/*.{kind}"))


async def is_idle(transport: SqliteTransport) -> bool:
    """Do all consumers of the jobs wait for a wake-up?"""
    with sqlite3.connect(transport.where) as db:
        waiting = db.execute("SELECT min(waiting) FROM consumer").fetchone()[0]
    db.close()
    return bool(waiting)
