"""What is done with a delivery: two decisions, made without an await, carried out in order by the worker.

`admit` decides before the handler runs, `succeeded` and `failed` after it. Each returns effects; the first effect that
fails stops the rest, so whatever must not be lost comes before the ack that lets the broker forget.

A call that fails is answered, not kept: its caller has the error. It becomes a dead letter as well only where somebody
should look at it: it was rejected, could not be read, or keeps killing its workers.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from busline.errors import Reject, RetryLater, Undeliverable
from busline.message import Delivery, Message
from busline.retry import END, Retry, Verdict
from busline.structs import struct, value
from busline.wire import Envelope, encode_error, new_id, printable, reply_to

Reason = (
    Literal["undecodable", "too_large", "invalid", "unknown_topic", "expired", "failed", "rejected", "poison"]
    | Literal["mismatch", "conflict", "orphaned"]
)
"""Why a message is a dead letter."""

TRACEBACK_LIMIT = 8_000
"""Characters of a traceback that are kept; its end says more than its beginning."""
MESSAGE_LIMIT = 2_000
"""Characters of an error's text that are kept with a dead letter, which has to fit into the broker's limit."""
UNKNOWN_DELAY = (0.02, 0.25)
"""Shortest and longest pause before a message of an unknown topic is offered to the sibling workers again, seconds."""


@value
class Fault:
    """A failure in words: what a caller is told and what stands on a dead letter."""

    reason: Reason
    type: str
    message: str
    details: Mapping[str, Any]
    traceback: str = ""


@value
class Ack:
    """Let the broker forget the delivery."""


@value
class Release:
    """Give the delivery back; not a failure."""

    delay: float = 0.0


@struct
class Reply:
    """Answer the caller. Not frozen, as each call makes one, and a frozen one costs twice as much to make."""

    message: Message


@value
class Resend:
    """Send this to the same queue: the next attempt, or the same one later."""

    message: Message


@value
class RunAgain:
    """The next attempt, at once and in the same slot."""

    envelope: Envelope


@value
class Pause:
    """Stop the queue in this process for so many seconds."""

    seconds: float


@value
class OnFailure:
    """Tell the handler's `on_failure`; whatever that does, the effects behind it follow."""

    error: BaseException


@value
class DeadLetter:
    """Send it to the queue's dead letters, and tell those who subscribe to faults."""

    message: Message
    fault: Fault


@value
class Drop:
    """An expired call: nobody waits for it. Counted."""


@value
class Complete:
    """The store keeps the result, and what the handler sent, under the claim that is held."""

    result: bytes
    outgoing: bytes


@value
class Fail:
    """The store keeps the error under the claim that is held: there is no further attempt."""

    error: bytes
    cancelled: bool = False


@value
class LetGo:
    """The claim that is held is given up: somebody tries again."""


class Leaving(Protocol):
    """A message that is ready to leave."""

    def leave(self, transport: Any) -> Awaitable[object]: ...


@value
class Leave:
    """Everything that the handler sent leaves."""

    outgoing: bytes
    """Packed as the store keeps it."""
    departures: Sequence[Leaving] = ()
    """The same, where the handler has only just sent it."""


Effect = (
    Ack | Release | Reply | Resend | RunAgain | Pause | OnFailure | DeadLetter | Drop | Complete | Fail | LetGo | Leave
)
Effects = tuple[Effect, ...]
ACK = Ack()
ACKED: Effects = (ACK,)


@value
class Terms:
    """What a queue's owner has said about its messages, and what the bus allows. Times are seconds."""

    skew: float = 0.0
    """How far the clocks of sender and worker may disagree."""
    max_deliveries: int = 20
    message_ttl: float | None = None
    dead_letter_ttl: float | None = None


