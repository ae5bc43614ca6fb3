"""What is done with a delivery: two decisions, made without an await, carried out in order by the worker.

`admit` decides before the handler runs, `succeeded` and `failed` after it. Each returns effects; the first effect that
fails stops the rest, so whatever must not be lost comes before the ack that lets the broker forget.

A call that fails is answered, not kept: its caller has the error. It becomes a dead letter as well only where somebody
should look at it: it was rejected, could not be read, or keeps killing its workers.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from busline.errors import Reject, RetryLater
from busline.message import Delivery, Message
from busline.retry import Retry
from busline.wire import Envelope, encode_error, printable, reply_to

Reason = Literal["undecodable", "too_large", "invalid", "unknown_topic", "expired", "failed", "rejected", "poison"]
"""Why a message is a dead letter."""

TRACEBACK_LIMIT = 8_000
"""Characters of a traceback that are kept; its end says more than its beginning."""
MESSAGE_LIMIT = 2_000
"""Characters of an error's text that are kept with a dead letter, which has to fit into the broker's limit."""
UNKNOWN_DELAY = (0.02, 0.25)
"""Shortest and longest pause before a message of an unknown topic is offered to the sibling workers again, seconds."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure in words: what a caller is told and what stands on a dead letter."""

    reason: Reason
    type: str
    message: str
    details: Mapping[str, Any]
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """Let the broker forget the delivery."""


@dataclass(frozen=True, slots=True)
class Release:
    """Give the delivery back; not a failure."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the caller."""

    message: Message


@dataclass(frozen=True, slots=True)
class Resend:
    """Send the next attempt to the same queue."""

    message: Message
    error: BaseException


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Send it to the queue's dead letters."""

    message: Message
    fault: Fault


@dataclass(frozen=True, slots=True)
class Drop:
    """An expired call: nobody waits for it. Counted."""


Effect = Ack | Release | Reply | Resend | DeadLetter | Drop
ACK = Ack()
ACKED: tuple[Effect, ...] = (ACK,)


def admit(
    delivery: Delivery, envelope: Envelope, *, now: float, skew: float, max_deliveries: int
) -> tuple[Effect, ...] | None:
    """None: run it. Otherwise what to do instead. `skew` is how far clocks may disagree, seconds."""
    if delivery.deliveries > max_deliveries:
        text = f"handed out {delivery.deliveries} times without being settled: it may be killing its workers"
        return final(delivery, envelope, Fault("poison", "busline.poison", text, {}), now=now)
    if envelope.deadline is not None and now > envelope.deadline + skew:
        return (Drop(), ACK)
    if envelope.expires_at is not None and now > envelope.expires_at + skew:
        text = f"its ttl passed {now - envelope.expires_at:.1f} s before it could start"
        return final(delivery, envelope, Fault("expired", "busline.expired", text, {}), now=now)
    return None


def unknown_topic(
    delivery: Delivery, envelope: Envelope, *, first_seen: float, now: float, grace: float
) -> tuple[Effect, ...]:
    """No handler here, but a sibling may have one: offer it again, a little later each time, until the grace ends.

    A call may spend at most half of what its deadline left when it was first seen.
    """
    if envelope.deadline is not None:
        grace = min(grace, (envelope.deadline - first_seen) / 2)
    waited = now - first_seen
    if waited < grace:
        shortest, longest = UNKNOWN_DELAY
        return (Release(min(max(waited / 2, shortest), longest)),)
    text = f"no handler for topic {delivery.message.topic!r} on queue {delivery.queue!r}"
    return final(delivery, envelope, Fault("unknown_topic", "busline.no_handler", text, {}), now=now)


def succeeded(delivery: Delivery, body: bytes) -> tuple[Effect, ...]:
    """The handler returned; `body` is its result's JSON."""
    message = delivery.message
    if message.reply_to is None:
        return ACKED
    return (Reply(reply_to(message, "ok", body)), ACK)


def failed(
    delivery: Delivery, envelope: Envelope, error: BaseException, fault: Fault, *, retry: Retry, now: float
) -> tuple[Effect, ...]:
    """The handler raised: the next attempt if the policy has one that the caller would live to see, else the end."""
    delay = _retry_delay(envelope, error, retry)
    if delay is None or (envelope.deadline is not None and now + delay >= envelope.deadline):
        return final(delivery, envelope, fault, now=now)
    again = replace(delivery.message, meta=envelope.next_attempt().encode(), delay=delay)
    return (Resend(again, error), ACK)


def _retry_delay(envelope: Envelope, error: BaseException, retry: Retry) -> float | None:
    if isinstance(error, Reject):
        return None
    if isinstance(error, RetryLater):
        return error.delay if envelope.attempt <= retry.limit else None
    return retry.next_delay(envelope.attempt, error)


def final(delivery: Delivery, envelope: Envelope, fault: Fault, *, now: float) -> tuple[Effect, ...]:
    """No further attempt: a caller gets its error, anything else is kept as a dead letter."""
    message = delivery.message
    effects: list[Effect] = []
    if message.reply_to is not None:
        body = encode_error(fault.type, fault.message, dict(fault.details))
        effects.append(Reply(reply_to(message, "error", body)))
    if message.reply_to is None or fault.reason in ("rejected", "undecodable", "poison"):
        effects.append(DeadLetter(dead_letter(delivery, envelope, fault, now), fault))
    return (*effects, ACK)


def dead_letter(delivery: Delivery, envelope: Envelope, fault: Fault, now: float) -> Message:
    """The message as it is kept: same id, topic, headers and body, with the story of its failure."""
    failure = {
        "reason": fault.reason,
        "type": printable(fault.type),
        "message": printable(fault.message[:MESSAGE_LIMIT]),
        "traceback": printable(fault.traceback[-TRACEBACK_LIMIT:]),
        "attempts": envelope.attempt,
        "first_at": envelope.sent_at,
        "last_at": now,
        "queue": delivery.queue,
        "topic": delivery.message.topic,
    }
    meta = envelope.dead({key: value for key, value in failure.items() if value != ""}).encode()
    return replace(delivery.message, meta=meta, reply_to=None, correlation_id=None, delay=0.0, ttl=None, priority=0)


def fault_of(error: BaseException, described: tuple[str, str, dict[str, Any]]) -> Fault:
    """The fault that an exception of a handler amounts to; `described` is how it travels."""
    kind, text, details = described
    if isinstance(error, Reject):
        return Fault("rejected", "busline.rejected", text, {})
    return Fault("failed", kind, text, details, _traceback_of(error))


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(without_our_frames(error)))
    except Exception as fault:  # it asks the exception for its notes and more, which are somebody else's code
        return f"(its traceback cannot be had: {fault.__class__.__name__})"


def without_our_frames(error: BaseException) -> BaseException:
    """The same exception, its traceback beginning where the user's code does."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
        trace = trace.tb_next
    return error.with_traceback(trace or error.__traceback__)


_OURS = ("busline.handling", "busline.binding", "anyio.")
