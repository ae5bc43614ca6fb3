"""One message while a handler works on it: what its context, its alarms and its slot act on."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from anyio import from_thread

from busline.driving import Drive
from busline.errors import AlreadySettled, ConfigurationError, StoreUnavailable
from busline.executors import ThreadRun
from busline.held import Held
from busline.jobs import NO_STORE, Progress
from busline.message import Delivery
from busline.outbox import Departure, Outbox
from busline.outcome import Fault
from busline.registry import Handler
from busline.telemetry import log
from busline.transports.base import Consumer, Transport
from busline.wire import Envelope

if TYPE_CHECKING:
    from busline.context import Departure as AnyDeparture

T = TypeVar("T")

EARLY_ACK = "ack='early'"
OWN_ACK = "ctx.ack()"

Why = Literal["lost", "time_limit", "leaving", "claim_lost", "cancelled"]
"""Why a handler was cancelled: its message is no longer ours, it took too long, the worker leaves, its idempotency key
is no longer ours, somebody cancelled the job."""


class Work:
    """One attempt, or several that follow each other at once. Made when a handler is about to run."""

    # What most attempts never change is the class's, which costs nothing when one is made.
    drive: Drive | None = None
    thread: ThreadRun | None = None
    outbox: Outbox | None = None
    settled = ""
    """By what the message was settled already; "" = by nothing."""
    requeue: tuple[bool, float] | None = None
    """What `ctx.nack` asked for: requeue, delay."""
    held: Held | None = None
    """The claim on its idempotency key; None where it has none."""
    result: bytes | None = None
    """Of a handler that has returned."""
    fault: Fault | None = None
    """Of a handler that has raised."""
    ack_again = False
    """It was to be acked before it ran, and that failed: tried again when it has run."""
    span: Any = None
    """What the observer has begun with this attempt; None where nobody observes it."""
    over = False
    """Its outcome is known."""

    def __init__(
        self,
        delivery: Delivery,
        envelope: Envelope,
        handler: Handler,
        consumer: Consumer,
        payload: Any = None,
        began_at: float = 0.0,
        heard: bool = False,
    ) -> None:
        self.delivery = delivery
        self.envelope = envelope
        self.handler = handler
        self.consumer = consumer
        self.payload = payload
        self.began_at = began_at
        """When its message was received."""
        self.heard = heard
        """Somebody listens to the events that every message of its topic has."""

    @property
    def acked(self) -> bool:
        """It was acked before its outcome is known: there is no lease that could be lost."""
        return self.settled in (EARLY_ACK, OWN_ACK)

    def keep(self, departure: AnyDeparture) -> None:
        """Let it leave when the handler has succeeded."""
        assert isinstance(departure, Departure)
        if self.outbox is None:
            self.outbox = Outbox()
        self.outbox.add(departure)

    async def flush(self, transport: Transport) -> None:
        """The handler has succeeded: let everything leave that it kept."""
        if self.outbox is not None and self.requeue is None:
            await self.outbox.flush(transport)

    def settle_by(self, what: str) -> None:
        """Remember what settles the message; raises AlreadySettled if something has."""
        if self.settled:
            raise AlreadySettled(self.settled)
        self.settled = what

    async def ack(self) -> None:
        """For `ctx.ack()`."""
        self.settle_by(OWN_ACK)
        await self.consumer.ack(self.delivery, confirm=True)

    async def nack(self, *, requeue: bool, delay: float) -> None:
        """For `ctx.nack()`: carried out when the handler has ended, so that the message never runs twice at once."""
        self.settle_by(f"ctx.nack(requeue={requeue})")
        self.requeue = (requeue, delay)

    def wait(self, verb: Callable[[], Awaitable[T]]) -> T:
        """For `ctx.wait()`."""

        async def act() -> T:
            if self.over:
                raise asyncio.CancelledError
            return await verb()

        if _in_a_loop():
            raise ConfigurationError("ctx.wait() is for plain functions, which run in a thread: await the verb instead")
        try:
            return from_thread.run(act)
        except concurrent.futures.CancelledError:  # an Exception, which the function might take for a failure
            raise asyncio.CancelledError("the handler was cancelled") from None

    # -- what needs a claim -------------------------------------------------------------------------------------

    def next_id(self) -> str | None:
        """The id of the next message that the handler sends: the same in every attempt, so that whoever gets it twice
        knows it again. None where nobody would repeat it."""
        if self.held is None:
            return None
        self.held.sent += 1
        return f"{self.envelope.id}/{self.held.sent}"

    async def set_progress(self, current: float, total: float | None, note: str) -> None:
        """For `ctx.progress()`."""
        if self.held is None:
            return
        progress = Progress(current, total, note, self.held.now())
        try:
            await self.held.store.set_progress(self.envelope.id, progress.encode())
        except StoreUnavailable as error:  # the work itself is not concerned
            log.warning(
                "the progress of %s is not kept: %s", self.envelope.id, error, extra={"event": "progress_not_kept"}
            )

    async def last_progress(self) -> Progress | None:
        """For `ctx.last_progress()`."""
        job = await self.held.store.job(self.envelope.id) if self.held is not None else None
        return Progress.decode(job.progress) if job is not None else None

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """For `ctx.transaction()`."""
        if self.held is None:
            raise ConfigurationError(
                "ctx.transaction() completes an idempotency key: give the handler idempotency=Idempotency(...), or the "
                f"message a key. It {NO_STORE}"
            )
        return self.held.transaction()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
