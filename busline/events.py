"""Lifecycle events for those who subscribe: `busline.event.{kind}.{topic}`, and `busline.fault.{topic}`.

Kinds: sent, received, started, retried, succeeded, failed. Best effort and free while nobody listens: a topic whose
event reached no queue is left alone for a while, and what is published is published beside the work, not in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from busline.clock import Clock
from busline.codec import encode
from busline.errors import BuslineError
from busline.message import Message
from busline.telemetry import log
from busline.topics import MAX_TOPIC_BYTES
from busline.transports.base import Transport
from busline.wire import Envelope, new_id

DEAF = 5.0
"""Seconds for which an event that reached nobody is not published again; a new subscriber waits so long at most."""
BACKLOG = 10_000
"""Events that wait to be published; beyond, the oldest are dropped and counted."""


class Events:
    """Publishes what happens to messages. One per open bus; `aclose` lets what waits leave first."""

    __slots__ = ("_backlog", "_clock", "_deaf_until", "_task", "_transport", "dropped")

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._backlog: deque[Message] = deque(maxlen=BACKLOG)
        self._deaf_until: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def emit(self, kind: str, topic: str, envelope: Envelope, **fields: Any) -> None:
        """`kind` ("event.started", "fault", …) happened to a message of `topic`; our own topics are left out."""
        name = f"busline.{kind}.{topic}"
        now = self._clock.time()
        if self._deaf_until.get(name, 0.0) > now or topic.startswith("busline.") or len(name) > MAX_TOPIC_BYTES // 2:
            return
        self.dropped += len(self._backlog) == BACKLOG
        body = encode({"id": envelope.id, "topic": topic, "attempt": envelope.attempt, "at": now, **fields})
        cause = Envelope(new_id(), now, correlation_id=envelope.correlation_id or envelope.id, causation_id=envelope.id)
        self._backlog.append(Message(name, body, cause.encode()))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._publish(), name="busline events")

    async def _publish(self) -> None:
        while self._backlog:
            message = self._backlog.popleft()
            try:
                heard = await self._transport.publish(message.topic, message)
            except BuslineError as error:
                log.info("an event could not be published: %s", error, extra={"event": "event_lost"})
                heard = False
            if not heard:
                self._deaf_until[message.topic] = self._clock.time() + DEAF

    async def aclose(self) -> None:
        """Publish what waits. Idempotent."""
        if self._task is not None:
            await self._task
            self._task = None
