"""The slots of one queue: each takes a message, handles it in its own task, settles it, and takes the next.

What a slot has not asked for stays at the broker, so nothing waits unstarted in this process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio import CancelScope, create_task_group
from anyio.abc import TaskGroup

from busline.clock import sleep
from busline.errors import ConfigurationError, TransportClosed, TransportError
from busline.gates import Gate, HealthGate
from busline.handling import Handling
from busline.lease import LeaseKeeper
from busline.limits import Spacing
from busline.message import Delivery, Limits
from busline.options import parse_rate
from busline.registry import QueuePlan
from busline.services import Services
from busline.structs import value
from busline.telemetry import log
from busline.transports.base import Consumer
from busline.wire import text_of
from busline.work import Why, Work

BACK_OFF = (0.1, 5.0)
"""First and longest pause between attempts to consume again, seconds."""
SETTLE_TIMEOUT = 5.0
"""Seconds that settling a message may take when its slot was cancelled."""
CANCEL_GRACE = 5.0
"""Seconds that a cancelled handler has to end before its process counts as stuck."""


@value
class QueueState:
    """One queue of a worker at this moment."""

    name: str
    slots: int
    """Messages that may be handled at a time."""
    running: int
    """Messages that are handled now."""
    troubles: list[str]
    """Why nothing is taken from it, or why it cannot work; empty while all is well."""


T = TypeVar("T")


async def side_by_side(works: Iterable[Awaitable[T]]) -> list[T]:
    """Their results when all have ended, for they wait for the broker; raises the error of the first that failed."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


class Slot:
    """One message at a time."""

    __slots__ = ("_on_cancel", "consumer", "delivery", "ending", "scope", "task", "why", "work")

    def __init__(self, on_cancel: Callable[[Slot, Why], None]) -> None:
        self.scope = CancelScope()
        """Around the current work; made anew only after it was cancelled, so that a message costs no scope."""
        self.task: asyncio.Task[Any] | None = None
        """In which it works, once it does."""
        self.delivery: Delivery | None = None
        self.consumer: Consumer | None = None
        self.work: Work | None = None
        """Set while a handler runs."""
        self.why: Why | None = None
        """Why it was cancelled."""
        self.ending = False
        """It takes nothing more: there are to be fewer slots, or the queue is left."""
        self._on_cancel = on_cancel

    def cancel(self, why: Why) -> None:
        """Cancel what runs in it."""
        if self.why is None:
            self.why = why
            self._on_cancel(self, why)
        self.scope.cancel()


