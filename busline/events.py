"""Lifecycle events for those who subscribe: `busline.event.{kind}.{topic}`, and `busline.fault.{topic}`.

Kinds: sent, received, started, retried, succeeded, failed. Best effort and free while nobody listens: a topic whose
event reached no queue is left alone for a while, and what is published is published beside the work, not in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from busline.clock import Clock
from busline.codec import encode
from busline.errors import CodecError
from busline.message import Message
from busline.telemetry import log
from busline.topics import MAX_TOPIC_BYTES
from busline.transports.base import Transport
from busline.wire import Envelope, new_id, text_of

if TYPE_CHECKING:
    from busline.tails import Teller

KINDS = ("sent", "received", "started", "retried", "succeeded", "failed", "fault")
"""What is told of a message; `fault` is that it became a dead letter."""
DEAF = 5.0
"""Seconds for which an event that reached nobody is not published again; a new subscriber waits so long at most."""
REMEMBERED = 10_000
"""Kinds and topics of events that are known to reach nobody; beyond, all are tried anew."""
CLOSING = 5.0
"""Seconds that publishing what waits may take when the bus is closed."""
ORDINARY = ("event.received", "event.started", "event.succeeded")
"""What is told of a message that is simply handled."""
BACKLOG = 10_000
"""Events that wait to be published; beyond, the oldest are dropped and counted."""


class Events:
    """Publishes what happens to messages. One per open bus; `aclose` lets what waits leave first."""

    __slots__ = ("_backlog", "_deaf_until", "_now", "_quiet", "_task", "_transport", "dropped", "teller")

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._backlog: deque[tuple[tuple[str, str], Message]] = deque(maxlen=BACKLOG)
        self._now = clock.time
        self._deaf_until: dict[tuple[str, str], float] = {}
        self._quiet: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        self.teller: Teller | None = None
        """Tells those who watch by way of the store; None while nobody ever did."""

    def heard(self, topic: str, now: float) -> bool:
        """Somebody may listen to what a worker tells of each message of `topic`: received, started, succeeded."""
        return self._quiet.get(topic, 0.0) <= now

    def sent_heard(self, topic: str, now: float) -> bool:
        """Somebody may listen to what is told when a message of `topic` is sent."""
        return self._deaf_until.get(("event.sent", topic), 0.0) <= now

    def emit(self, kind: str, topic: str, envelope: Envelope, **fields: Any) -> None:
        """`kind` ("event.started", "fault", …) happened to a message of `topic`; our own topics are left out."""
        now = self._now()
        if self._deaf_until.get((kind, topic), 0.0) > now:
            return
        name = f"busline.{kind}.{topic}"
        if topic.startswith("busline.") or len(name.encode()) > MAX_TOPIC_BYTES:
            return
        if len(self._backlog) == BACKLOG:
            self._drop()
        try:
            body = encode({"id": envelope.id, "topic": topic, "attempt": envelope.attempt, "at": now, **fields})
        except CodecError:  # a text in it that is none
            self._drop()
            return
        cause = Envelope(new_id(), now, correlation_id=envelope.correlation_id or envelope.id, causation_id=envelope.id)
        self._backlog.append(((kind, topic), Message(name, body, cause.encode())))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._publish(), name="busline events")

    def _drop(self) -> None:
        self.dropped += 1
        if self.teller is not None:
            self.teller.missed(1)

    async def _publish(self) -> None:
        while self._backlog:
            key, message = self._backlog.popleft()
            if self._deaf_until.get(key, 0.0) > self._now():
                continue
            told = self.teller is not None and self.teller.tell(message)
            try:
                heard = await self._transport.publish(message.topic, message)
            except Exception as error:  # nothing that goes wrong here may harm the work that is told of
                log.info("an event could not be published: %s", text_of(error), extra={"event": "event_lost"})
                heard = False
            if not heard and not told:
                self._remember(key)

    def _remember(self, key: tuple[str, str]) -> None:
        deaf, topic = self._deaf_until, key[1]
        if len(deaf) >= REMEMBERED:
            deaf.clear()
            self._quiet.clear()
        deaf[key] = self._now() + DEAF
        self._quiet[topic] = min(deaf.get((kind, topic), 0.0) for kind in ORDINARY)

    def watched(self, teller: Teller) -> None:
        """Somebody begins to watch by way of the store: `teller`, which is the one there is, hears of each event."""
        self.teller = teller
        self._deaf_until.clear()
        self._quiet.clear()

    async def aclose(self) -> None:
        """Publish what waits, as far as the broker and the store take it within `CLOSING` seconds. Idempotent."""
        task, self._task = self._task, None
        with anyio.move_on_after(CLOSING):
            if task is not None:
                await task
            if self.teller is not None:
                await self.teller.aclose()
