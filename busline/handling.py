"""One delivery from receipt to settlement: decide, run, decide, carry out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context as Variables
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any

from anyio import CapacityLimiter, to_thread

from busline import outcome
from busline.binding import InvalidPayload
from busline.clock import Clock
from busline.codec import NULL, encode
from busline.context import CURRENT, Context, Verbs
from busline.errors import CodecError, LeaseLost, MessageTooLarge, RetryLater, TransportError
from busline.message import Delivery, Message, ToQueue
from busline.outcome import ACK, DeadLetter, Effect, Fault, Release, Reply, Resend
from busline.registry import ErrorRegistry, Handler, QueuePlan
from busline.telemetry import Telemetry
from busline.transports.base import Consumer, Transport
from busline.wheel import Wheel
from busline.wire import Envelope, decode_envelope, encode_error, new_id, reply_to

REMEMBERED_UNKNOWN = 10_000
"""Messages of unknown topics whose first sight is remembered; beyond, the oldest start their grace anew."""
RELEASE_AFTER_TROUBLE = 1.0
"""Seconds before a message that could not be settled is offered again."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The bus's own limits, as given to its constructor."""

    max_body_bytes: int
    max_deliveries: int
    unknown_grace: float
    max_clock_skew: float


@dataclass(slots=True, eq=False)
class Services:
    """What handling a message takes, shared by all queues of a worker."""

    bus: Verbs
    transport: Transport
    clock: Clock
    errors: ErrorRegistry
    telemetry: Telemetry
    settings: Settings
    notices: Wheel[Delivery]
    """Running calls whose callers should be told, after a while, that they have been started."""
    threads: CapacityLimiter


