"""What the checks of stores are made of."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from busline.errors import StoreError
from busline.stores.base import Claimed, ClaimResult, JobRecord, Store
from busline.testing.steps import prompt
from busline.testing.store_harness import StoreHarness

FP = "fingerprint"
SHORT = 0.2
"""Seconds of a lease or a ttl that a check waits for."""
BRIEF = 1.5
"""The same where something must happen before it ends, on a busy machine too."""
LONG = 600.0
"""Seconds of one that does not end in any check."""

T = TypeVar("T")
E = TypeVar("E", bound=StoreError)


@asynccontextmanager
async def client(h: StoreHarness) -> AsyncIterator[Store]:
    """An open client, closed at the end."""
    store = h.store()
    await prompt(store.open())
    try:
        yield store
    finally:
        await prompt(store.aclose())


@asynccontextmanager
async def clients(h: StoreHarness, number: int) -> AsyncIterator[list[Store]]:
    """As many open clients."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client(h)) for _ in range(number)]


async def claim(
    store: Store,
    key: str,
    *,
    lease: float = LONG,
    ttl: float = LONG,
    job: str = "",
    message_id: str = "",
    message: bytes = b"",
    replaces: str = "",
    fingerprint: str = FP,
) -> ClaimResult:
    """Ask for the key."""
    return await prompt(
        store.claim(
            key,
            fingerprint,
            lease=lease,
            ttl=ttl,
            job=job,
            message_id=message_id,
            message=message,
            replaces=replaces,
        )
    )


async def take(
    store: Store,
    key: str,
    *,
    lease: float = LONG,
    ttl: float = LONG,
    job: str = "",
    message_id: str = "",
    message: bytes = b"",
    replaces: str = "",
) -> Claimed:
    """Ask for the key and get it."""
    result = await claim(
        store, key, lease=lease, ttl=ttl, job=job, message_id=message_id, message=message, replaces=replaces
    )
    assert isinstance(result, Claimed), f"the key was to be had, and this came: {result!r}"
    return result


async def orphan(h: StoreHarness, store: Store, key: str, message_id: str, message: bytes) -> Claimed:
    """A claim that keeps a message, and whose lease has ended."""
    claimed = await take(store, key, lease=SHORT, message_id=message_id, message=message)
    await h.pass_time(2 * SHORT)
    return claimed


def record(id: str, *, topic: str = "a.topic", sent_at: float = 0.0, message: bytes = b"the message") -> JobRecord:
    """A job that was sent just now, or at `sent_at`."""
    return JobRecord(id, topic, sent_at or time.time(), message)


async def add(store: Store, id: str, *, ttl: float = LONG, unique: str = "", unique_for: float = 0.0) -> JobRecord:
    """Keep a job, or get the one that is in its way."""
    return await prompt(store.add_job(record(id), ttl=ttl, unique=unique, unique_for=unique_for))


async def found(store: Store, id: str) -> JobRecord:
    """The job, which is there."""
    job = await prompt(store.job(id))
    assert job is not None, f"the job {id!r} was to be known"
    return job


async def refused(kind: type[E], awaitable: Awaitable[object]) -> E:
    """The error of this kind that it promptly raises."""
    try:
        result = await prompt(awaitable)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was to be raised, and this came: {result!r}")


async def all_of(calls: list[Callable[[], Awaitable[T]]]) -> list[T]:
    """All at once."""
    return list(await asyncio.gather(*(call() for call in calls)))


async def rival(url: str, *arguments: str) -> asyncio.subprocess.Process:
    """Another process that works on the store (see `store_rival`) and is ready when this returns."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "busline.testing.store_rival", url, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert await line_of(process) == "ready", "the other process did not start"
    return process


async def line_of(process: asyncio.subprocess.Process, within: float = 60.0) -> object:
    """What it says next, which is JSON."""
    assert process.stdout is not None
    async with asyncio.timeout(within):
        return json.loads(await process.stdout.readline())


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill it, if it has not ended by itself."""
    if process.returncode is None:
        process.kill()
    await process.wait()
