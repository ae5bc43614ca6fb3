"""Lifecycle events for one who watches a bus: copies of his own over the bus, where its transport reaches several
processes with one message, else by way of the store.

In the store he asks all processes, as one who inspects them does, to write down what happens from now on, and asks
again before the time is over that he has asked for. What they write are job records of a short life under a topic of
his own, each with the events of a moment; he takes them away as he reads. Once he is gone nothing is written any more.
Of a moment in which too much happens a part is told and the rest is counted: no work ever waits for it.
"""

# A method of a Protocol is its docstring; pyright would have it return something all the same.
# pyright: reportReturnType=false
from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from busline.codec import decode, encode
from busline.control import question
from busline.errors import BuslineError, ConfigurationError, StoreUnavailable
from busline.lines import LOOK, MOST, StoreLine, attach_own
from busline.message import Message, QueueSpec
from busline.stores.base import JobRecord, Store
from busline.storing import StoreDoor
from busline.structs import value
from busline.telemetry import log
from busline.topics import RESERVED, matches
from busline.transports.base import Consumer, Transport
from busline.wire import new_id, text_of

WATCHED = f"{RESERVED}control.watched"
"""Topic of the record that changes when there is something to read; what is to be read has its id after it."""
LEASE = 15.0
"""Seconds for which processes write once they were asked to."""
ASK_AGAIN = 5.0
"""Seconds after which they are asked again."""
MOMENT = 0.25
"""Seconds whose events are written, and read, together."""
ROOM = 65_536
"""Bytes of events that a process writes of one moment at most."""
KEPT = 60.0
"""Seconds after which what nobody has read is gone."""
RECORD_TTL = 86_400.0
BATCH = 100
"""Events that are taken over the bus at a time."""


@value
class Seen:
    """What has happened since one looked last."""

    events: Sequence[Message]
    missed: int = 0
    """Events beside them that are not told, as there were too many at once."""


class Tail(Protocol):
    """Of who watches."""

    where: str
    """By which way, in words."""

    async def seen(self) -> Seen:
        """Wait for something to happen. Raises what the transport raises, or StoreUnavailable, and may be asked
        again."""

    async def aclose(self) -> None:
        """Leave nothing behind."""


async def tail_of(transport: Transport, door: StoreDoor | None, patterns: frozenset[str]) -> Tail:
    """Begin to watch events whose topics match one of the patterns. Raises ConfigurationError where there is no way to
    hear of them, and what the transport raises."""
    queue = QueueSpec(f"{RESERVED}events.{new_id()[:12]}", "busline", patterns=patterns, ephemeral=True)
    try:
        await attach_own(transport, queue, "watching events")
    except ConfigurationError:
        if door is None:
            raise
        tail = StoreTail(door, transport.where, patterns)
        await tail.ask(LEASE)
        return tail
    return _BusTail(transport, queue.name, await transport.consume(queue.name, slots=1, prefetch=BATCH))


class _BusTail:
    def __init__(self, transport: Transport, queue: str, consumer: Consumer) -> None:
        self.where = transport.where
        self._transport = transport
        self._queue = queue
        self._consumer = consumer

    async def seen(self) -> Seen:
        deliveries = await self._consumer.receive(BATCH)
        await self._consumer.ack(*deliveries)
        return Seen([delivery.message for delivery in deliveries])

    async def aclose(self) -> None:
        await self._consumer.aclose()
        await self._transport.detach(self._queue, delete=True)


