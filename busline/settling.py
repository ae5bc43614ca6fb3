"""Carrying out what was decided about a message, in order; the first effect that fails stops the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from busline.binding import InvalidPayload
from busline.context import Context
from busline.driving import ends_task
from busline.errors import (
    BuslineError,
    CodecError,
    ConfigurationError,
    LeaseLost,
    MessageTooLarge,
    NoHandler,
    QueueNotFound,
    TransportError,
)
from busline.held import Held
from busline.message import Delivery, Limits, Message, ToQueue
from busline.observing import Observer
from busline.outbox import departure_of
from busline.outcome import (
    ACK,
    MESSAGE_LIMIT,
    Complete,
    DeadLetter,
    Drop,
    Effect,
    Effects,
    Fail,
    Fault,
    Leave,
    LetGo,
    OnFailure,
    Pause,
    Release,
    Reply,
    Resend,
    Terms,
    final,
    shorter_letters,
)
from busline.parcels import unpack
from busline.registry import QueuePlan
from busline.running import call_apart
from busline.services import Services
from busline.telemetry import log
from busline.transports.base import Consumer
from busline.wire import Envelope, encode_error, printable, reply_to, text_of
from busline.work import Work

RELEASE_AFTER_TROUBLE = 1.0
"""Seconds before a message that could not be settled is offered again."""
RELEASE_IF_TOO_LARGE = 600.0
"""The same for one that fits nowhere else, not even as it came: its queue is the one place that can keep it."""


def terms_of(plan: QueuePlan, services: Services) -> Terms:
    """What holds for the messages of this queue."""
    settings = services.settings
    return Terms(
        skew=0.0 if services.transport.shared_clock else settings.max_clock_skew,
        max_deliveries=settings.max_deliveries,
        message_ttl=plan.queue.message_ttl,
        dead_letter_ttl=plan.queue.dead_letter_ttl,
    )


class Settlement:
    """Settles the messages of one queue."""

    def __init__(
        self, plan: QueuePlan, terms: Terms, services: Services, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self.plan = plan
        """Of the queue."""
        self.terms = terms
        self._services = services
        self._transport = services.transport
        self._telemetry = services.telemetry
        self._now = services.clock.time
        self._pause = pause
        self.limits: Limits | None = None
        """What the queue can do, once it was attached."""

    async def acked(self, work: Work) -> bool:
        """Ack before running; False if the message is no longer ours and must not run."""
        try:
            await work.consumer.ack(work.delivery, confirm=True)
        except LeaseLost:
            if work.held is not None:
                return True  # The key is ours, so whoever has the message now will not run it.
            self._telemetry.lease_lost(work.delivery)
            return False
        except TransportError as error:
            if work.held is not None:
                work.ack_again = True
                return True
            await self._give_up(work.delivery, work.consumer, error)
            return False
        return True

    async def carry_out(
        self, effects: Effects, delivery: Delivery, envelope: Envelope, consumer: Consumer, held: Held | None = None
    ) -> None:
        """Every effect in turn. A transport or a store that fails leaves the message to be delivered again."""
        try:
            for effect in effects:
                if effect is ACK:
                    await consumer.ack(delivery)
                elif type(effect) is Reply and self._telemetry.observer is None:
                    # As `_answer`, of which each call would pay for the coroutine.
                    try:
                        delivered = await self._transport.reply(delivery.message.reply_to or "", effect.message)
                    except MessageTooLarge as error:
                        delivered = await self._say_too_large(delivery, error)
                    self._telemetry.stats.replies_to_nobody += not delivered
                elif held is not None and isinstance(effect, Complete | Fail | LetGo):
                    await _record(effect, held)
                elif type(effect) is Leave:
                    if (instead := await self._leave(effect, delivery, envelope)) is not None:
                        await self.carry_out(instead, delivery, envelope, consumer)
                        return
                else:
                    await self._perform(effect, delivery, envelope, consumer)
        except LeaseLost:
            self._telemetry.lease_lost(delivery)
        except BuslineError as error:
            await self._give_up(delivery, consumer, error)
        finally:
            if self._telemetry.observer is not None:
                self._telemetry.observer.settled(delivery)

    async def _perform(self, effect: Effect, delivery: Delivery, envelope: Envelope, consumer: Consumer) -> None:
        match effect:
            case Reply(message):
                await self._reply(delivery, message)
            case Resend(message):
                await self._resend(delivery, envelope, message, consumer)
            case DeadLetter(message, fault):
                await self._bury(delivery, envelope, message, fault)
            case OnFailure(error):
                await self._tell(delivery, envelope, error, consumer)
            case Release(delay):
                await self._release(delivery, envelope, consumer, delay)
            case Pause(seconds):
                await self._pause(seconds)
            case Drop():
                self._telemetry.dropped(delivery, envelope)

    async def _leave(self, effect: Leave, delivery: Delivery, envelope: Envelope) -> Effects | None:
        """None, or what to do if something that the handler sent can never leave: its result is recorded, so it is not
        run again, and its message tells of it as a dead letter."""
        departures = effect.departures or [
            departure_of(parcel, self._services.bus.job) for parcel in unpack(effect.outgoing)
        ]
        for departure in departures:
            try:
                await departure.leave(self._transport)
            except (NoHandler, QueueNotFound, MessageTooLarge, ConfigurationError) as error:
                fault = Fault(
                    "failed", "busline.undeliverable", f"it was done, and a message of it cannot leave: {error}", {}
                )
                return final(delivery, envelope, fault, self.terms, now=self._now(), error=error)
        return None

    async def settle_orphan(self, effects: Effects, delivery: Delivery, envelope: Envelope, held: Held) -> None:
        """Of a message that only its claim still has: what fails leaves it an orphan."""
        await self.carry_out(effects, delivery, envelope, NOBODY, held)

    async def _resend(self, delivery: Delivery, envelope: Envelope, message: Message, consumer: Consumer) -> None:
        if self.limits is not None and message.priority > self.limits.priorities:
            # Its sender took the priority from elsewhere, and the broker counts it as the highest that it knows.
            message = replace(message, priority=self.limits.priorities)
        try:
            await self._transport.send(ToQueue(delivery.queue), message)
        except MessageTooLarge as error:
            # The next attempt says a little more than this one. What cannot be sent again has come to its end.
            fault = Fault("too_large", "busline.too_large", f"it cannot be tried again: {error}", {})
            for effect in final(delivery, envelope, fault, self.terms, now=self._now(), error=error):
                if effect is not ACK:
                    await self._perform(effect, delivery, envelope, consumer)

    async def _release(self, delivery: Delivery, envelope: Envelope, consumer: Consumer, delay: float) -> None:
        self._telemetry.released(delivery)
        if self.limits is None or delay <= self.limits.max_release_delay:
            await consumer.release(delivery, delay=delay)
            return
        copy = replace(delivery.message, delay=delay, meta=envelope.encode())
        await self._transport.send(ToQueue(delivery.queue), copy)
        await consumer.ack(delivery)

    def _reply(self, delivery: Delivery, message: Message) -> Awaitable[bool]:
        observer = self._telemetry.observer
        return (
            self._answer(delivery, message) if observer is None else self._answer_observed(delivery, message, observer)
        )

    async def _answer_observed(self, delivery: Delivery, message: Message, observer: Observer) -> bool:
        began, delivered = observer.replying(delivery, message), False
        try:
            delivered = await self._answer(delivery, message)
        finally:
            observer.replied(began, delivered=delivered)
        return delivered

    async def _answer(self, delivery: Delivery, message: Message) -> bool:
        try:
            delivered = await self._transport.reply(delivery.message.reply_to or "", message)
        except MessageTooLarge as error:
            delivered = await self._say_too_large(delivery, error)
        self._telemetry.stats.replies_to_nobody += not delivered
        return delivered

    async def _say_too_large(self, delivery: Delivery, error: MessageTooLarge) -> bool:
        text = f"the result does not fit into a reply: {error}"
        body = encode_error("busline.too_large", text, {"size": error.size, "limit": error.limit})
        return await self._transport.reply(delivery.message.reply_to or "", reply_to(delivery.message, "error", body))

    async def _bury(self, delivery: Delivery, envelope: Envelope, message: Message, fault: Fault) -> None:
        dead = self.plan.dead_letters
        if dead is not None:
            await self._keep(dead.name, delivery, envelope, message, fault)
        where = dead.name if dead else "nowhere, as the queue is ephemeral"
        self._telemetry.dead_lettered(delivery, envelope, fault, where)
        text = printable(fault.message[:MESSAGE_LIMIT])
        facts = {"reason": fault.reason, "type": printable(fault.type), "message": text, "queue": delivery.queue}
        first_at = envelope.sent_at
        self._services.events.emit(
            "fault", delivery.message.topic, envelope, **facts, dead_letter=where, first_at=first_at
        )

    async def _keep(self, queue: str, delivery: Delivery, envelope: Envelope, message: Message, fault: Fault) -> None:
        """With as much of its story as fits beside a body that is close to the broker's limit."""
        try:
            await self._transport.send(ToQueue(queue), message)
            return
        except MessageTooLarge as error:
            shorter = shorter_letters(delivery, envelope, fault, self.terms, now=self._now())
            for letter in shorter[:-1]:
                try:
                    await self._transport.send(ToQueue(queue), letter)
                    break
                except MessageTooLarge:
                    continue
            else:
                await self._transport.send(ToQueue(queue), shorter[-1])
            self._telemetry.shortened(delivery, envelope, error)

    async def _tell(self, delivery: Delivery, envelope: Envelope, error: BaseException, consumer: Consumer) -> None:
        """Call the handler's `on_failure`; what it sends through its context leaves when it returns."""
        handler = self.plan.find(delivery.message.topic)
        if handler is None or handler.on_failure is None:
            return
        binding, task = handler.on_failure, asyncio.current_task()
        work = Work(delivery, envelope, handler, consumer)
        work.settle_by("its final failure")
        context = Context(self._services.bus, delivery, envelope, work)
        try:
            arguments = binding.arguments(binding.parse(delivery.message.body), context, error)
            await call_apart(partial(binding.function, **arguments), context, binding.is_async, self._services.threads)
            await work.flush(self._transport)
        except (InvalidPayload, CodecError) as unreadable:
            self._log_failure(delivery, envelope, "was not called, the payload does not fit it", unreadable)
        except BaseException as failure:  # its failure must not lose the message whose failure it was told of
            if ends_task(failure, task):
                raise
            self._log_failure(delivery, envelope, "failed", failure)

    def _log_failure(self, delivery: Delivery, envelope: Envelope, what: str, error: BaseException) -> None:
        log.error(
            "on_failure of %s %s for %s: %s",
            *(delivery.message.topic, what, envelope.id, text_of(error)),
            extra={"event": "on_failure_failed", "id": envelope.id, "topic": delivery.message.topic},
            exc_info=error,
        )

    async def _give_up(self, delivery: Delivery, consumer: Consumer, error: BuslineError) -> None:
        self._telemetry.unsettled(delivery, error)
        wanted = RELEASE_IF_TOO_LARGE if isinstance(error, MessageTooLarge) else RELEASE_AFTER_TROUBLE
        try:
            longest = self.limits.max_release_delay if self.limits else 0.0
            await consumer.release(delivery, delay=min(wanted, longest))
        except BuslineError as again:
            self._telemetry.unsettled(delivery, again)


async def _record(effect: Complete | Fail | LetGo, held: Held) -> None:
    match effect:
        case Complete(result, outgoing):
            await held.complete(result, outgoing)
        case Fail(error, cancelled):
            await held.fail(error, cancelled=cancelled)
        case LetGo():
            await held.let_go()


class _Nobody:
    """The consumer of a message that no broker knows any more."""

    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        return ()

    async def resize(self, slots: int) -> Sequence[Delivery]:
        return ()

    async def ack(self, *deliveries: Delivery, confirm: bool = False) -> None:
        """Nobody has to be told."""

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        """Nobody could take it back."""

    async def extend(self, *deliveries: Delivery, lease: float) -> Sequence[Delivery]:
        return ()

    async def aclose(self) -> None:
        """There is nothing to close."""


NOBODY: Consumer = _Nobody()
