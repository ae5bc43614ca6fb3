"""The slots of one queue: each takes a message, handles it in its own task, settles it, and takes the next.

What a slot has not asked for stays at the broker, so nothing waits unstarted in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio import CancelScope, create_task_group

from busline.errors import ConfigurationError, TransportClosed, TransportError
from busline.handling import Handling, Services
from busline.lease import LeaseKeeper
from busline.message import Delivery, Limits
from busline.registry import QueuePlan
from busline.telemetry import log
from busline.transports.base import Consumer

BACK_OFF = (0.1, 5.0)
"""First and longest pause between attempts to consume again, seconds."""
SETTLE_TIMEOUT = 5.0
"""Seconds that giving a message back may take when a slot is cancelled."""


@dataclass(slots=True, eq=False)
class Slot:
    """One message at a time."""

    scope: CancelScope = field(default_factory=CancelScope)
    """Around the current work; made anew only after it was cancelled, so that a message costs no scope."""
    delivery: Delivery | None = None
    consumer: Consumer | None = None
    lost: bool = False
    """Cancelled because the message is no longer ours."""


class QueueSlots:
    """Serves one queue with `count` slots until drained."""

    def __init__(
        self, plan: QueuePlan, services: Services, *, count: int, prefetch: int, on_closed: Callable[[], None]
    ) -> None:
        self.plan = plan
        self._services = services
        self._handling = Handling(plan, services)
        self._slots = [Slot() for _ in range(count)]
        self._prefetch = prefetch
        self._keeper: LeaseKeeper | None = None
        self._consumer: Consumer | None = None
        self._restoring = anyio.Lock()
        self._stopping = False
        self._closed: TransportClosed | None = None
        self._on_closed = on_closed
        self.ended = anyio.Event()
        """Set when all slots have ended."""

    async def attach(self) -> None:
        """Declare the queue and its dead letters, and begin to consume. Raises ConfigurationError, TransportError."""
        transport = self._services.transport
        limits = await transport.attach(self.plan.spec)
        if self.plan.dead_letters is not None:
            await transport.attach(self.plan.dead_letters)
        self._check(limits)
        if limits.lease is not None and self._keeper is None:
            self._keeper = LeaseKeeper(limits.lease, self._on_lost)
        self._consumer = await transport.consume(self.plan.spec.name, slots=len(self._slots), prefetch=self._prefetch)

    def _check(self, limits: Limits) -> None:
        where = f"queue {self.plan.spec.name!r} at {self._services.transport.where}"
        if self.plan.spec.patterns and not limits.fanout:
            raise ConfigurationError(f"{where} cannot get copies of events; a subscriber needs that")
        if limits.max_delay <= 0:
            raise ConfigurationError(f"{where} cannot delay messages, which retries need")

    @property
    def running(self) -> int:
        """Messages being handled now."""
        return sum(slot.delivery is not None for slot in self._slots)

    async def run(self) -> None:
        """Work until drained or cancelled; a drained queue has settled or given back everything."""
        name = self.plan.spec.name
        async with create_task_group() as side:
            if self._keeper is not None:
                side.start_soon(self._keeper.run, name=f"busline lease {name}")
            async with create_task_group() as slots:
                for number, slot in enumerate(self._slots):
                    slots.start_soon(self._work, slot, name=f"busline slot {name}/{number}")
            self.ended.set()
            side.cancel_scope.cancel()
        if self._closed is not None:
            raise self._closed

    async def stop_fetching(self) -> None:
        """Take no further message: what was delivered and not begun is given back, not counted as an attempt."""
        self._stopping = True
        if self._consumer is not None and self._closed is None:
            await self._give_back_unstarted(self._consumer)
        for slot in self._slots:
            if slot.delivery is None:
                slot.scope.cancel()

    async def _give_back_unstarted(self, consumer: Consumer) -> None:
        try:
            unstarted = await consumer.resize(0)
            if unstarted:
                await consumer.release(*unstarted)
        except TransportError as error:
            log.warning("giving back failed: %s", error, extra={"event": "give_back_failed"})

    def cancel(self) -> None:
        """Cancel the handlers that still run; their messages are given back."""
        for slot in self._slots:
            slot.scope.cancel()

    async def aclose(self) -> None:
        """Stop consuming; to be called when `run` has ended."""
        if self._consumer is not None:
            await self._consumer.aclose()

    async def _work(self, slot: Slot) -> None:
        while not self._stopping:
            slot.scope = CancelScope()
            with slot.scope:
                while not self._stopping:
                    await self._next(slot)
            if slot.delivery is not None:
                await self._abandon(slot)

    async def _next(self, slot: Slot) -> None:
        consumer = slot.consumer = self._consumer
        assert consumer is not None, "attach() comes before run()"
        try:
            deliveries = await consumer.receive(1)
        except TransportClosed as error:
            self._end(error)
            return
        except TransportError as error:
            await self._restore(consumer, error)
            return
        running = self._keeper.running if self._keeper is not None else None
        for delivery in deliveries:
            slot.delivery = delivery
            if running is not None:
                running[delivery] = consumer
            await self._handling.handle(delivery, consumer)
            if running is not None:
                running.pop(delivery, None)
            slot.delivery = None

    def _end(self, error: TransportClosed) -> None:
        """The transport was closed beneath the worker, which therefore leaves; `run` raises the error once."""
        self._closed = error
        self._stopping = True
        self._on_closed()

    async def _abandon(self, slot: Slot) -> None:
        """The handler was cancelled: by the loss of its lease, or because the worker leaves."""
        delivery, consumer, slot.delivery = slot.delivery, slot.consumer, None
        if delivery is None or consumer is None:
            return
        if self._keeper is not None:
            self._keeper.running.pop(delivery, None)
        if slot.lost:
            slot.lost = False
            self._services.telemetry.lease_lost(delivery)
            return
        self._services.telemetry.stats.released += 1
        with CancelScope(shield=True), anyio.move_on_after(SETTLE_TIMEOUT):
            await self._give_back(delivery, consumer)

    async def _give_back(self, delivery: Delivery, consumer: Consumer) -> None:
        try:
            await consumer.release(delivery)
        except TransportError as error:
            self._services.telemetry.unsettled(delivery, error)

    def _on_lost(self, delivery: Delivery) -> None:
        for slot in self._slots:
            if slot.delivery is delivery:
                slot.lost = True
                slot.scope.cancel()

    async def _restore(self, broken: Consumer, error: TransportError) -> None:
        """Consume again after the broker refused; the first slot to notice does it for all."""
        async with self._restoring:
            pause, longest = BACK_OFF
            while self._consumer is broken and not self._stopping:
                log.warning(
                    "consuming %s failed, again in %.1f s: %s",
                    *(self.plan.spec.name, pause, error),
                    extra={"event": "consume_failed", "queue": self.plan.spec.name},
                )
                await anyio.sleep(pause)
                pause = min(longest, pause * 2)
                try:
                    await self.attach()
                except TransportClosed as closed:
                    self._end(closed)
                except TransportError as again:
                    error = again