class QueueSlots:
    """Serves one queue with `count` slots until drained."""

    def __init__(
        self,
        plan: QueuePlan,
        services: Services,
        *,
        count: int,
        prefetch: int,
        rate_share: float,
        on_closed: Callable[[], None],
    ) -> None:
        self.plan = plan
        self._services = services
        self._count = plan.options.concurrency or count
        self.gate = Gate(plan.spec.name, services.clock, self._on_gate)
        self._handling = Handling(plan, services, self.gate, self._pause)
        self._slots = [Slot(self._on_cancel) for _ in range(self._count)]
        self._prefetch = prefetch
        rate = plan.options.rate_limit
        self._spacing = Spacing(parse_rate(rate) / rate_share) if rate else None
        self._turn = anyio.Lock()
        self._checks = [
            HealthGate(
                f"check {number} {check.name}", check, plan.options.on_down, self.gate, self._handling.unavailable
            )
            for number, check in enumerate(plan.options.checks, 1)
        ]
        self._keeper: LeaseKeeper | None = None
        self._consumer: Consumer | None = None
        self._restoring = anyio.Lock()
        self._gate_changed = anyio.Event()
        self._stopping = False
        self._refused = ""
        """Why it could not be consumed when last tried; "" while it is."""
        self._closed: TransportClosed | None = None
        self._tasks: TaskGroup | None = None
        self.taken = 0
        """Messages since it began."""
        self._on_closed = on_closed
        self.ended = anyio.Event()
        """Set when all slots have ended."""

    async def attach(self) -> None:
        """Declare the queue and its dead letters, and begin to consume. Raises ConfigurationError, TransportError."""
        transport = self._services.transport
        limits, *_ = await side_by_side(
            [transport.attach(spec) for spec in (self.plan.declared, self.plan.dead_letters) if spec is not None]
        )
        self._check(limits)
        self._handling.attached(limits)
        if limits.lease is not None and self._keeper is None:
            self._keeper = LeaseKeeper(limits.lease, self._on_lost, partial(sleep, self._services.clock))
        for check in self._checks:
            await check.first()
        self._consumer = await transport.consume(self.plan.spec.name, slots=self._count, prefetch=self._prefetch)
        await self._apply_gate()

    def _check(self, limits: Limits) -> None:
        where = f"queue {self.plan.spec.name!r} at {self._services.transport.where}"
        if self.plan.spec.patterns and not limits.fanout:
            raise ConfigurationError(f"{where} cannot get copies of events; a subscriber needs that")
        if limits.max_delay <= 0:
            raise ConfigurationError(f"{where} cannot delay messages, which retries need")
        wanted = self.plan.queue.max_priority
        if wanted is not None and limits.priorities < wanted:
            raise ConfigurationError(f"{where} knows priorities up to {limits.priorities}, not {wanted}")
        self._check_times(limits, where)

    def _check_times(self, limits: Limits, where: str) -> None:
        subscriber = self.plan.subscriber
        for handler in (subscriber,) if subscriber is not None else self.plan.handlers.values():
            options = handler.options
            if options.ack == "late" and options.time_limit is not None and options.time_limit > limits.max_lease:
                raise ConfigurationError(
                    f"{handler.declaration.name} may run for {options.time_limit:g} s, but {where} takes a message "
                    f"back {limits.max_lease:g} s after it was handed out: say ack='early', or raise the broker's own "
                    "limit (RabbitMQ: consumer_timeout) and name it in the URL (?consumer_timeout= seconds)"
                )

    @property
    def count(self) -> int:
        """Messages that it handles at once, at most."""
        return self._count

    @property
    def lease(self) -> float | None:
        """Of its messages, seconds; None where the broker knows none."""
        return self._keeper.lease if self._keeper is not None else None

    @property
    def running(self) -> int:
        """Messages being handled now."""
        return sum(slot.delivery is not None for slot in self._slots)

    def state(self) -> QueueState:
        """As it is now."""
        refused = [self._refused] if self._refused else []
        troubles = [*refused, *self.gate.reasons.values(), *self._handling.unavailable.values()]
        return QueueState(self.plan.spec.name, self._count, self.running, troubles)

    @property
    def waited(self) -> float | None:
        """Seconds that the message taken last had waited since it could be taken; None while none was."""
        waited = self._handling.waited
        return None if waited is None else max(0.0, round(waited, 3))  # the sender's clock may be ahead of ours

    @property
    def works(self) -> list[Work]:
        """What its handlers work on now."""
        return [slot.work for slot in self._slots if slot.work is not None]

    async def run(self) -> None:
        """Work until drained or cancelled; a drained queue has settled or given back everything."""
        name = self.plan.spec.name
        async with create_task_group() as side:
            side.start_soon(self._keep_gate, name=f"busline gate {name}")
            for check in self._checks:
                side.start_soon(check.run, name=f"busline check {name}")
            if self._keeper is not None:
                side.start_soon(self._keeper.run, name=f"busline lease {name}")
            async with create_task_group() as self._tasks:
                for slot in self._slots:
                    self._begin(self._tasks, slot)
            self._tasks = None
            self.ended.set()
            side.cancel_scope.cancel()
        if self._closed is not None:
            raise self._closed

    def _begin(self, tasks: TaskGroup, slot: Slot) -> None:
        tasks.start_soon(self._work, slot, name=f"busline slot {self.plan.spec.name}")

    # -- operators ----------------------------------------------------------------------------------------------

    async def operate(self, name: str, why: str | None) -> None:
        """Close the gate under this name, or open it again (None); returns when nothing more, or again, is fetched."""
        if why is None:
            self.gate.open(name)
        else:
            self.gate.close(name, why)
        await self._apply_gate()

    async def set_count(self, count: int) -> None:
        """Handle `count` messages at a time from now on; what runs beyond that is finished."""
        if self._stopping or self._tasks is None:
            return
        keep = [slot for slot in self._slots if not slot.ending]
        for slot in sorted(keep, key=lambda slot: slot.delivery is not None)[: max(0, len(keep) - count)]:
            slot.ending = True
            if slot.delivery is None:
                slot.scope.cancel()
        for _ in range(count - len(keep)):
            self._slots.append(Slot(self._on_cancel))
            self._begin(self._tasks, self._slots[-1])
        self._count = count
        await self._apply_gate()

    # -- gate ---------------------------------------------------------------------------------------------------

    def _on_gate(self) -> None:
        self._gate_changed.set()

    async def _keep_gate(self) -> None:
        while True:
            await self._gate_changed.wait()
            self._gate_changed = anyio.Event()
            await self._apply_gate()

    async def _pause(self, seconds: float) -> None:
        """For a retry rule: returns when nothing more is fetched, so that the message can be given back."""
        self.gate.close_for("retry rule", "a handler's error asked for it", seconds)
        await self._apply_gate()

    async def _apply_gate(self) -> None:
        """Resize the consumer to what the gate and the rate limit allow now."""
        consumer = self._consumer
        if consumer is None or self._closed is not None:
            return
        closed = self._stopping or bool(self.gate.reasons)
        await self._resize(consumer, 0 if closed else self._count)

    async def _resize(self, consumer: Consumer, slots: int) -> None:
        try:
            unstarted = await consumer.resize(slots)
            if unstarted:
                await consumer.release(*unstarted)
        except TransportError as error:
            log.warning("resizing failed: %s", error, extra={"event": "resize_failed", "queue": self.plan.spec.name})

    # -- leaving ------------------------------------------------------------------------------------------------

    async def stop_fetching(self) -> None:
        """Take no further message: what was delivered and not begun is given back, not counted as an attempt."""
        self._stopping = True
        await self._apply_gate()
        for slot in self._slots:
            slot.ending = True
            if slot.delivery is None:
                slot.scope.cancel()

    def cancel(self) -> None:
        """Cancel the handlers that still run; their messages are given back."""
        for slot in self._slots:
            slot.cancel("leaving")

    async def aclose(self) -> None:
        """Stop consuming; to be called when `run` has ended."""
        if self._consumer is not None:
            await self._consumer.aclose()

    # -- slots --------------------------------------------------------------------------------------------------

    async def _work(self, slot: Slot) -> None:
        slot.task = asyncio.current_task()
        while not slot.ending:
            slot.scope = CancelScope()
            with slot.scope:
                await self._serve(slot)
            if slot.delivery is not None:
                await self._abandon(slot)
            slot.why = None
        self._slots.remove(slot)

    async def _serve(self, slot: Slot) -> None:
        on_message = self._services.on_message
        while not slot.ending:
            consumer = slot.consumer = self._consumer
            assert consumer is not None, "attach() comes before run()"
            if self.gate.reasons:
                await self.gate.opened.wait()
            try:
                spaced = self._spacing is not None
                deliveries = await (self._receive_spaced(consumer, slot) if spaced else consumer.receive(1))
            except TransportClosed as error:
                self._end(error)
                return
            except TransportError as error:
                await self._restore(consumer, error)
                continue
            running = self._keeper.running if self._keeper is not None else None
            for delivery in deliveries:
                slot.delivery = delivery
                self.taken += 1
                if on_message is not None:
                    on_message()
                if running is not None:
                    running[delivery] = consumer
                await self._handling.handle(delivery, consumer, slot)
                if running is not None:
                    running.pop(delivery, None)
                slot.delivery = slot.work = None

    async def _receive_spaced(self, consumer: Consumer, slot: Slot) -> list[Delivery]:
        """Under a rate limit one slot at a time asks, and only when the next message may start."""
        assert self._spacing is not None
        async with self._turn:
            await sleep(self._services.clock, self._spacing.wait(self._services.clock.time()))
            deliveries = list(await consumer.receive(1))
            self._spacing.started(self._services.clock.time())
        return deliveries

    def _on_cancel(self, slot: Slot, why: Why) -> None:
        if why != "leaving" and slot.work is not None:
            services = self._services
            services.alarms.add(partial(self._check_stuck, slot.work), services.clock.time() + CANCEL_GRACE)

    def _check_stuck(self, work: Work) -> None:
        topic = work.delivery.message.topic
        if not work.over:
            self._services.on_stuck(f"the handler of {topic} goes on {CANCEL_GRACE:g} s after it was cancelled")
        elif work.thread is not None and work.thread.left_behind:
            self._services.on_stuck(f"the thread of {topic} goes on {CANCEL_GRACE:g} s after its time limit")

    async def _abandon(self, slot: Slot) -> None:
        """The handler was cancelled: its time is up, its lease was lost, or the worker leaves."""
        delivery, consumer, work = slot.delivery, slot.consumer, slot.work
        slot.delivery = slot.work = None
        if delivery is None or consumer is None:
            return
        if self._keeper is not None:
            self._keeper.running.pop(delivery, None)
        with CancelScope(shield=True), anyio.move_on_after(SETTLE_TIMEOUT):
            if work is not None:
                await self._handling.abandoned(work, slot.why or "leaving")
            elif slot.why != "lost":
                await self._give_back(delivery, consumer)

    async def _give_back(self, delivery: Delivery, consumer: Consumer) -> None:
        self._services.telemetry.released(delivery)
        try:
            await consumer.release(delivery)
        except TransportError as error:
            self._services.telemetry.unsettled(delivery, error)

    def _on_lost(self, delivery: Delivery) -> None:
        for slot in self._slots:
            if slot.delivery is delivery and not (slot.work is not None and slot.work.acked):
                slot.cancel("lost")

    # -- the transport ------------------------------------------------------------------------------------------

    def _end(self, error: TransportClosed) -> None:
        """The transport was closed beneath the worker, which therefore leaves; `run` raises the error once."""
        self._closed = error
        self._stopping = True
        for slot in self._slots:
            slot.ending = True
        self._on_closed()

    async def _restore(self, broken: Consumer, error: TransportError | ConfigurationError) -> None:
        """Consume again after the broker refused; the first slot to notice does it for all."""
        async with self._restoring:
            pause, longest = BACK_OFF
            while self._consumer is broken and not self._stopping:
                changed = isinstance(error, ConfigurationError)
                self._refused = f"it cannot be consumed: {text_of(error)}"
                pause = longest if changed else pause
                log.log(
                    logging.ERROR if changed else logging.WARNING,
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
                except (TransportError, ConfigurationError) as again:  # somebody may put the queue right again
                    error = again
                else:
                    self._refused = ""
