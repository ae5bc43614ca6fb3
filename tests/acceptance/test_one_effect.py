"""Every message is delivered up to three times on purpose while its workers are killed, and has one effect.

`BUSLINE_THOROUGH=1` is the size that the promise is made for: 10,000 messages and 50 kills.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import pytest
from process.commands import Folder, Running, until

from busline import Bus
from busline.message import QueueStats
from busline.transports.base import Inspectable

THOROUGH = bool(os.environ.get("BUSLINE_THOROUGH"))
MESSAGES, KILLS = (10_000, 50) if THOROUGH else (200, 3)
PROCESSES = 4

APP = """
import asyncio, os, random
from pathlib import Path
from busline import Bus, Context, Idempotency

bus = Bus("sqlite:///bus.db", service="shop", store={store!r})
LEDGER = os.open(Path(__file__).parent / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@bus.handler("shop.sell", idempotency=Idempotency(lease=1.5))
async def sell(order: str, ctx: Context) -> str:
    await asyncio.sleep(random.uniform(0, 0.01))
    {effect}
    return order.upper()
"""
TO_SQLITE = """async with ctx.transaction() as db:
        db.execute("INSERT INTO effect VALUES (?)", (order,))"""
TO_POSTGRES = """async with ctx.transaction() as db:
        await db.execute('INSERT INTO {schema}.effect VALUES ($1)', order)"""
BESIDE = """slot = id(asyncio.current_task())
    os.write(LEDGER, f"{order},{os.getpid()},{slot}\\n".encode())"""


@dataclass(frozen=True)
class Effect:
    """A line of the ledger: of which message, in which process, in which of its slots."""

    what: str
    pid: int
    slot: str


async def _deliver(bus: Bus, chance: random.Random) -> int:
    """Each message one to three times, in any order; how often in all."""
    departures = [bus.prepare_send("shop.sell", f"order {number}") for number in range(MESSAGES)]
    copies = [each for each in departures for _ in range(chance.randint(1, 3))]
    chance.shuffle(copies)
    for start in range(0, len(copies), 500):
        await asyncio.gather(*(each.leave(bus.transport) for each in copies[start : start + 500]))
    return len(copies)


async def _left(bus: Bus) -> int:
    assert isinstance(bus.transport, Inspectable)
    stats: Sequence[QueueStats] = await bus.transport.stats()
    return sum(each.ready + (each.delayed or 0) + (each.leased or 0) for each in stats if each.name == "shop")


def _kill(worker: Running, left: Callable[[], int], total: int, chance: random.Random) -> list[int]:
    """Kill a process each time when a random share of the messages is done; which."""
    killed: list[int] = []
    for remaining in sorted(chance.sample(range(total // 10, total), KILLS), reverse=True):
        until(lambda: left() <= remaining, f"{remaining} messages are left", 600)  # noqa: B023  # it is called at once
        until(lambda: len(worker.pids) > len(killed), "a process is there to be killed")
        killed.append(chance.choice([pid for pid in worker.pids if pid not in killed]))
        os.kill(killed[-1], signal.SIGKILL)
    return killed


async def _play(folder: Folder, store: str, effect: str, record: Callable[[str, object], None]) -> list[int]:
    """Deliver all of it while workers are killed, until nothing is left; the processes that were killed."""
    folder.write("app", APP.format(store=store, effect=effect))
    worker = folder.worker("app:bus", "--processes", str(PROCESSES), "--concurrency", "4")
    worker.until_ready(PROCESSES)
    chance, left = random.Random(7), MESSAGES
    async with Bus(f"sqlite:///{folder.path}/bus.db") as bus:
        total = left = await _deliver(bus, chance)
        killer = asyncio.create_task(asyncio.to_thread(_kill, worker, lambda: left, total, chance))
        async with asyncio.timeout(3600 if THOROUGH else 120):
            while left := await _left(bus):  # noqa: ASYNC110  # a broker has to be asked
                await asyncio.sleep(0.05)
            killed = await killer
        assert await bus.transport.peek("shop.dead", 1) == []  # type: ignore[attr-defined]  # it is Inspectable
    record("delivered", total)
    print(
        f"{MESSAGES} messages delivered {total} times, {len(killed)} workers of {PROCESSES} at a time killed", end="; "
    )
    return killed


@pytest.mark.timeout(3700 if THOROUGH else 150)
async def test_an_effect_in_the_same_sqlite_file_happens_exactly_once(
    folder: Folder, record_property: Callable[[str, object], None]
) -> None:
    file = f"{folder.path}/bus.db"
    async with Bus(f"sqlite:///{file}") as bus:  # which makes the file what a bus needs
        assert await _left(bus) == 0
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE effect (what TEXT)")
    await _play(folder, f"sqlite:///{file}", TO_SQLITE, record_property)
    with closing(sqlite3.connect(file)) as db:
        effects = Counter(what for (what,) in db.execute("SELECT what FROM effect"))
    _judge_exactly(effects)


@pytest.mark.timeout(3700 if THOROUGH else 150)
async def test_an_effect_in_the_same_postgresql_database_happens_exactly_once(
    folder: Folder, postgres: object, record_property: Callable[[str, object], None]
) -> None:
    import asyncpg

    url, schema = str(getattr(postgres, "url")), f"effects_{uuid.uuid4().hex[:12]}"  # noqa: B009  # a Server has one
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.effect (what TEXT)")
        await _play(folder, f"{url}?schema={schema}", TO_POSTGRES.format(schema=schema), record_property)
        effects = Counter(row["what"] for row in await connection.fetch(f"SELECT what FROM {schema}.effect"))
    finally:
        await connection.close()
    _judge_exactly(effects)


@pytest.mark.timeout(3700 if THOROUGH else 150)
@pytest.mark.parametrize("kind", ["sqlite", "redis", "dynamodb"])
async def test_an_effect_elsewhere_is_repeated_in_the_crash_window_only(
    kind: str, folder: Folder, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """Each effect beyond one is the last deed of a slot whose process was killed before it could record it."""
    store = f"sqlite:///{folder.path}/bus.db"
    own = f"effects-{uuid.uuid4().hex[:12]}"
    if kind == "redis":
        store = f"{request.getfixturevalue('redis').url}?prefix={own}:"
    elif kind == "dynamodb":
        store = f"{request.getfixturevalue('dynamo').url}&timeout=20&table={own}"
    killed = await _play(folder, store, BESIDE, record_property)
    effects = [Effect(what, int(pid), slot) for what, pid, slot in (note.split(",") for note in folder.notes)]
    last_of_message = {each.what: each for each in effects}
    last_of_slot = {(each.pid, each.slot): each for each in effects}
    beyond_one = [each for each in effects if each is not last_of_message[each.what]]
    record_property("beyond one", len(beyond_one))
    print(f"{len(effects)} effects, {len(beyond_one)} beyond one")
    assert len(last_of_message) == MESSAGES
    assert {each.pid for each in beyond_one} <= set(killed)
    assert [each for each in beyond_one if each is not last_of_slot[each.pid, each.slot]] == []


def _judge_exactly(effects: Counter[str]) -> None:
    print(f"{effects.total()} effects, of {len(effects)} messages")
    assert len(effects) == MESSAGES
    assert effects.total() == MESSAGES


CRASHING = """
import os, signal
from pathlib import Path
from busline import Bus, Context, Idempotency
from busline.stores import from_url

LEDGER = os.open(Path(__file__).parent / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(what):
    os.write(LEDGER, f"{{what}}\\n".encode())

class Dying:
    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def complete(self, claim, result, outgoing, *, ttl):
        key = claim.key.rpartition("/")[2]
        if key == "before record" and claim.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        await self._store.complete(claim, result, outgoing, ttl=ttl)
        if key == "after record":
            os.kill(os.getpid(), signal.SIGKILL)

bus = Bus("sqlite:///bus.db", service="shop", store=Dying(from_url({store!r})))

@bus.handler("shop.sell", idempotency=Idempotency(lease=1.0))
async def sell(order: str, ctx: Context) -> str:
    note(f"sell {{order}}")
    await ctx.send("shop.ship", order)
    return f"sold {{order}}"

@bus.handler("shop.ship", queue="shipping")
async def ship(order: str, ctx: Context) -> None:
    note(f"ship {{order}} {{ctx.attempt}}")
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis", "dynamo"])
async def test_a_crash_around_the_record_repeats_what_is_not_in_it_and_loses_nothing_that_is(
    kind: str, folder: Folder, request: pytest.FixtureRequest
) -> None:
    """Killed between claim and record: it runs again. Between the record and what it sent: that leaves, and no more."""
    url, own = f"sqlite:///{folder.path}/store.db", uuid.uuid4().hex[:12]
    if kind != "sqlite":
        own = {"postgres": f"?schema=crash_{own}", "redis": f"?prefix={own}:", "dynamo": f"&table=crash-{own}"}[kind]
        url = f"{request.getfixturevalue(kind).url}{own}"
    folder.write("app", CRASHING.format(store=url))
    folder.worker("app:bus", "--concurrency", "1").until_ready()
    async with Bus(f"sqlite:///{folder.path}/bus.db") as bus:
        for order in ("before record", "after record"):
            assert await bus.call("shop.sell", order, idempotency_key=order, timeout=60) == f"sold {order}"
    folder.until_notes(5, 60)
    assert sorted(folder.notes) == sorted(
        [*["sell before record"] * 2, "ship before record 1", "sell after record", "ship after record 1"]
    )