class Handling:
    """Handles the deliveries of one queue, several at a time, each in the slot's own task."""

    def __init__(self, plan: QueuePlan, services: Services) -> None:
        self._plan = plan
        self._services = services
        self._settings = services.settings
        self._now = services.clock.time
        self._telemetry = services.telemetry
        self._first_seen: OrderedDict[str, float] = OrderedDict()
        self._skew = 0.0 if services.transport.shared_clock else services.settings.max_clock_skew

    async def handle(self, delivery: Delivery, consumer: Consumer) -> None:
        """From receipt to settlement. Raises only what cancels the slot."""
        now = self._now()
        message = delivery.message
        try:
            envelope = decode_envelope(message, now)
        except CodecError as error:
            envelope = Envelope(new_id(), now)
            effects = self._unreadable(delivery, envelope, error, "undecodable", now)
        else:
            effects = await self._decide(delivery, envelope, now)
        try:
            for effect in effects:
                if effect is ACK:
                    await consumer.ack(delivery)
                else:
                    await self._perform(effect, delivery, envelope, consumer)
        except LeaseLost:
            self._telemetry.lease_lost(delivery)
        except TransportError as error:
            await self._give_up(delivery, consumer, error)

    async def _decide(self, delivery: Delivery, envelope: Envelope, now: float) -> tuple[Effect, ...]:
        settings = self._settings
        effects = outcome.admit(delivery, envelope, now=now, skew=self._skew, max_deliveries=settings.max_deliveries)
        if effects is not None:
            return effects
        message = delivery.message
        handler = self._plan.find(message.topic)
        if handler is None:
            return self._unknown_topic(delivery, envelope, now)
        if len(message.body) > settings.max_body_bytes:
            too_large = MessageTooLarge(len(message.body), settings.max_body_bytes)
            return self._unreadable(delivery, envelope, too_large, "too_large", now)
        try:
            payload = handler.binding.parse(message.body)
        except InvalidPayload as error:
            return self._unreadable(delivery, envelope, error, "invalid", now)
        except CodecError as error:
            return self._unreadable(delivery, envelope, error, "undecodable", now)
        return await self._run(handler, payload, delivery, envelope)

    def _unreadable(
        self, delivery: Delivery, envelope: Envelope, error: Exception, reason: outcome.Reason, now: float
    ) -> tuple[Effect, ...]:
        self._telemetry.stats.failed += 1
        fault = Fault(reason, f"busline.{reason}", str(error), {})
        return outcome.final(delivery, envelope, fault, now=now)

    def _unknown_topic(self, delivery: Delivery, envelope: Envelope, now: float) -> tuple[Effect, ...]:
        # A message from elsewhere may have no id that outlives a delivery, so it is known by what it says.
        message = delivery.message
        key = envelope.id if message.meta or message.correlation_id else f"{message.topic} {hash(message.body)}"
        first_seen = self._first_seen.setdefault(key, now)
        if len(self._first_seen) > REMEMBERED_UNKNOWN:
            self._first_seen.popitem(last=False)
        effects = outcome.unknown_topic(
            delivery, envelope, first_seen=first_seen, now=now, grace=self._settings.unknown_grace
        )
        if type(effects[0]) is not Release:
            del self._first_seen[key]
        return effects

    async def _run(self, handler: Handler, payload: Any, delivery: Delivery, envelope: Envelope) -> tuple[Effect, ...]:
        context = Context(self._services.bus, delivery, envelope)
        ticket = self._announce_later(delivery, envelope)
        try:
            result = await self._invoke(handler, payload, context)
            body = NULL if delivery.message.reply_to is None else encode(result)
        except BaseException as error:
            # A handler may raise anything; a CancelledError is its own unless this very task is being cancelled.
            if isinstance(error, asyncio.CancelledError) and _being_cancelled():
                raise
            return self._failed(handler, delivery, envelope, error)
        finally:
            if ticket:
                self._services.notices.discard(delivery, ticket)
        self._telemetry.stats.handled += 1
        return outcome.succeeded(delivery, body)

    def _announce_later(self, delivery: Delivery, envelope: Envelope) -> int:
        if delivery.message.reply_to is None or envelope.deadline is None:
            return 0
        now = self._now()
        return self._services.notices.add(delivery, now + min(1.0, (envelope.deadline - now) / 2))

    async def _invoke(self, handler: Handler, payload: Any, context: Context) -> Any:
        # Each message has context variables of its own: what one handler sets, the slot's next one must not see.
        variables = copy_context()
        variables.run(CURRENT.set, context)
        call = partial(variables.run, handler.binding.invoke, payload, context)
        if handler.binding.is_async:
            result = call()
        else:
            result = await to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._services.threads)
        if isawaitable(result):  # also of a plain function, whose work would otherwise be lost without a word
            result = await Isolated(variables, result if isinstance(result, CoroutineType) else _awaited(result))
        return result

    def _failed(
        self, handler: Handler, delivery: Delivery, envelope: Envelope, error: BaseException
    ) -> tuple[Effect, ...]:
        calls = delivery.message.reply_to is not None and not isinstance(error, RetryLater)
        retry = handler.call_retry if calls else handler.job_retry
        fault = outcome.fault_of(error, self._services.errors.describe(error))
        effects = outcome.failed(delivery, envelope, error, fault, retry=retry, now=self._now())
        first = effects[0]
        if type(first) is Resend:
            self._telemetry.retried(delivery, envelope, error, retry.limit, first.message.delay)
        elif type(first) is Reply:
            self._telemetry.answered(delivery, envelope, error)
        else:
            self._telemetry.failed(delivery, envelope, error)
        return effects

    async def _perform(self, effect: Effect, delivery: Delivery, envelope: Envelope, consumer: Consumer) -> None:
        match effect:
            case Reply(message):
                await self._reply(delivery, message)
            case Resend(message):
                await self._services.transport.send(ToQueue(delivery.queue), message)
            case DeadLetter(message, fault):
                await self._bury(delivery, envelope, message, fault)
            case Release(delay):
                self._telemetry.stats.released += 1
                await consumer.release(delivery, delay=delay)
            case outcome.Drop():
                self._telemetry.stats.expired_calls += 1

    async def _reply(self, delivery: Delivery, message: Message) -> None:
        transport, address = self._services.transport, delivery.message.reply_to or ""
        try:
            delivered = await transport.reply(address, message)
        except MessageTooLarge as error:
            text = f"the result does not fit into a reply: {error}"
            body = encode_error("busline.too_large", text, {"size": error.size, "limit": error.limit})
            delivered = await transport.reply(address, reply_to(delivery.message, "error", body))
        if not delivered:
            self._telemetry.stats.replies_to_nobody += 1

    async def _bury(self, delivery: Delivery, envelope: Envelope, message: Message, fault: Fault) -> None:
        dead = self._plan.dead_letters
        if dead is not None:
            await self._services.transport.send(ToQueue(dead.name), message)
        where = dead.name if dead else "nowhere, as the queue is ephemeral"
        self._telemetry.dead_lettered(delivery, envelope, fault, where)

    async def _give_up(self, delivery: Delivery, consumer: Consumer, error: TransportError) -> None:
        self._telemetry.unsettled(delivery, error)
        try:
            await consumer.release(delivery, delay=RELEASE_AFTER_TROUBLE)
        except TransportError as again:
            self._telemetry.unsettled(delivery, again)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class Isolated(Awaitable[Any]):
    """Awaits a coroutine in the current task, but in context variables of its own. A task would cost 8 µs more."""

    __slots__ = ("_coroutine", "_run")

    def __init__(self, variables: Variables, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._run: Callable[..., Any] = variables.run
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        run, send, throw = self._run, self._coroutine.send, self._coroutine.throw
        step, argument = send, None
        while True:
            try:
                awaited = run(step, argument)
            except StopIteration as stop:
                return stop.value
            try:
                argument = yield awaited
                step = send
            except GeneratorExit:
                run(self._coroutine.close)
                raise
            except BaseException as error:
                step, argument = throw, error
