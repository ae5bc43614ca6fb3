"""Asking and directing the workers of a bus, over the bus: what `bus.control()` gives, and the words both sides use.

A question reaches every worker process, and each answers for itself (`busline.lines` has the ways). So a process that
is dead, stopped or blocked is simply not among those that answer, and nothing has to expire. What must outlive the
processes, that a queue is paused, is recorded at the broker: the topic `busline.paused.{queue}` has an owner as long as
it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import anyio

from busline.clock import Clock
from busline.codec import decode, encode
from busline.errors import CodecError, ConfigurationError, NoHandler
from busline.lines import ASK, DESK, Line, StoreLine, line_to
from busline.message import Message, QueueSpec, ToTopic
from busline.storing import StoreDoor
from busline.transports.base import Transport
from busline.wire import Envelope, new_id

PAUSED = "busline.paused."
"""The topic, and the queue, that say that a queue is paused, before the queue's name."""
EVER_PAUSED = "busline.paused"
"""The same for "some queue was ever paused here", so that a worker mostly has to look once."""
PROBE_TTL = 1.0
"""Seconds for which a question whether a queue is paused lies about where it is."""

Verb = Literal["ping", "active", "stats", "handlers", "gates", "concurrency", "watch"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker process said."""

    worker: str
    """The worker's name, `{service}@{host}` unless it was given one; its processes share it."""
    pid: int
    host: str
    service: str | None
    instance: str
    """Of the process; unique."""
    version: str
    """Of busline."""
    state: Literal["starting", "serving", "draining"]
    started_at: float
    """When it began to serve, seconds since the epoch."""
    at: float
    """What its clock said when it answered."""
    asked_at: float = 0.0
    """What the clock of who asked said when it asked; 0.0 in what travels."""
    received_at: float = 0.0
    """What the clock of who asked said when the answer came; 0.0 in what travels."""
    data: dict[str, Any] = field(default_factory=dict)
    """What was asked for."""

    @property
    def skew(self) -> float:
        """Seconds by which its clock is ahead of ours, at most so far as the time between question and answer tells."""
        if self.at > self.received_at:
            return self.at - self.received_at
        return min(0.0, self.at - self.asked_at)


def doctors_queue(service: str | None) -> str:
    """How the name begins of the queue in which the doctor sends itself a message: as the service's do."""
    return f"{service}.doctor-" if service else f"{DESK}doctor-"


def question(verb: Verb, answers: str, worker: str | None, timeout: float, now: float, args: dict[str, Any]) -> Message:
    """The message that asks."""
    body = {"verb": verb, "answers": answers, "worker": worker, **args}
    envelope = Envelope(new_id(), now, expires_at=now + timeout)
    return Message(ASK, encode(body), envelope.encode(), correlation_id=envelope.id, ttl=timeout, expendable=True)


async def is_recorded(transport: Transport, topic: str, now: float) -> bool:
    """Has the topic an owner? `PAUSED` and a queue's name: an operator has paused it."""
    envelope = Envelope(new_id(), now, expires_at=now + PROBE_TTL)
    try:
        await transport.send(ToTopic(topic), Message(topic, b"null", envelope.encode(), ttl=PROBE_TTL, expendable=True))
    except NoHandler:
        return False
    return True


class Control:
    """Asks the worker processes of a bus. Use it inside `async with bus.control() as control:`.

    Each method waits `timeout` seconds for answers, or until `expect` processes have answered; by way of the store two
    seconds more. `worker` chooses whom to ask: a worker's name (`*` stands for anything), or `name/pid`; None asks all.
    Errors are those of the transport; ConfigurationError where it cannot reach several processes with one message and
    there is no store, StoreUnavailable.
    """

    def __init__(self, transport: Transport, clock: Clock, door: StoreDoor | None = None) -> None:
        self._transport = transport
        self._door = door
        self._now = clock.time
        self._line: Line | None = None
        self._turn = anyio.Lock()

    async def __aenter__(self) -> Self:
        self._line = await line_to(self._transport, self._door)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        line, self._line = self._line, None
        if line is not None:
            with anyio.CancelScope(shield=True):
                await line.aclose()

    async def ping(
        self, *, timeout: float = 1.0, worker: str | None = None, expect: int | None = None
    ) -> Sequence[Answer]:
        """Who is there; a process answers from its event loop, so one that is blocked does not."""
        return await self._ask("ping", timeout, worker, expect)

    async def active(
        self, *, timeout: float = 1.0, worker: str | None = None, expect: int | None = None
    ) -> Sequence[Answer]:
        """What each process works on: `data["messages"]`, with queue, topic, id, attempt and seconds."""
        return await self._ask("active", timeout, worker, expect)

    async def stats(
        self, *, timeout: float = 1.0, worker: str | None = None, expect: int | None = None
    ) -> Sequence[Answer]:
        """Counters, queues with their concurrency and what pauses them, memory, and the health of the connection."""
        return await self._ask("stats", timeout, worker, expect)

    async def handlers(
        self, *, timeout: float = 1.0, worker: str | None = None, expect: int | None = None
    ) -> Sequence[Answer]:
        """What each process serves: `data["handlers"]`."""
        return await self._ask("handlers", timeout, worker, expect)

    async def pause(self, queue: str, *, timeout: float = 1.0, expect: int | None = None) -> Sequence[Answer]:
        """Stop every worker from taking messages of the queue, until `resume`.

        What runs is finished. It is on record at the broker, so workers that start later keep to it, too. Returns the
        answers of the processes that serve the queue. Raises QueueNotFound.
        """
        await self._transport.attach(QueueSpec(queue), create=False)
        for name in (EVER_PAUSED, PAUSED + queue):
            await self._transport.attach(QueueSpec(name, "busline", topics=frozenset({name})))
            await self._transport.detach(name)  # kept at the broker, and nothing of this process's
        return await self._ask("gates", timeout, None, expect, queue=queue)

    async def resume(self, queue: str, *, timeout: float = 1.0, expect: int | None = None) -> Sequence[Answer]:
        """Take `pause` back; silent where nothing was paused. Other reasons to pause, such as a failing health check,
        stay. Returns the answers of the processes that serve the queue."""
        await self._transport.detach(PAUSED + queue, delete=True)
        return await self._ask("gates", timeout, None, expect, queue=queue)

    async def set_concurrency(
        self, queue: str, number: int, *, timeout: float = 1.0, worker: str | None = None, expect: int | None = None
    ) -> Sequence[Answer]:
        """Let each process handle `number` messages of the queue at a time, until it ends; those that start later
        begin with what they were started with. What runs beyond it is finished. Returns the answers of the processes
        that serve the queue."""
        if number < 1:
            raise ConfigurationError("concurrency is at least 1; to stop a queue, pause it")
        return await self._ask("concurrency", timeout, worker, expect, queue=queue, number=number)

    async def _ask(
        self, verb: Verb, timeout: float, worker: str | None, expect: int | None, **args: Any
    ) -> Sequence[Answer]:
        if self._line is None:
            raise ConfigurationError("use it inside `async with bus.control() as control:`")
        if not timeout > 0:
            raise ConfigurationError(f"timeout is a positive number of seconds, not {timeout:g}")
        stored = self._door if self._door is not None and self._door.asked_for else None
        asked = (verb, timeout, worker, expect, args)
        async with self._turn:
            try:
                answers = await self._gather(self._line, *asked)
            except ConfigurationError:  # it may not publish
                if stored is None:
                    raise
                answers = None
            if answers is None and stored is not None:  # those who may not listen to the bus are there
                answers = await self._gather(StoreLine(stored, self._transport.where), *asked)
            return answers or []

    async def _gather(
        self, line: Line, verb: Verb, timeout: float, worker: str | None, expect: int | None, args: dict[str, Any]
    ) -> Sequence[Answer] | None:
        """None where surely nobody listens."""
        asked_at, patience = self._now(), timeout + line.late
        asked = question(verb, line.address, worker, timeout, asked_at, args)
        answers: dict[str, Answer] = {}
        with anyio.move_on_after(patience):
            if not await line.ask(asked, patience):
                return None
            while expect is None or len(answers) < expect:
                for message in await line.answers():
                    if message.correlation_id == asked.correlation_id:
                        answer = _read(message.body, asked_at, self._now())
                        answers.setdefault(answer.instance, answer)
        return sorted(answers.values(), key=lambda answer: (answer.worker, answer.pid))


def _read(body: bytes, asked_at: float, now: float) -> Answer:
    """Raises CodecError for what no worker of ours has written."""
    told = decode(body)
    try:
        return Answer(**told, asked_at=asked_at, received_at=now)
    except TypeError as error:
        raise CodecError(f"a worker of another version answered what cannot be read: {error}") from error
