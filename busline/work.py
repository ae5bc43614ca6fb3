"""One message while a handler works on it: what its context, its alarms and its slot act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from busline.driving import Drive
from busline.errors import AlreadySettled
from busline.executors import ThreadRun
from busline.message import Delivery
from busline.outbox import Departure, Outbox
from busline.registry import Handler
from busline.transports.base import Consumer, Transport
from busline.wire import Envelope

if TYPE_CHECKING:
    from busline.context import Departure as AnyDeparture

EARLY_ACK = "ack='early'"
OWN_ACK = "ctx.ack()"

Why = Literal["lost", "time_limit", "leaving"]
"""Why a handler was cancelled: its message is no longer ours, it took too long, the worker leaves."""


class Work:
    """One attempt, or several that follow each other at once. Made when a handler is about to run."""

    __slots__ = (
        "began_at",
        "consumer",
        "delivery",
        "drive",
        "envelope",
        "handler",
        "outbox",
        "over",
        "payload",
        "requeue",
        "settled",
        "span",
        "thread",
    )

    def __init__(
        self,
        delivery: Delivery,
        envelope: Envelope,
        handler: Handler,
        consumer: Consumer,
        payload: Any = None,
        began_at: float = 0.0,
    ) -> None:
        self.delivery = delivery
        self.envelope = envelope
        self.handler = handler
        self.consumer = consumer
        self.payload = payload
        self.began_at = began_at
        """When its message was received."""
        self.drive: Drive | None = None
        self.thread: ThreadRun | None = None
        self.outbox: Outbox | None = None
        self.settled = ""
        """By what the message was settled already; "" = by nothing."""
        self.requeue: tuple[bool, float] | None = None
        """What `ctx.nack` asked for: requeue, delay."""
        self.span: Any = None
        """What the observer has begun with this attempt; None where nobody observes it."""
        self.over = False
        """Its outcome is known."""

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
