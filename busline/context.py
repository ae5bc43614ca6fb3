"""What a handler can know about the message it works on, and the verbs that carry its conversation on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from busline.jobs import Job, Progress
from busline.message import Delivery
from busline.wire import Envelope

P = ParamSpec("P")
T = TypeVar("T")


class Departure(Protocol):
    """A message that is ready to leave."""

    @property
    def job(self) -> Job: ...


class Verbs(Protocol):
    """What a context needs of its bus."""

    @property
    def call(self) -> Callable[..., Awaitable[Any]]: ...
    @property
    def send(self) -> Callable[..., Awaitable[Job]]: ...
    @property
    def publish(self) -> Callable[..., Awaitable[None]]: ...
    @property
    def prepare_send(self) -> Callable[..., Departure]: ...
    @property
    def prepare_publish(self) -> Callable[..., Departure]: ...
    def job(self, id: str) -> Job: ...


class Settling(Protocol):
    """What a context needs of the attempt that it belongs to."""

    def keep(self, departure: Departure) -> None: ...
    def next_id(self) -> str | None: ...
    async def set_progress(self, current: float, total: float | None, note: str) -> None: ...
    async def last_progress(self) -> Progress | None: ...
    def transaction(self) -> AbstractAsyncContextManager[Any]: ...
    def wait(self, verb: Callable[[], Awaitable[T]], /) -> T: ...
    async def ack(self) -> None: ...
    async def nack(self, *, requeue: bool, delay: float) -> None: ...


class Context:
    """One attempt at one message. Ask for it by annotation: `async def handler(cmd: Cmd, ctx: Context)`."""

    __slots__ = ("_bus", "_delivery", "_envelope", "_work")

    def __init__(self, bus: Verbs, delivery: Delivery, envelope: Envelope, work: Settling) -> None:
        self._bus = bus
        self._delivery = delivery
        self._envelope = envelope
        self._work = work

    @property
    def id(self) -> str:
        """The message's id; the same in every attempt."""
        return self._envelope.id

    @property
    def topic(self) -> str:
        """The topic it was sent or published to."""
        return self._delivery.message.topic

    @property
    def queue(self) -> str:
        """The queue it came through."""
        return self._delivery.queue

    @property
    def headers(self) -> Mapping[str, str]:
        """The sender's own headers."""
        return self._delivery.message.headers

    @property
    def attempt(self) -> int:
        """1 for the first; counts retries that we decided, not redeliveries."""
        return self._envelope.attempt

    @property
    def redelivered(self) -> bool:
        """The broker has handed out this attempt before: its earlier holder died or lost its lease."""
        return self._delivery.deliveries > 1

    @property
    def deadline(self) -> float | None:
        """Seconds since the epoch after which no caller waits any more; None for jobs and events."""
        return self._envelope.deadline

    @property
    def correlation_id(self) -> str:
        """The id of the message at the root of this conversation."""
        return self._envelope.correlation_id or self._envelope.id

    @property
    def causation_id(self) -> str | None:
        """The id of the message whose handling sent this one; None at the root."""
        return self._envelope.causation_id

    @property
    def idempotency_key(self) -> str | None:
        """The key that the sender gave: messages with the same one ask for the same effect. None if he gave none."""
        return self._envelope.key or None

    async def call(self, topic: Any, payload: Any = None, **options: Any) -> Any:
        """`Bus.call` within this message's conversation and what is left of its deadline. Leaves at once."""
        return await self._bus.call(topic, payload, **options)

    async def send(self, topic: Any, payload: Any = None, *, immediate: bool = False, **options: Any) -> Job:
        """`Bus.send` within this message's conversation.

        The job leaves when the handler has succeeded, before the ack, so that a failed attempt sends nothing; with
        `immediate=True` it leaves now. A payload that cannot be sent is an error here and now, a topic that nobody
        owns one when it leaves, which then counts as the handler's failure.
        """
        if immediate:
            return await self._bus.send(topic, payload, **options)
        departure = self._bus.prepare_send(topic, payload, id=self._work.next_id(), **options)
        self._work.keep(departure)
        return departure.job

    async def publish(self, topic: Any, payload: Any = None, *, immediate: bool = False, **options: Any) -> None:
        """`Bus.publish` within this message's conversation; leaves as `send` does."""
        if immediate:
            await self._bus.publish(topic, payload, **options)
        else:
            self._work.keep(self._bus.prepare_publish(topic, payload, id=self._work.next_id(), **options))

    async def progress(self, current: float, total: float | None = None, note: str = "") -> None:
        """Say how far the work is, for whoever watches the job; kept over retries, until the job is forgotten.

        Of a message that nobody tracks nothing is kept. A store that fails is logged and does not disturb the work.
        """
        await self._work.set_progress(current, total, note)

    async def last_progress(self) -> Progress | None:
        """What was said last of this job, in this attempt or an earlier one, so that it goes on where that stopped.
        None for a first attempt, and for a message that nobody tracks. Raises StoreUnavailable."""
        return await self._work.last_progress()

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """`async with ctx.transaction() as connection`: what is written by this connection is committed together with
        the completion of the message's idempotency key, in one transaction: both happen, or neither.

        The commit comes when the handler has returned, so that its result is in it; a handler that raises has written
        nothing. Once a message; what the database locks stays locked until then, so let it be the last thing that the
        handler does. Raises ConfigurationError unless the message has a claim and the store is SQLite or PostgreSQL.
        """
        return self._work.transaction()

    def wait(self, verb: Callable[P, Awaitable[T]], /, *arguments: P.args, **options: P.kwargs) -> T:
        """For a plain function, which runs in a thread and cannot await: `ctx.wait(ctx.progress, 500, 10_000)` does
        what `await ctx.progress(500, 10_000)` does in an async one, and returns when it is done.

        Any verb, from the thread in which the function was called. Once the handler was cancelled (its job, its time
        limit, a lost lease) it does nothing and raises asyncio.CancelledError, so that the thread ends, too. Raises
        ConfigurationError in async code, and what the verb raises.
        """
        return self._work.wait(partial(verb, *arguments, **options))

    async def ack(self) -> None:
        """The message is done with, whatever comes: returns once the broker has forgotten it.

        A failure after this is logged and answered, and neither retried nor kept. Raises AlreadySettled if something
        settled the message before, LeaseLost if it was no longer ours.
        """
        await self._work.ack()

    async def nack(self, *, requeue: bool = True, delay: float = 0.0) -> None:
        """Give the message back, uncounted, to be delivered again after `delay` seconds; or, with `requeue=False`,
        make it a dead letter. What the handler returns afterwards is ignored. Raises AlreadySettled."""
        await self._work.nack(requeue=requeue, delay=delay)


CURRENT: ContextVar[Context | None] = ContextVar("busline_context", default=None)
"""The message that the running code works on; plain `bus.call()` inherits its conversation and deadline."""
