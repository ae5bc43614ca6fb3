"""Workers that are asked and directed: over one transport, or by way of a store where it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from busline.bus import Bus
from busline.control import Answer, Control
from busline.errors import QueueNotFound
from busline.tails import Tail, tail_of
from busline.testing.harness import Harness
from busline.testing.scenes import PATIENCE, eventually, raised
from busline.testing.stored import keeping
from busline.wire import decode_envelope


class Holding:
    """A service whose handler waits, and one who directs its workers."""

    def __init__(self, h: Harness) -> None:
        self.h = h
        self.service = h.unique("svc")
        self.name = f"{self.service}@here"
        self.running = 0
        self.gate = asyncio.Event()
        self.control: Control

    def bus(self) -> Bus:
        """Another process of it."""
        bus = keeping(self.h, service=self.service, control=True)

        @bus.handler(f"{self.service}.hold")
        async def hold(number: int) -> None:
            self.running += 1
            await self.gate.wait()
            self.running -= 1

        return bus

    async def there(self, count: int) -> list[Answer]:
        """What its processes answer once there are so many."""

        async def look() -> list[Answer]:
            found = list(await self.control.ping(timeout=0.5, worker=self.name, expect=count))
            return found if len(found) == count else []

        if count:
            return await eventually(look)  # type: ignore[no-any-return]  # what `look` returns
        await eventually(lambda: _is_silent(self.control, self.name))
        return []


async def _is_silent(control: Control, name: str) -> bool:
    return not await control.ping(timeout=0.3, worker=name)


@asynccontextmanager
async def holding(h: Harness) -> AsyncIterator[Holding]:
    """By way of the store where a message cannot reach several processes."""
    scene = Holding(h)
    async with keeping(h).control() as scene.control:
        yield scene


async def check_workers_answer_while_they_live_and_no_longer(h: Harness) -> None:
    """One that has left is not among those that answer, without anything having to expire."""
    async with holding(h) as scene:
        first, second = scene.bus(), scene.bus()
        async with first.worker(name=scene.name):
            (alone,) = await scene.there(1)
            assert (alone.state, alone.service) == ("serving", scene.service)
            assert abs(alone.skew) < 5
            async with second.worker(name=scene.name):
                assert len({answer.instance for answer in await scene.there(2)}) == 2
            await scene.there(1)
        await scene.there(0)


async def check_a_worker_whose_slots_are_taken_tells_what_it_works_on(h: Harness) -> None:
    """Its own consumer answers: a question never waits behind work."""
    async with holding(h) as scene:
        bus = scene.bus()
        async with bus.worker(concurrency=2, name=scene.name):
            jobs = [await bus.send(f"{scene.service}.hold", number) for number in range(3)]
            await eventually(lambda: scene.running == 2)
            (answer,) = await scene.control.active(timeout=PATIENCE, worker=scene.name, expect=1)
            messages = answer.data["messages"]
            assert len(messages) == 2
            assert {message["id"] for message in messages} < {job.id for job in jobs}
            assert all(message["topic"] == f"{scene.service}.hold" for message in messages)
            assert all(message["attempt"] == 1 and 0 <= message["seconds"] < 60 for message in messages)
            (answer,) = await scene.control.stats(timeout=PATIENCE, worker=scene.name, expect=1)
            told = answer.data["queues"][scene.service]
            assert 0 <= told.pop("waited") < PATIENCE
            assert told == {"concurrency": 2, "running": 2, "taken": 2, "paused": []}
            assert answer.data["transport"]["status"] == "healthy"
            (answer,) = await scene.control.handlers(timeout=PATIENCE, worker=scene.name, expect=1)
            assert [row["topic"] for row in answer.data["handlers"]] == [f"{scene.service}.hold"]
            scene.gate.set()


async def check_a_paused_queue_stays_paused_for_workers_that_start_later(h: Harness) -> None:
    """Until it is resumed; its messages wait at the broker and count as no attempt."""
    async with holding(h) as scene:
        control, topic = scene.control, f"{scene.service}.hold"
        bus = scene.bus()
        await raised(QueueNotFound, control.pause(scene.service, timeout=PATIENCE))
        async with bus.worker(name=scene.name):
            await scene.there(1)
            (answer,) = await control.pause(scene.service, timeout=PATIENCE, expect=1)
            assert answer.data["paused"] == ["an operator has paused it"]
            await bus.send(topic, 1)
        later = scene.bus()
        async with later.worker(name=scene.name) as worker:
            await scene.there(1)
            assert worker.paused == {scene.service: ["an operator has paused it"]}
            await asyncio.sleep(0.2)  # nothing must happen, which has no sign
            assert scene.running == 0
            scene.gate.set()
            (answer,) = await control.resume(scene.service, timeout=PATIENCE, expect=1)
            assert answer.data["paused"] == []
            await eventually(lambda: later.stats.handled == 1)
            assert await control.resume(h.unique("nowhere"), timeout=0.2) == []


async def check_concurrency_changes_while_messages_are_handled(h: Harness) -> None:
    """More are taken at once; fewer are, without anything that runs being cut short."""
    async with holding(h) as scene:
        bus = scene.bus()
        async with bus.worker(concurrency=1, name=scene.name):
            await scene.there(1)
            for number in range(8):
                await bus.send(f"{scene.service}.hold", number)
            await eventually(lambda: scene.running == 1)
            (answer,) = await scene.control.set_concurrency(scene.service, 3, timeout=PATIENCE, expect=1)
            assert answer.data["concurrency"] == 3
            await eventually(lambda: scene.running == 3)
            await scene.control.set_concurrency(scene.service, 1, timeout=PATIENCE, expect=1)
            assert scene.running == 3
            scene.gate.set()
            await eventually(lambda: bus.stats.handled == 8)
            scene.gate.clear()
            for number in range(3):
                await bus.send(f"{scene.service}.hold", number)
            await eventually(lambda: scene.running == 1)
            await asyncio.sleep(0.2)  # more must not happen, which has no sign
            assert scene.running == 1
            scene.gate.set()
            await eventually(lambda: bus.stats.handled == 11)
        assert bus.stats.released == bus.stats.failed == 0


async def check_what_happens_to_messages_is_seen_by_who_watches(h: Harness) -> None:
    """All that a worker and who sends from its bus tell of one message, in its conversation."""
    async with holding(h) as scene:
        topic, bus = f"{scene.service}.hold", scene.bus()
        scene.gate.set()
        wanted = {f"busline.event.{kind}.{topic}" for kind in ("sent", "received", "started", "succeeded")}
        async with bus.worker(name=scene.name), watching(h, f"busline.event.*.{topic}") as tail:
            told: dict[str, set[str]] = {}

            async def is_told() -> bool:
                await bus.send(topic, 1)
                with anyio.move_on_after(1.0):
                    for event in (await tail.seen()).events:
                        told.setdefault(decode_envelope(event, 0.0).correlation_id, set()).add(event.topic)
                return wanted in told.values()

            await eventually(is_told)
            assert set().union(*told.values()) == wanted


@asynccontextmanager
async def watching(h: Harness, *patterns: str) -> AsyncIterator[Tail]:
    """One who watches, in a process of his own."""
    bus = keeping(h)
    async with bus:
        tail = await tail_of(bus.transport, bus._open_session.door, frozenset(patterns))
        try:
            yield tail
        finally:
            await tail.aclose()
