"""What is done with a message that has a key, decided without a store."""

from __future__ import annotations

from typing import Any

import pytest

from busline import claiming
from busline.errors import IdempotencyConflict
from busline.idempotency import OnConflict
from busline.message import Delivery, Message
from busline.outcome import (
    ACK,
    ACKED,
    Complete,
    DeadLetter,
    Fail,
    Fault,
    Leave,
    LetGo,
    OnFailure,
    Release,
    Reply,
    Resend,
    Terms,
    after_early_ack,
    final,
    later,
)
from busline.stores.base import Claimed, ClaimResult, Completed, Failed, InProgress, Mismatch
from busline.wire import Envelope

ENVELOPE = Envelope("i", 1.0)
FAULT = Fault("failed", "ValueError", "no", {})


def delivery(*, call: bool = False, deliveries: int = 1) -> Delivery:
    reply = {"reply_to": "inbox", "correlation_id": "c"} if call else {}
    return Delivery(Message("t", b"1", ENVELOPE.encode(), **reply), "q", None, deliveries)


def kinds(effects: Any) -> list[type]:
    return [type(effect) for effect in effects]


def instead(found: ClaimResult, on_conflict: OnConflict = "wait", **message: Any) -> Any:
    keyed = claiming.Keyed(delivery(**message), ENVELOPE, "q/t/k", on_conflict)
    return claiming.instead(keyed, found, Terms(), now=2.0)


def test_what_was_done_leaves_again_is_answered_and_acked() -> None:
    assert kinds(instead(Completed(b"1", b"[]"), call=True)) == [Leave, Reply, type(ACK)]
    assert instead(Completed(b"1", b"")) == ACKED
    (reply, _) = instead(Completed(b'{"a" :1}', b""), call=True)
    assert reply.message.body == b'{"a" :1}'
    (reply, _) = instead(Failed(b'{"type":"x"}'), call=True)
    assert reply.message.body == b'{"type":"x"}'
    assert instead(Failed(b"")) == ACKED


@pytest.mark.parametrize(("call", "delay"), [(True, 1.05), (False, 8.05)])
def test_what_is_at_work_elsewhere_is_given_back(call: bool, delay: float) -> None:
    assert instead(InProgress(8.0), call=call) == (Release(delay),)


def test_a_conflict_that_does_not_wait_is_skipped_or_refused_but_never_what_comes_again() -> None:
    assert instead(InProgress(8.0), "skip") == ACKED
    assert kinds(instead(InProgress(8.0), "skip", call=True)) == [Reply, OnFailure, type(ACK)]
    told, letter, _ = instead(InProgress(8.0), "raise")
    assert isinstance(told.error, IdempotencyConflict)
    assert letter.fault.reason == "conflict"
    for on_conflict in ("skip", "raise"):
        assert kinds(instead(InProgress(8.0), on_conflict, deliveries=2)) == [Release]
    assert instead(Mismatch())[1].fault.reason == "mismatch"


def test_an_outcome_is_recorded_before_anybody_is_told_and_a_dead_letter_before_that() -> None:
    reply = Reply(Message("t", b"1"))
    assert kinds(claiming.succeeded((reply, ACK), b"1", b"[]", ())) == [Complete, Leave, Reply, type(ACK)]
    job, call = delivery(), delivery(call=True)
    ended = final(job, ENVELOPE, FAULT, Terms(), now=2.0, error=ValueError("no"))
    assert kinds(claiming.not_succeeded(ended, FAULT, ENVELOPE)) == [OnFailure, DeadLetter, Fail, type(ACK)]
    ended = final(call, ENVELOPE, FAULT, Terms(), now=2.0)
    assert kinds(claiming.not_succeeded(ended, FAULT, ENVELOPE)) == [Fail, Reply, type(ACK)]


def test_a_claim_lets_go_before_the_next_attempt_or_after_it_where_it_has_the_only_copy() -> None:
    again = Resend(later(delivery(), ENVELOPE.next_attempt(3.0), delay=1.0, now=2.0))
    assert kinds(claiming.not_succeeded((again, ACK), FAULT, ENVELOPE)) == [LetGo, Resend, type(ACK)]
    early = after_early_ack((again, ACK), delivery(), ENVELOPE, now=2.0)
    assert kinds(claiming.not_succeeded(early, FAULT, ENVELOPE)) == [Resend, LetGo]
    assert kinds(claiming.not_succeeded((Release(),), None, ENVELOPE)) == [LetGo, Release]


def test_a_letter_that_was_sent_back_opens_its_key_once() -> None:
    back, other = Envelope("i", 1.0, replay="a"), Envelope("i", 1.0, replay="b")
    failed_before = Failed(claiming.error_of((), FAULT, ENVELOPE))
    failed_since = Failed(claiming.error_of((), FAULT, back))
    assert claiming.reopens(failed_before, back)
    assert not claiming.reopens(failed_since, back)
    assert claiming.reopens(failed_since, other)
    assert not claiming.reopens(failed_before, ENVELOPE)
    assert not claiming.reopens(Claimed("k", "t", 1), back)