class StoreTail:
    """Sees what those processes tell that hear questions by way of the store."""

    def __init__(self, door: StoreDoor, where: str, patterns: Collection[str]) -> None:
        self.where = f"{where} by way of {door.store.where}"
        self._door = door
        self._line = StoreLine(door, where)
        self._patterns = sorted(patterns)
        self._record = JobRecord(new_id(), WATCHED, 0.0, b"")
        self._ask_at = 0.0

    async def seen(self) -> Seen:
        """See `Tail`."""
        store, id = await self._door.open(), self._record.id
        while True:
            if time.monotonic() >= self._ask_at:
                await self.ask(LEASE)
            await store.changed(self._record, None, LOOK)
            await asyncio.sleep(MOMENT)  # others tell of the same moment
            found = await store.job(id)  # before what is to be read, so that none of it is missed
            if rows := await store.jobs(MOST, topic=f"{WATCHED}.{id}"):
                await asyncio.gather(*(store.drop_job(row.id) for row in rows))
                return _seen([decode(row.message) for row in rows])
            if found is None:  # the store has forgotten everything
                self._ask_at = 0.0
            self._record = found or self._record

    async def ask(self, seconds: float) -> None:
        """Have all tell for so long. Again each time, as of two who ring the bell at once one may be overheard."""
        self._record = await (await self._door.open()).add_job(self._record, ttl=RECORD_TTL)
        wish = {"to": self._record.id, "patterns": self._patterns, "seconds": seconds}
        await self._line.ask(question("watch", "", None, LEASE, time.time(), wish), LEASE)
        self._ask_at = time.monotonic() + ASK_AGAIN

    async def aclose(self) -> None:
        """Those who hear of it write no more."""
        try:
            await self.ask(0.0)
            await (await self._door.open()).drop_job(self._record.id)
        except StoreUnavailable:  # then they write until the time is over that they were asked for
            return


def _seen(told: Sequence[dict[str, Any]]) -> Seen:
    """In the order of their own time, as several processes tell."""
    events = [Message(topic, body.encode(), meta) for each in told for topic, body, meta in each["events"]]
    return Seen(sorted(events, key=lambda event: decode(event.body)["at"]), sum(each["missed"] for each in told))


# -- those who tell -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Watch:
    """What one who watches wants to know, and is told next."""

    id: str
    patterns: Collection[str]
    until: float = 0.0
    events: list[tuple[str, str, str]] = field(default_factory=list)
    size: int = 0
    missed: int = 0

    def wants(self, topic: str) -> bool:
        """Now, and of this topic."""
        return self.until > time.monotonic() and any(matches(pattern, topic) for pattern in self.patterns)

    def add(self, message: Message) -> None:
        """To what is told of this moment, if there is room."""
        size = len(message.topic) + len(message.body) + len(message.meta)
        if self.size + size > ROOM:
            self.missed += 1
            return
        self.size += size
        self.events.append((message.topic, message.body.decode(), message.meta))

    def take(self) -> tuple[list[tuple[str, str, str]], int]:
        """What is told of the moment that is over, and how many events beside."""
        told = self.events, self.missed
        self.events, self.size, self.missed = [], 0, 0
        return told


class Teller:
    """Of one process: it tells those who watch by way of the store. Free of I/O while nobody does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watches: dict[str, _Watch] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, id: str, patterns: Collection[str], seconds: float) -> bool:
        """Somebody wants to know of these for so many seconds from now; 0: no longer. True if he did not before."""
        now, known = time.monotonic(), self._watches.pop(id, None)
        self._watches = {each.id: each for each in self._watches.values() if each.until > now}
        if seconds > 0:
            watch = self._watches[id] = known or _Watch(id, patterns)
            watch.until = now + seconds
        return known is None and seconds > 0

    def tell(self, message: Message) -> bool:
        """False if nobody wants to know."""
        wanting = [each for each in self._watches.values() if each.wants(message.topic)]
        for each in wanting:
            each.add(message)
        if wanting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._write(), name="busline watched events")
        return bool(wanting)

    def missed(self, number: int) -> None:
        """So many events were lost before it could be asked who wants to know of them."""
        for each in self._watches.values():
            each.missed += number

    async def _write(self) -> None:
        while told := [each for each in self._watches.values() if each.events or each.missed]:
            await asyncio.sleep(MOMENT)
            for each in told:
                if not await self._is_written(each):
                    return  # until there is more to tell

    async def _is_written(self, watch: _Watch) -> bool:
        events, missed = watch.take()
        row = JobRecord(new_id(), f"{WATCHED}.{watch.id}", 0.0, encode({"events": events, "missed": missed}))
        try:
            await self._store.add_job(row, ttl=KEPT)
            await self._store.set_progress(watch.id, encode(row.id))
        except BuslineError as error:  # the work that is told of goes on without
            watch.missed += missed + len(events)
            log.info("events could not be written down: %s", text_of(error), extra={"event": "event_lost"})
            return False
        return True

    async def aclose(self) -> None:
        """Write what there is. Idempotent."""
        if self._task is not None:
            await self._task