def admit(delivery: Delivery, envelope: Envelope, terms: Terms, *, now: float) -> Effects | None:
    """None: run it. Otherwise what to do instead."""
    if delivery.deliveries > terms.max_deliveries:
        text = f"handed out {delivery.deliveries} times without being settled: it may be killing its workers"
        return _undeliverable(delivery, envelope, terms, "poison", text, now)
    if envelope.deadline is not None and now > envelope.deadline + terms.skew:
        return (Drop(), ACK)
    expires_at = _expiry(envelope, terms)
    if expires_at is not None and now > expires_at + terms.skew:
        text = f"its time to live ended {now - expires_at:.1f} s before it could start"
        return _undeliverable(delivery, envelope, terms, "expired", text, now)
    return None


def _expiry(envelope: Envelope, terms: Terms) -> float | None:
    """The sender's ttl counts from sending, the queue's from the instant at which it could first be delivered."""
    if terms.message_ttl is None:
        return envelope.expires_at
    queues = (envelope.due_at or envelope.sent_at) + terms.message_ttl
    return queues if envelope.expires_at is None else min(queues, envelope.expires_at)


def _undeliverable(
    delivery: Delivery, envelope: Envelope, terms: Terms, reason: Reason, text: str, now: float
) -> Effects:
    fault = Fault(reason, f"busline.{reason}", text, {})
    return final(delivery, envelope, fault, terms, now=now, error=Undeliverable(reason, text))


def unknown_topic(
    delivery: Delivery, envelope: Envelope, terms: Terms, *, first_seen: float, now: float, grace: float
) -> Effects:
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
    return final(delivery, envelope, Fault("unknown_topic", "busline.no_handler", text, {}), terms, now=now)


def unavailable(delivery: Delivery, envelope: Envelope, *, why: str, again_in: float, now: float) -> Effects:
    """The queue answers that it cannot work now: a caller learns it at once, a job waits as a delayed copy of the
    same attempt."""
    message = delivery.message
    if message.reply_to is not None:
        return (Reply(reply_to(message, "error", encode_error("busline.unavailable", why, {}))), ACK)
    waiting = replace(envelope, due_at=now + again_in)
    return (Resend(replace(message, meta=waiting.encode(), delay=again_in)), ACK)


def succeeded(delivery: Delivery, body: bytes) -> Effects:
    """The handler returned; `body` is its result's JSON."""
    message = delivery.message
    if message.reply_to is None:
        return ACKED
    return (Reply(reply_to(message, "ok", body)), ACK)


def failed(
    delivery: Delivery,
    envelope: Envelope,
    error: BaseException,
    fault: Fault,
    terms: Terms,
    *,
    retry: Retry,
    now: float,
) -> Effects:
    """The handler raised: the next attempt if the policy has one that the caller would live to see, else the end."""
    verdict = _verdict(envelope, error, retry)
    too_late = envelope.deadline is not None and now + verdict.delay >= envelope.deadline
    pause: Effects = (Pause(verdict.delay),) if verdict.action == "pause" else ()
    if verdict.action == "end" or too_late:
        return (*pause, *final(delivery, envelope, fault, terms, now=now, error=error))
    if verdict.action == "pause":
        return (*pause, Release())
    again = envelope.next_attempt(now + verdict.delay)
    if verdict.action == "now":
        return (RunAgain(again),)
    return (Resend(replace(delivery.message, meta=again.encode(), delay=verdict.delay)), ACK)


def _verdict(envelope: Envelope, error: BaseException, retry: Retry) -> Verdict:
    if isinstance(error, Reject):
        return END
    if isinstance(error, RetryLater):
        return Verdict("later", error.delay) if envelope.attempt < retry.attempts else END
    return retry.verdict(envelope.attempt, error)


def final(
    delivery: Delivery,
    envelope: Envelope,
    fault: Fault,
    terms: Terms,
    *,
    now: float,
    error: BaseException | None = None,
) -> Effects:
    """No further attempt: a caller gets its error, anything else is kept as a dead letter; `error` is for
    `on_failure`."""
    message = delivery.message
    effects: list[Effect] = []
    if message.reply_to is not None:
        body = encode_error(fault.type, fault.message, dict(fault.details))
        effects.append(Reply(reply_to(message, "error", body)))
    if error is not None:
        effects.append(OnFailure(error))
    if message.reply_to is None or fault.reason in ("rejected", "undecodable", "poison"):
        effects.append(DeadLetter(dead_letter(delivery, envelope, fault, terms, now), fault))
    return (*effects, ACK)


