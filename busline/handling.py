"""One delivery from receipt to settlement: decide, run, decide, carry out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from busline import claiming, outcome
from busline.binding import refusal_of
from busline.claims import Claims
from busline.driving import ends_task
from busline.errors import (
    CodecError,
    MessageTooLarge,
    RetryLater,
    StoreUnavailable,
    TimeLimitExceeded,
)
from busline.gates import Gate
from busline.limits import FailureWindow
from busline.message import Delivery, Limits
from busline.observing import Outcome
from busline.outcome import Effects, Fault, Release, Resend, RunAgain
from busline.registry import QueuePlan
from busline.retry import NO_RETRY
from busline.running import Runner
from busline.services import Services
from busline.settling import Settlement, terms_of
from busline.transports.base import Consumer
from busline.wire import Envelope, decode_envelope, new_id, text_of
from busline.work import EARLY_ACK, OWN_ACK, Why, Work

REMEMBERED_UNKNOWN = 10_000
"""Messages of unknown topics whose first sight is remembered; beyond, the oldest start their grace anew."""
PARKED = 5.0
"""Seconds for which a job waits as a delayed copy while its queue answers that it is unavailable."""


class SlotLike(Protocol):
    """What handling needs of the slot in which it works."""

    task: asyncio.Task[Any] | None
    work: Work | None

    def cancel(self, why: Why) -> None:
        """Cancel the handler that runs in it."""


class Handling:
    """Handles the deliveries of one queue, several at a time, each in the slot's own task."""

    def __init__(
        self, plan: QueuePlan, services: Services, gate: Gate, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self._plan = plan
        self._services = services
        self._now = services.clock.time
        self._max_body_bytes = services.settings.max_body_bytes
        self._telemetry = services.telemetry
        self._emit = services.events.emit
        self._heard = services.events.heard
        self._gate = gate
        self._first_seen: OrderedDict[str, float] = OrderedDict()
        breaker = plan.options.breaker
        self._window = FailureWindow(breaker) if breaker else None
        self._terms = terms_of(plan, services)
        self._runner = Runner(services)
        self._settlement = Settlement(plan, self._terms, services, pause)
        self._claims = services.claims
        if self._claims is not None:
            self._claims.orphans.queues[plan.spec.name] = self._settlement
        self.waited: float | None = None
        """Seconds that the message taken last had waited since it could be."""
        self.unavailable: dict[str, str] = {}
        """Why callers are told that the queue cannot work now; empty while it can."""

    def attached(self, limits: Limits) -> None:
        """The queue was attached, and this is what it can do."""
        self._settlement.limits = limits

    def handle(self, delivery: Delivery, consumer: Consumer, slot: SlotLike) -> Awaitable[None]:
        """From receipt to settlement; to be awaited at once. Raises only what cancels the slot."""
        now = self._now()
        try:
            envelope = decode_envelope(delivery.message, now)
        except CodecError as error:
            envelope = Envelope(new_id(), now)
            effects = self._unreadable(delivery, envelope, error, "undecodable", now)
        else:
            self.waited = now - (envelope.due_at or envelope.sent_at)
            if self._telemetry.observer is not None:
                self._telemetry.observer.received(delivery, envelope)
            heard = self._heard(delivery.message.topic, now)
            if heard:
                self._emit("event.received", delivery.message.topic, envelope, queue=delivery.queue)
            admitted = outcome.admit(delivery, envelope, self._terms, now=now)
            work = admitted or self._begin(delivery, envelope, consumer, now, heard)
            if isinstance(work, Work):
                slot.work = work
                if self._claims is not None and (envelope.key is not None or work.handler.idempotency is not None):
                    return self._attempt_claimed(work, slot, self._claims)
                return self._attempt(work, slot)
            effects = work
            if envelope.key is not None and self._claims is not None and outcome.is_final(effects):
                return self._end_unrun(effects, delivery, envelope, consumer, self._claims)
        return self._settlement.carry_out(effects, delivery, envelope, consumer)

    async def _end_unrun(
        self, effects: Effects, delivery: Delivery, envelope: Envelope, consumer: Consumer, claims: Claims
    ) -> None:
        handler = self._plan.find(delivery.message.topic)
        effects = await claims.unrun(effects, delivery, envelope, handler, self._terms)
        await self._settlement.carry_out(effects, delivery, envelope, consumer)

    def _begin(
        self, delivery: Delivery, envelope: Envelope, consumer: Consumer, now: float, heard: bool
    ) -> Work | Effects:
        """Admitted: find the handler and read the payload, or what to do instead."""
        handler = self._plan.find(delivery.message.topic)
        if self.unavailable:
            why = "; ".join(self.unavailable.values())
            return outcome.unavailable(delivery, envelope, why=why, again_in=PARKED, now=now)
        if handler is None:
            return self._unknown_topic(delivery, envelope, now)
        body, limit = delivery.message.body, self._max_body_bytes
        if len(body) > limit:
            return self._unreadable(delivery, envelope, MessageTooLarge(len(body), limit), "too_large", now)
        try:
            payload = handler.binding.read(body)
        except Exception as error:
            refusal = refusal_of(error)
            reason: outcome.Reason = "undecodable" if isinstance(refusal, CodecError) else "invalid"
            return self._unreadable(delivery, envelope, refusal, reason, now)
        return Work(delivery, envelope, handler, consumer, payload, now, heard)

    def _unreadable(
        self, delivery: Delivery, envelope: Envelope, error: Exception, reason: outcome.Reason, now: float
    ) -> Effects:
        self._telemetry.stats.failed += 1
        fault = Fault(reason, f"busline.{reason}", str(error), {})
        return outcome.final(delivery, envelope, fault, self._terms, now=now)

    def _unknown_topic(self, delivery: Delivery, envelope: Envelope, now: float) -> Effects:
        # A message from elsewhere may have no id that outlives a delivery, so it is known by what it says.
        message = delivery.message
        key = envelope.id if message.meta or message.correlation_id else f"{message.topic} {hash(message.body)}"
        first_seen = self._first_seen.setdefault(key, now)
        if len(self._first_seen) > REMEMBERED_UNKNOWN:
            self._first_seen.popitem(last=False)
        grace = self._services.settings.unknown_grace
        effects = outcome.unknown_topic(delivery, envelope, self._terms, first_seen=first_seen, now=now, grace=grace)
        if type(effects[0]) is not Release:
            del self._first_seen[key]
        return effects

    async def _attempt_claimed(self, work: Work, slot: SlotLike, claims: Claims) -> None:
        """As `_attempt`, if the message's idempotency key is ours; else do what became of the key."""
        instead = await claims.begin(work, slot, self._terms)
        if instead is None:
            await self._attempt(work, slot)
        else:
            work.over = True
            await self._settlement.carry_out(instead, work.delivery, work.envelope, work.consumer, work.held)
        if work.held is not None:
            await claims.end(work.held)

    def _attempt(self, work: Work, slot: SlotLike) -> Awaitable[None]:
        """Run until there is an outcome other than "once more, at once", and settle it. What never waits has run, and
        is about to be settled, when this returns."""
        if work.handler.options.ack == "early":
            return self._attempt_acked(work, slot)
        begun = self._start(work, slot)
        if not isinstance(begun, bytes):
            return self._go_on(work, slot, begun)
        effects = self._succeeded(work, begun)
        if work.settled or work.held is not None:
            return self._go_on(work, slot, effects)
        work.over = True
        return self._settlement.carry_out(effects, work.delivery, work.envelope, work.consumer)

    async def _attempt_acked(self, work: Work, slot: SlotLike) -> None:
        work.settle_by(EARLY_ACK)
        if await self._settlement.acked(work):
            await self._go_on(work, slot, self._start(work, slot))

    async def _go_on(self, work: Work, slot: SlotLike, begun: bytes | Effects | Awaitable[Effects]) -> None:
        """What `_attempt` is about, where it takes more than one step."""
        while True:
            if isinstance(begun, bytes):
                effects = self._succeeded(work, begun)
            else:
                effects = begun if isinstance(begun, tuple) else await begun
            if (again := _run_again(effects)) is None:
                break
            work.envelope, work.outbox = again.envelope, None
            if work.held is not None:
                await work.held.begin_again()
            begun = self._start(work, slot)
        work.over = True
        if work.settled:
            effects = self._left_to_do(work, effects)
        if work.held is not None:
            if work.result is None or work.requeue is not None:
                await work.held.undo()  # before anything else is written, which its locks could keep from happening
            effects = _with_claim(work, effects)
        await self._settlement.carry_out(effects, work.delivery, work.envelope, work.consumer, work.held)

    def _start(self, work: Work, slot: SlotLike) -> bytes | Effects | Awaitable[Effects]:
        """Begin one attempt: the result of what never waits and sends nothing, what comes of a failure, or what waits
        for either."""
        if work.heard:
            self._emit("event.started", work.delivery.message.topic, work.envelope, queue=work.delivery.queue)
        try:
            body = self._runner.begin(work, slot)
        except BaseException as error:
            return self._raised(work, slot, error)
        if work.outbox is None and isinstance(body, bytes):
            return body
        return self._wait(work, slot, body)

    async def _wait(self, work: Work, slot: SlotLike, body: bytes | Awaitable[bytes]) -> Effects:
        """For the handler, and for what it sent to leave."""
        try:
            body = body if isinstance(body, bytes) else await body
            if work.held is None and work.outbox is not None:
                await work.flush(self._services.transport)
        except BaseException as error:
            return self._raised(work, slot, error)
        return self._succeeded(work, body)

    def _raised(self, work: Work, slot: SlotLike, error: BaseException) -> Effects:
        if ends_task(error, slot.task):
            raise error
        return self._failed(work, error)

    def _succeeded(self, work: Work, body: bytes) -> Effects:
        if work.held is not None:
            work.result = body
        self._telemetry.stats.handled += 1
        if work.span is not None:
            self._end_span(work, "succeeded")
        if self._window is not None:
            self._record(self._window, failed=False)
        if work.heard:
            self._emit("event.succeeded", work.delivery.message.topic, work.envelope)
        return outcome.succeeded(work.delivery, body)

    def _failed(self, work: Work, error: BaseException) -> Effects:
        delivery, envelope, handler = work.delivery, work.envelope, work.handler
        calls = delivery.message.reply_to is not None and not isinstance(error, RetryLater)
        retry = handler.call_retry if calls else handler.job_retry
        if work.settled.startswith("ctx."):
            retry = NO_RETRY  # The handler has decided what becomes of the message.
        fault = work.fault = outcome.fault_of(error, self._services.errors.describe(error))
        effects = outcome.failed(delivery, envelope, error, fault, self._terms, retry=retry, now=self._now())
        if self._window is not None:
            self._record(self._window, failed=True)
        self._tell_failure(work, error, effects, retry.attempts)
        return effects

    def _tell_failure(self, work: Work, error: BaseException, effects: Effects, attempts: int) -> None:
        delivery, envelope = work.delivery, work.envelope
        again = next((e for e in effects if isinstance(e, Resend | RunAgain | Release)), None)
        if again is None:
            answered = delivery.message.reply_to is not None
            (self._telemetry.answered if answered else self._telemetry.failed)(delivery, envelope, error)
            kind = "event.failed"
        else:
            delay = again.message.delay if isinstance(again, Resend) else 0.0
            self._telemetry.retried(delivery, envelope, error, attempts, delay)
            kind = "event.retried"
        self._end_span(work, "failed" if again is None else "retried", error)
        name = type(error).__name__
        self._emit(kind, delivery.message.topic, envelope, error=name, message=text_of(error))

    def _end_span(self, work: Work, outcome: Outcome, error: BaseException | None = None) -> None:
        if work.span is not None:
            span, work.span = work.span, None
            if self._telemetry.observer is not None:
                self._telemetry.observer.ended(span, outcome, error)

    def _record(self, window: FailureWindow, *, failed: bool) -> None:
        if window.ended(self._now(), failed=failed):
            breaker = window.breaker
            why = f"at least {breaker.share:.0%} failed within {breaker.window:g} s"
            self._gate.close_for("breaker", why, breaker.pause)

    def _left_to_do(self, work: Work, effects: Effects) -> Effects:
        """What is left to do of `effects` for a message that something has settled already."""
        if work.requeue is not None:
            requeue, delay = work.requeue
            return outcome.nacked(
                work.delivery, work.envelope, self._terms, requeue=requeue, delay=delay, now=self._now()
            )
        if work.settled == OWN_ACK:
            return outcome.after_own_ack(effects)
        return outcome.after_early_ack(effects, work.delivery, work.envelope, now=self._now())

    async def abandoned(self, work: Work, why: Why) -> None:
        """The handler was cancelled; settle what that makes of its message."""
        if work.over and work.settled:
            return  # It was done and acked; only its caller may not have been told.
        work.over = True
        if work.held is not None:
            await work.held.undo()
        if why != "time_limit":
            self._end_span(work, "abandoned")
        if why == "lost":
            self._telemetry.lease_lost(work.delivery)
            await self._let_go(work)
            if self._telemetry.observer is not None:
                self._telemetry.observer.settled(work.delivery)
            return
        if why == "cancelled":
            self._telemetry.cancelled(work.delivery, work.envelope)
            effects = claiming.cancelled(work.delivery)
        elif why == "time_limit":
            limit = work.handler.options.time_limit or 0.0
            effects = self._failed(work, TimeLimitExceeded(limit))
            if again := _run_again(effects):  # the slot was cancelled, so "at once" is by a copy
                message = outcome.later(work.delivery, again.envelope, delay=0.0, now=self._now())
                effects = (Resend(message), outcome.ACK)
        else:
            effects = (Release(),)
        if work.settled:
            effects = self._left_to_do(work, effects)
        if work.held is not None and why != "cancelled":
            effects = _with_claim(work, effects)
        await self._settlement.carry_out(effects, work.delivery, work.envelope, work.consumer, work.held)
        if work.held is not None and self._claims is not None:
            await self._claims.end(work.held)

    async def _let_go(self, work: Work) -> None:
        """The message is elsewhere, and who has it may begin as soon as the key is free; but not while a thread of ours
        still works on it."""
        if work.held is None or self._claims is None:
            return
        await self._claims.end(work.held)
        if work.thread is None or not work.thread.left_behind:
            try:
                await work.held.let_go()
            except StoreUnavailable as error:  # then its lease ends
                self._telemetry.unsettled(work.delivery, error)


def _run_again(effects: Effects) -> RunAgain | None:
    first = effects[0] if effects else None
    return first if isinstance(first, RunAgain) else None


def _with_claim(work: Work, effects: Effects) -> Effects:
    """What was decided about the message, and what its claim is told of it."""
    if work.held is not None and work.held.lost:
        return tuple(effect for effect in effects if isinstance(effect, Release))
    if work.ack_again:
        effects = (*effects, outcome.ACK)
    if work.result is None or work.requeue is not None:
        return claiming.not_succeeded(effects, work.fault, work.envelope)
    outbox = work.outbox
    outgoing, departures = (outbox.pack(), outbox.departures) if outbox is not None else (b"", ())
    return claiming.succeeded(effects, work.result, outgoing, departures)
