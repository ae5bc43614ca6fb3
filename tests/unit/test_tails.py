"""Events by way of a store: written while somebody watches, never more than there is room for, and never in the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from busline import Bus
from busline import tails as module
from busline.codec import decode, encode
from busline.events import BACKLOG
from busline.message import Message
from busline.stores.memory import MemoryStore, MemoryVault
from busline.storing import StoreDoor
from busline.tails import ROOM, WATCHED, Seen, StoreTail, Teller
from busline.testing.clock import VirtualClock
from busline.testing.harnesses import MemoryHarness, WithoutFanout
from busline.testing.scenes import PATIENCE, eventually
from busline.testing.stored import Failing


@pytest.fixture(autouse=True)
def short_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOMENT", 0.001)


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore(MemoryVault())
    await store.open()
    yield store
    await store.aclose()


def event(number: int, topic: str = "add", padding: str = "") -> Message:
    return Message(f"busline.event.started.{topic}", encode({"id": str(number), "at": number, "x": padding}))


def tail_at(store: MemoryStore, *patterns: str) -> StoreTail:
    return StoreTail(StoreDoor(store, asked_for=True), "here", patterns)


def numbers(seen: Seen) -> list[int]:
    return [decode(each.body)["at"] for each in seen.events]


async def rows(store: MemoryStore) -> list[str]:
    return [job.topic for job in await store.jobs(1000) if job.topic.startswith(WATCHED)]


class Scene:
    """A bus where nothing can be copied to several queues, with a store and a worker that is looked after."""

    def __init__(self, store: MemoryStore | Failing) -> None:
        self.transport = WithoutFanout(MemoryHarness()).transport()
        self.bus = Bus(self.transport, service="svc", store=store, control=True)  # type: ignore[arg-type]  # as good as

        @self.bus.handler("svc.work")
        async def work(number: int) -> int:
            return number

    @property
    def teller(self) -> Teller | None:
        return self.bus._open_session.events.teller

    def watcher(self, store: MemoryStore) -> StoreTail:
        return StoreTail(StoreDoor(store, asked_for=True), self.transport.where, ["busline.event.#"])


async def test_what_several_processes_tell_is_seen_once_and_in_the_order_of_time(store: MemoryStore) -> None:
    tail = tail_at(store, "busline.#")
    tellers = Teller(store), Teller(store)
    for teller in tellers:
        assert teller.watch(tail._record.id, ["busline.#"], 60)
    for number in range(6):
        assert tellers[number % 2].tell(event(number))
    for teller in tellers:
        await teller.aclose()
    seen = await tail.seen()
    assert (numbers(seen), seen.missed) == ([0, 1, 2, 3, 4, 5], 0)
    assert await rows(store) == [WATCHED], "what was read is taken away"


async def test_only_what_one_watches_for_is_written_for_him(store: MemoryStore) -> None:
    teller = Teller(store)
    teller.watch("all", ["busline.#"], 60)
    teller.watch("some", ["busline.event.*.orders.#"], 60)
    teller.tell(event(1))
    teller.tell(event(2, "orders.create"))
    await teller.aclose()
    written = {job.topic: decode(job.message)["events"] for job in await store.jobs(10)}
    assert {topic: len(events) for topic, events in written.items()} == {f"{WATCHED}.all": 2, f"{WATCHED}.some": 1}


async def test_of_a_moment_with_too_many_events_the_rest_is_counted(store: MemoryStore) -> None:
    tail, teller = tail_at(store, "#"), Teller(store)
    teller.watch(tail._record.id, ["#"], 60)
    for number in range(100):
        assert teller.tell(event(number, padding="x" * (ROOM // 10)))
    await teller.aclose()
    seen = await tail.seen()
    assert numbers(seen) == list(range(9))
    assert seen.missed == 91
    teller.tell(event(100, padding="x" * ROOM))  # one that never fits
    await teller.aclose()
    assert (await tail.seen()).missed == 1
    teller.tell(event(101))
    await teller.aclose()
    seen = await tail.seen()
    assert (numbers(seen), seen.missed) == ([101], 0)


async def test_nothing_is_told_when_the_time_is_over_or_he_who_watched_has_left(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, now = Teller(store), 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    assert teller.watch("him", ["#"], 15)
    assert not teller.watch("him", ["#"], 15), "he does already"
    now += 14
    assert teller.tell(event(1))
    now += 2
    assert not teller.tell(event(2))
    assert teller.watch("her", ["#"], 15)
    assert not teller.watch("her", ["#"], 0)
    assert not teller.tell(event(3))


async def test_what_nobody_reads_is_gone_after_a_while() -> None:
    clock = VirtualClock()
    store = MemoryStore(MemoryVault(clock))
    await store.open()
    teller = Teller(store)
    teller.watch("him", ["#"], 60)
    teller.tell(event(1))
    await teller.aclose()
    assert await rows(store) == [f"{WATCHED}.him"]
    await clock.advance(module.KEPT)
    assert await rows(store) == []


async def test_a_store_that_fails_harms_nothing(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failing = Failing(store)
    teller = Teller(failing)  # type: ignore[arg-type]  # as good as
    teller.watch("him", ["#"], 60)
    failing.fail("add_job")
    assert teller.tell(event(1))
    await teller.aclose()
    failing.down.clear()
    assert teller.tell(event(2))
    await teller.aclose()
    assert [getattr(record, "event", "") for record in caplog.records] == ["event_lost"]
    (row,) = await store.jobs(10)
    told = decode(row.message)
    assert (len(told["events"]), told["missed"]) == (1, 1), "what was lost is counted with what comes next"


async def test_a_store_that_has_forgotten_who_watches_is_told_again(store: MemoryStore) -> None:
    tail, teller = tail_at(store, "#"), Teller(store)
    seeing = asyncio.create_task(tail.seen())
    await eventually(lambda: rows(store))
    await store.drop_job(tail._record.id)

    async def is_asked_again() -> bool:
        return await store.job(tail._record.id) is not None

    await eventually(is_asked_again)
    teller.watch(tail._record.id, ["#"], 60)
    teller.tell(event(1))
    async with asyncio.timeout(PATIENCE):
        assert numbers(await seeing) == [1]
    await teller.aclose()


async def test_nothing_is_written_while_nobody_watches(store: MemoryStore) -> None:
    scene = Scene(store)
    async with scene.bus.worker():
        assert await scene.bus.call("svc.work", 1) == 1
        assert scene.teller is None
        assert await rows(store) == []


async def test_who_begins_to_watch_sees_at_once_what_nobody_listened_to_before_and_nothing_when_he_has_left(
    store: MemoryStore,
) -> None:
    scene = Scene(store)
    async with scene.bus.worker():
        await scene.bus.call("svc.work", 1)
        tail = scene.watcher(store)
        seeing = asyncio.create_task(tail.seen())
        await eventually(lambda: scene.teller is not None)
        await scene.bus.call("svc.work", 2)
        async with asyncio.timeout(PATIENCE):
            assert {each.topic for each in (await seeing).events} >= {"busline.event.sent.svc.work"}
        await tail.aclose()
        teller = scene.teller
        assert teller is not None
        await eventually(lambda: not teller._watches)
        await scene.bus.call("svc.work", 3)
        assert await rows(store) == []


async def test_events_that_are_lost_before_they_could_be_told_are_counted(store: MemoryStore) -> None:
    scene = Scene(store)
    async with scene.bus.worker():
        tail = scene.watcher(store)
        seeing = asyncio.create_task(tail.seen())
        await eventually(lambda: scene.teller is not None)
        events = scene.bus._open_session.events
        envelope = scene.bus._envelope(0.0)
        for _ in range(BACKLOG + 10):
            events.emit("event.started", "svc.work", envelope)
        async with asyncio.timeout(PATIENCE):
            seen = await seeing
        assert len(seen.events) + seen.missed == BACKLOG + 10
        assert seen.missed > 10


async def test_leaving_is_no_error_where_the_store_is_away(store: MemoryStore) -> None:
    tail = tail_at(store, "#")
    await tail._door.open()
    await store.aclose()
    await tail.aclose()