def is_final(effects: Effects) -> bool:
    """The message comes to its end without having run, and somebody may want to know."""
    return any(isinstance(effect, DeadLetter | Reply) for effect in effects)


def nacked(delivery: Delivery, envelope: Envelope, terms: Terms, *, requeue: bool, delay: float, now: float) -> Effects:
    """The handler gave the message back (`ctx.nack`), or to the dead letters with `requeue=False`."""
    if not requeue:
        fault = Fault("rejected", "busline.rejected", "nacked", {})
        return final(delivery, envelope, fault, terms, now=now, error=Reject("nacked"))
    return (Release(delay),)


def after_early_ack(effects: Effects, delivery: Delivery, envelope: Envelope, *, now: float) -> Effects:
    """The same effects for a message that was acked before it ran: what would be given back is sent again."""
    return tuple(
        Resend(later(delivery, envelope, delay=effect.delay, now=now)) if isinstance(effect, Release) else effect
        for effect in effects
        if effect is not ACK
    )


def after_own_ack(effects: Effects) -> Effects:
    """What is left to do when the handler had acked by itself: its caller is answered, nothing is sent again."""
    return tuple(effect for effect in effects if isinstance(effect, Reply | OnFailure))


def later(delivery: Delivery, envelope: Envelope, *, delay: float, now: float) -> Message:
    """A copy of the same attempt that can be delivered after `delay` seconds."""
    return replace(delivery.message, meta=replace(envelope, due_at=now + delay).encode(), delay=delay)


def shorter_letters(
    delivery: Delivery, envelope: Envelope, fault: Fault, terms: Terms, *, now: float
) -> tuple[Message, ...]:
    """The dead letter with less and less of its story, for a body that is close to the broker's limit: without the
    traceback, without the error's text, without any story, and at last with the metadata that it came with."""
    silent = replace(fault, traceback="", message="")
    without_text = dead_letter(delivery, envelope, silent, terms, now)
    return (
        dead_letter(delivery, envelope, replace(fault, traceback=""), terms, now),
        without_text,
        replace(without_text, meta=envelope.dead({}).encode()),
        replace(without_text, meta=delivery.message.meta),
    )


def dead_letter(delivery: Delivery, envelope: Envelope, fault: Fault, terms: Terms, now: float) -> Message:
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
        "priority": delivery.message.priority or "",
    }
    meta = envelope.dead({key: value for key, value in failure.items() if value != ""}).encode()
    ttl = terms.dead_letter_ttl
    return replace(
        delivery.message,
        meta=meta,
        reply_to=None,
        correlation_id=None,
        delay=0.0,
        ttl=ttl,
        expendable=ttl is not None,
        priority=0,
    )


def replayed(letter: Message, envelope: Envelope, *, now: float) -> tuple[str, Message]:
    """The queue that a dead letter came from, and the message as it goes back there: a first attempt, same id.

    Whatever its queue says of times to live counts from `now`. The queue is "" where the letter doesn't say.
    """
    failure = envelope.failure or {}
    anew = replace(envelope, attempt=1, failure=None, due_at=now, expires_at=None, replay=new_id())
    priority = failure.get("priority")
    message = replace(
        letter,
        meta=anew.encode(),
        ttl=None,
        expendable=False,
        priority=priority if isinstance(priority, int) else 0,
    )
    return str(failure.get("queue", "")), message


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


_OURS = (
    *("busline.handling", "busline.running", "busline.driving", "busline.executors", "busline.binding"),
    *("busline.claims", "busline.injection", "fast_depends."),
    *("anyio.", "concurrent."),
)
