"""What is done with a message that has an idempotency key: instead of running it, or beside what `outcome` decided.

The order that loses nothing: the outcome is recorded under the claim before anybody is told of it, and told before the
broker forgets the message. A dead letter comes before the record of the failure, so that a crash in between makes a
second letter and not none.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from busline.codec import compact, decode
from busline.errors import CodecError, IdempotencyConflict, IdempotencyMismatch, Undeliverable
from busline.idempotency import OnConflict
from busline.message import Delivery
from busline.outcome import (
    ACK,
    ACKED,
    Complete,
    DeadLetter,
    Effects,
    Fail,
    Fault,
    Leave,
    Leaving,
    LetGo,
    OnFailure,
    Pause,
    Release,
    Reply,
    Resend,
    Terms,
    final,
)
from busline.stores.base import ClaimResult, Completed, Failed, InProgress, Mismatch
from busline.structs import value
from busline.wire import Envelope, encode_error, reply_to

LONGEST_WAIT_OF_A_CALL = 1.0
"""Seconds after which a call asks again whether the other worker has ended."""
SHORTEST_WAIT = 0.05
"""Seconds: at the instant at which a lease ends it has not ended yet."""
TROUBLE = (1.0, 10.0)
"""First and longest pause of a queue whose store fails, seconds."""
CANCELLED = encode_error("busline.cancelled", "the job was cancelled", {})


@value
class Keyed:
    """A message and its key."""

    delivery: Delivery
    envelope: Envelope
    key: str
    """As the store knows it."""
    on_conflict: OnConflict


def instead(keyed: Keyed, found: ClaimResult, terms: Terms, *, now: float) -> Effects:
    """What to do with a message whose key could not be claimed."""
    message = keyed.delivery.message
    match found:
        case InProgress(seconds):
            return _elsewhere(keyed, seconds, terms, now)
        case Completed(result, outgoing):
            leave: Effects = (Leave(outgoing),) if outgoing else ()
            reply: Effects = (Reply(reply_to(message, "ok", result)),) if message.reply_to is not None else ()
            return (*leave, *reply, ACK)
        case Failed(error):
            return (Reply(reply_to(message, "error", error)), ACK) if message.reply_to is not None else ACKED
        case Mismatch():
            return _refused(keyed, IdempotencyMismatch(keyed.key), terms, now)
        case _:  # an orphan that could not be ended yet: somebody else is ending it
            return (Release(SHORTEST_WAIT),)


def _elsewhere(keyed: Keyed, seconds: float, terms: Terms, now: float) -> Effects:
    calls = keyed.delivery.message.reply_to is not None
    # Handed out again: its own earlier holder may have died a moment ago, and nobody else has the message.
    if keyed.on_conflict == "wait" or keyed.delivery.deliveries > 1:
        wait = min(seconds, LONGEST_WAIT_OF_A_CALL) if calls else seconds
        return (Release(wait + SHORTEST_WAIT),)
    if keyed.on_conflict == "raise" or calls:
        return _refused(keyed, IdempotencyConflict(keyed.key), terms, now)
    return ACKED


def _refused(keyed: Keyed, error: IdempotencyMismatch | IdempotencyConflict, terms: Terms, now: float) -> Effects:
    mismatch = isinstance(error, IdempotencyMismatch)
    kind = "busline.idempotency_mismatch" if mismatch else "busline.idempotency_conflict"
    fault = Fault("mismatch" if mismatch else "conflict", kind, str(error), {"key": keyed.key})
    return final(keyed.delivery, keyed.envelope, fault, terms, now=now, error=error)


def store_failed(pause: float) -> Effects:
    """Nothing runs without a record: the queue waits until the store is back."""
    return (Pause(pause), Release())


def succeeded(effects: Effects, result: bytes, outgoing: bytes, departures: Sequence[Leaving]) -> Effects:
    """The handler returned: record, then let leave what it sent, then what `effects` say."""
    leave: Effects = (Leave(outgoing, departures),) if outgoing else ()
    return (Complete(result, outgoing), *leave, *effects)


def cancelled(delivery: Delivery) -> Effects:
    """Somebody wanted the job cancelled: it is not run, or no further."""
    message = delivery.message
    reply: Effects = (Reply(reply_to(message, "error", CANCELLED)),) if message.reply_to is not None else ()
    return (Fail(CANCELLED, cancelled=True), *reply, ACK)


def not_succeeded(effects: Effects, fault: Fault | None, envelope: Envelope) -> Effects:
    """The handler failed or was not run; `effects` say what becomes of the message, this adds what of its claim."""
    sent = [effect for effect in effects if type(effect) is Resend]
    if sent or any(type(effect) is Release for effect in effects):
        return _given_up(effects, early=ACK not in effects and bool(sent))
    letters = [effect for effect in effects if isinstance(effect, OnFailure | DeadLetter)]
    rest = [effect for effect in effects if not isinstance(effect, OnFailure | DeadLetter)]
    return (*letters, Fail(error_of(effects, fault, envelope)), *rest)


def _given_up(effects: Effects, *, early: bool) -> Effects:
    """The claim goes before the next attempt can arrive and find it taken; but where the claim has the only copy of
    the message, it goes when the next attempt is safe at the broker."""
    if early:
        return (*effects, LetGo())
    first = next(place for place, effect in enumerate(effects) if isinstance(effect, Release | Resend))
    return (*effects[:first], LetGo(), *effects[first:])


def error_of(effects: Effects, fault: Fault | None, envelope: Envelope) -> bytes:
    """The error as the store keeps it: the body of an error reply."""
    for effect in effects:
        if isinstance(effect, DeadLetter):
            fault = effect.fault
    if fault is None:
        fault = Fault("failed", "busline.failed", "it failed", {})
    error = encode_error(fault.type, fault.message, dict(fault.details))
    if envelope.replay is None:
        return error
    # So that a duplicate of the letter that was sent back does not open the key once more.
    return compact(orjson.dumps({**decode(error), "replay": envelope.replay}))


def reopens(found: ClaimResult, envelope: Envelope) -> bool:
    """The key failed, and this is a dead letter that somebody has sent back since."""
    if not isinstance(found, Failed) or envelope.replay is None:
        return False
    try:
        error = decode(found.error)
    except CodecError:  # not of our making, so not of this sending either
        return True
    return not (isinstance(error, dict) and error.get("replay") == envelope.replay)


def orphaned(delivery: Delivery, envelope: Envelope, terms: Terms, *, now: float) -> Effects:
    """The worker of a message that was acked early has died."""
    text = "its worker ended while it ran, after the message was acked (ack='early')"
    fault = Fault("orphaned", "busline.orphaned", text, {})
    effects = final(delivery, envelope, fault, terms, now=now, error=Undeliverable("orphaned", text))
    return not_succeeded(tuple(effect for effect in effects if effect is not ACK), fault, envelope)
