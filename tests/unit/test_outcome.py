"""The two decisions about a delivery, as tables: what comes in, and what is done about it."""

from __future__ import annotations

import asyncio
import json
import traceback
from dataclasses import replace
from typing import Any

import pytest

from busline.errors import Reject, RetryLater
from busline.message import Delivery, Message
from busline.outcome import (
    ACK,
    ACKED,
    MESSAGE_LIMIT,
    TRACEBACK_LIMIT,
    UNKNOWN_DELAY,
    Ack,
    DeadLetter,
    Drop,
    Effect,
    Fault,
    OnFailure,
    Reason,
    Release,
    Reply,
    Resend,
    Terms,
    admit,
    dead_letter,
    failed,
    fault_of,
    final,
    succeeded,
    unknown_topic,
    without_our_frames,
)
from busline.registry import ErrorRegistry
from busline.retry import NO_RETRY, Retry
from busline.wire import Envelope, decode_envelope, decode_error, reply_status

NOW = 1_000_000_000.0
SKEW = 5.0
TERMS = Terms(skew=SKEW, max_deliveries=20)
FAULT = Fault("failed", "OSError", "broken", {"a": 1}, "Traceback …")
TWICE = Retry(max_retries=2, first=2.0, jitter=False, unless=(KeyError,))


def delivery(*, call: bool = False, deliveries: int = 1, **fields: Any) -> Delivery:
    reply = {"reply_to": "inbox", "correlation_id": "c"} if call else {}
    message = Message("a.topic", b"body", "meta", {"user": "header"}, **reply, **fields)  # type: ignore[arg-type]  # str
    return Delivery(message, "q", None, deliveries)


def envelope(**fields: Any) -> Envelope:
    return Envelope("i", NOW - 100, **fields)


def kinds(effects: tuple[Effect, ...] | None) -> list[type[Effect]] | None:
    return None if effects is None else [type(effect) for effect in effects]


def story(effects: tuple[Effect, ...]) -> dict[str, Any]:
    """What the dead letter among the effects tells."""
    (dead,) = [effect for effect in effects if isinstance(effect, DeadLetter)]
    failure = decode_envelope(dead.message, NOW).failure
    assert failure is not None
    assert failure["reason"] == dead.fault.reason
    return failure


def answer(effects: tuple[Effect, ...]) -> tuple[str, str]:
    """Type and text of the error among the effects that the caller gets; it is always the first of them."""
    reply = effects[0]
    assert isinstance(reply, Reply)
    assert reply_status(reply.message) == "error"
    assert reply.message.correlation_id == "c"
    return decode_error(reply.message.body)[:2]


# -- before it runs ---------------------------------------------------------------------------------------------------

RUN = None
CALL, JOB = True, False


@pytest.mark.parametrize(
    ("call", "fields", "deliveries", "done"),
    [
        (JOB, {}, 1, RUN),
        (JOB, {}, 20, RUN),
        (JOB, {}, 21, [OnFailure, DeadLetter, Ack]),
        (CALL, {}, 1, RUN),
        (CALL, {"deadline": NOW + 1}, 20, RUN),
        (CALL, {"deadline": NOW + 1}, 21, [Reply, OnFailure, DeadLetter, Ack]),
        (CALL, {"deadline": NOW - SKEW}, 1, RUN),
        (CALL, {"deadline": NOW - SKEW - 0.1}, 1, [Drop, Ack]),
        (CALL, {"deadline": NOW - SKEW - 0.1}, 21, [Reply, OnFailure, DeadLetter, Ack]),
        (JOB, {"expires_at": NOW + 1}, 1, RUN),
        (JOB, {"expires_at": NOW - SKEW}, 1, RUN),
        (JOB, {"expires_at": NOW - SKEW - 0.1}, 1, [OnFailure, DeadLetter, Ack]),
        (CALL, {"deadline": NOW - 9, "expires_at": NOW - 9}, 1, [Drop, Ack]),
        (CALL, {"expires_at": NOW - 9}, 1, [Reply, OnFailure, Ack]),
        (JOB, {"deadline": -1e308}, 1, [Drop, Ack]),
        (JOB, {"deadline": 2**64 - 1, "expires_at": 1e308}, 1, RUN),
    ],
)
def test_what_is_admitted(call: bool, fields: dict[str, Any], deliveries: int, done: list[type[Effect]] | None) -> None:
    given = delivery(call=call, deliveries=deliveries)
    assert kinds(admit(given, envelope(**fields), TERMS, now=NOW)) == done


def test_a_message_that_keeps_killing_its_workers_is_kept_with_the_count() -> None:
    effects = admit(delivery(call=True, deliveries=21), envelope(), TERMS, now=NOW)
    assert effects is not None
    assert story(effects)["reason"] == "poison"
    assert "21 times" in story(effects)["message"]
    assert answer(effects)[0] == "busline.poison"


def test_an_expired_job_is_kept_with_how_late_it_was() -> None:
    effects = admit(delivery(), envelope(expires_at=NOW - 7.25), TERMS, now=NOW)
    assert effects is not None
    assert (story(effects)["reason"], story(effects)["type"]) == ("expired", "busline.expired")
    assert "7.2 s" in story(effects)["message"]


# -- nobody here knows the topic --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "deadline", "waited", "done"),
    [
        (JOB, None, 0.0, [Release]),
        (JOB, None, 9.9, [Release]),
        (JOB, None, 10.0, [DeadLetter, Ack]),
        (JOB, None, -3600.0, [Release]),
        (CALL, NOW + 8, 0.0, [Release]),
        (CALL, NOW + 8, 3.9, [Release]),
        (CALL, NOW + 8, 4.0, [Reply, Ack]),
        (CALL, NOW + 3600, 9.9, [Release]),
        (CALL, NOW + 3600, 10.0, [Reply, Ack]),
        (CALL, NOW - 1, 0.0, [Reply, Ack]),
        (CALL, None, 10.0, [Reply, Ack]),
    ],
)
def test_how_long_siblings_are_given(
    call: bool, deadline: float | None, waited: float, done: list[type[Effect]]
) -> None:
    effects = unknown_topic(
        delivery(call=call), envelope(deadline=deadline), TERMS, first_seen=NOW, now=NOW + waited, grace=10.0
    )
    assert kinds(effects) == done


def test_siblings_are_asked_less_and_less_often() -> None:
    pauses = []
    for waited in (0.0, 0.02, 0.1, 0.3, 0.6, 5.0):
        (release,) = unknown_topic(delivery(), envelope(), TERMS, first_seen=NOW, now=NOW + waited, grace=10.0)
        assert isinstance(release, Release)
        pauses.append(release.delay)
    shortest, longest = UNKNOWN_DELAY
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (shortest, longest)


def test_after_the_grace_the_caller_learns_that_nobody_handles_it() -> None:
    effects = unknown_topic(delivery(call=True), envelope(), TERMS, first_seen=NOW, now=NOW, grace=0.0)
    assert answer(effects) == ("busline.no_handler", "no handler for topic 'a.topic' on queue 'q'")


def test_after_the_grace_a_job_is_kept() -> None:
    effects = unknown_topic(delivery(), envelope(), TERMS, first_seen=NOW, now=NOW, grace=0.0)
    assert (story(effects)["reason"], story(effects)["topic"]) == ("unknown_topic", "a.topic")


# -- after it ran -----------------------------------------------------------------------------------------------------


def test_a_job_that_succeeded_is_forgotten() -> None:
    assert succeeded(delivery(), b"ignored") is ACKED
    assert ACKED == (ACK,)


def test_a_call_that_succeeded_is_answered_before_it_is_forgotten() -> None:
    reply, ack = succeeded(delivery(call=True), b'"result"')
    assert isinstance(reply, Reply)
    assert (reply.message.body, reply_status(reply.message)) == (b'"result"', "ok")
    assert ack is ACK


@pytest.mark.parametrize(
    ("call", "error", "fields", "done"),
    [
        # jobs
        (JOB, OSError(), {}, [Resend, Ack]),
        (JOB, OSError(), {"attempt": 2}, [Resend, Ack]),
        (JOB, OSError(), {"attempt": 3}, [OnFailure, DeadLetter, Ack]),
        (JOB, OSError(), {"attempt": 2**53}, [OnFailure, DeadLetter, Ack]),
        (JOB, KeyError(), {}, [OnFailure, DeadLetter, Ack]),
        (JOB, SystemExit(), {}, [Resend, Ack]),
        (JOB, Reject("no"), {}, [OnFailure, DeadLetter, Ack]),
        (JOB, RetryLater(60), {}, [Resend, Ack]),
        (JOB, RetryLater(60), {"attempt": 2}, [Resend, Ack]),
        (JOB, RetryLater(60), {"attempt": 3}, [OnFailure, DeadLetter, Ack]),
        (JOB, OSError(), {"expires_at": NOW + 1}, [Resend, Ack]),
        # calls whose handler has a policy
        (CALL, OSError(), {}, [Resend, Ack]),
        (CALL, OSError(), {"deadline": NOW + 2.1}, [Resend, Ack]),
        (CALL, OSError(), {"deadline": NOW + 2.0}, [Reply, OnFailure, Ack]),
        (CALL, OSError(), {"deadline": NOW + 0.1}, [Reply, OnFailure, Ack]),
        (CALL, OSError(), {"deadline": NOW - 1}, [Reply, OnFailure, Ack]),
        (CALL, OSError(), {"attempt": 3}, [Reply, OnFailure, Ack]),
        (CALL, KeyError(), {}, [Reply, OnFailure, Ack]),
        (CALL, Reject("no"), {"deadline": NOW + 60}, [Reply, OnFailure, DeadLetter, Ack]),
        (CALL, RetryLater(5), {"deadline": NOW + 60}, [Resend, Ack]),
        (CALL, RetryLater(5), {"deadline": NOW + 5}, [Reply, OnFailure, Ack]),
        (CALL, RetryLater(5), {"attempt": 3, "deadline": NOW + 60}, [Reply, OnFailure, Ack]),
    ],
)
def test_what_follows_a_failure(
    call: bool, error: BaseException, fields: dict[str, Any], done: list[type[Effect]]
) -> None:
    fault = fault_of(error, ErrorRegistry().describe(error))
    assert kinds(failed(delivery(call=call), envelope(**fields), error, fault, TERMS, retry=TWICE, now=NOW)) == done


@pytest.mark.parametrize("error", [OSError(), RetryLater(1)])
def test_without_retries_a_call_gets_its_error_at_once(error: Exception) -> None:
    effects = failed(delivery(call=True), envelope(), error, FAULT, TERMS, retry=NO_RETRY, now=NOW)
    assert answer(effects) == ("OSError", "broken")


def test_the_next_attempt_is_the_same_message_later() -> None:
    given = delivery(call=True, priority=5, ttl=60.0, delay=1.0)
    before = envelope(attempt=2, deadline=NOW + 60, causation_id="cause", unknown={"later": 1})
    resend, _ = failed(given, before, OSError(), FAULT, TERMS, retry=TWICE, now=NOW)
    assert isinstance(resend, Resend)
    assert decode_envelope(resend.message, NOW) == replace(before, attempt=3, correlation_id="i", due_at=NOW + 4.0)
    assert replace(resend.message, meta="meta", delay=1.0) == given.message
    assert resend.message.delay == 4.0


def test_retry_later_says_when_itself() -> None:
    resend, _ = failed(delivery(), envelope(), RetryLater(0.5), FAULT, TERMS, retry=TWICE, now=NOW)
    assert isinstance(resend, Resend)
    assert resend.message.delay == 0.5


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "of_a_call"),
    [
        ("undecodable", [Reply, DeadLetter, Ack]),
        ("too_large", [Reply, Ack]),
        ("invalid", [Reply, Ack]),
        ("unknown_topic", [Reply, Ack]),
        ("expired", [Reply, Ack]),
        ("failed", [Reply, Ack]),
        ("rejected", [Reply, DeadLetter, Ack]),
        ("poison", [Reply, DeadLetter, Ack]),
    ],
)
def test_how_each_reason_ends(reason: Reason, of_a_call: list[type[Effect]]) -> None:
    """Anything but a call is kept; a call is answered, and kept only if somebody should look at it."""
    fault = replace(FAULT, reason=reason)
    assert kinds(final(delivery(), envelope(), fault, TERMS, now=NOW)) == [DeadLetter, Ack]
    effects = final(delivery(call=True), envelope(), fault, TERMS, now=NOW)
    assert kinds(effects) == of_a_call
    assert answer(effects) == ("OSError", "broken")


def test_a_caller_gets_the_details_too() -> None:
    (reply, *_) = final(delivery(call=True), envelope(), FAULT, TERMS, now=NOW)
    assert isinstance(reply, Reply)
    assert decode_error(reply.message.body) == ("OSError", "broken", {"a": 1})


def test_a_dead_letter_is_the_message_with_its_story() -> None:
    given = delivery(call=True, priority=5, ttl=60.0, delay=1.0)
    before = envelope(attempt=3, deadline=NOW, expires_at=NOW, causation_id="cause", unknown={"later": 1})
    message = dead_letter(given, before, FAULT, TERMS, NOW)
    assert (message.topic, message.body, message.headers) == ("a.topic", b"body", {"user": "header"})
    assert (message.reply_to, message.correlation_id, message.ttl) == (None, None, None)
    assert (message.delay, message.priority) == (0.0, 0)
    after = decode_envelope(message, NOW)
    assert (after.id, after.sent_at, after.attempt, after.causation_id) == ("i", NOW - 100, 3, "cause")
    assert (after.deadline, after.expires_at, after.unknown) == (None, None, {"later": 1})
    assert after.failure == {
        "reason": "failed",
        "type": "OSError",
        "message": "broken",
        "traceback": "Traceback …",
        "attempts": 3,
        "first_at": NOW - 100,
        "last_at": NOW,
        "queue": "q",
        "topic": "a.topic",
        "priority": 5,
    }


def test_a_dead_letter_leaves_out_what_there_is_not() -> None:
    message = dead_letter(delivery(), envelope(), Fault("failed", "T", "", {}), TERMS, NOW)
    assert not {"message", "traceback", "priority"} & set(json.loads(message.meta)["failure"])


def test_a_long_story_is_cut_so_that_it_fits_into_a_message() -> None:
    fault = Fault("failed", "T", "m" * 10**7, {}, "t" * 10**7 + "the end")
    failure = json.loads(dead_letter(delivery(), envelope(), fault, TERMS, NOW).meta)["failure"]
    assert len(failure["message"]) == MESSAGE_LIMIT
    assert len(failure["traceback"]) == TRACEBACK_LIMIT
    assert failure["traceback"].endswith("the end")


def test_a_second_death_tells_the_second_story() -> None:
    before = envelope(failure={"reason": "expired"})
    assert story(final(delivery(), before, FAULT, TERMS, now=NOW))["reason"] == "failed"


@pytest.mark.parametrize("reason", ["failed", "rejected"])
def test_a_story_with_surrogates_is_told_all_the_same(reason: Reason) -> None:
    fault = Fault(reason, "T\ud800", "file-\udcff", {"name": "\udcff"}, "line \udcff")
    effects = final(delivery(), envelope(), fault, TERMS, now=NOW)
    failure = story(effects)
    assert (failure["type"], failure["message"], failure["traceback"]) == ("T?", "file-?", "line ?")
    assert answer(final(delivery(call=True), envelope(), fault, TERMS, now=NOW)) == ("T?", "file-?")


# -- exceptions that make trouble -------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Noteless(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes for you")


class Untraceable(Exception):
    def with_traceback(self, trace: object) -> Untraceable:
        raise RuntimeError("no traceback for you")


class Silent(Reject):
    def __init__(self) -> None:
        """Does not call its base, so it has no reason."""


def recursive(depth: int = 0) -> None:
    recursive(depth + 1)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def recursion() -> BaseException:
    try:
        recursive()
    except RecursionError as error:
        return error
    raise AssertionError


def chained() -> BaseException:
    error: BaseException = ValueError("0")
    for number in range(3000):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    return error


def circular() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__cause__ = other, one
    return raised(one)


TROUBLE: dict[str, BaseException] = {
    "unprintable": raised(Unprintable("x")),
    "without notes": raised(Noteless("x")),
    "untraceable": raised(Untraceable("x")),
    "never raised": ValueError("x"),
    "a group": raised(ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [Unprintable()])])),
    "a base group": raised(BaseExceptionGroup("g", [KeyboardInterrupt()])),
    "a syntax error of odd parts": raised(SyntaxError("x", ("f", "no line", None, b"y"))),  # type: ignore[arg-type]
    "too deep": recursion(),
    "a long chain": chained(),
    "a circle": circular(),
    "surrogates": raised(OSError("\udcff")),
    "args without a JSON form": raised(ValueError(object(), b"\xff", {object(): 1})),
    "a reject without reason": raised(Silent()),
    "a reject for an odd reason": raised(Reject({"a": object()})),  # type: ignore[arg-type]
    "an exit": raised(SystemExit()),
    "a cancellation": raised(asyncio.CancelledError()),
}


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("call", [CALL, JOB])
@pytest.mark.parametrize("name", TROUBLE)
def test_whatever_a_handler_raises_its_message_comes_to_an_end(name: str, call: bool, registered: bool) -> None:
    error = TROUBLE[name]
    errors = ErrorRegistry()
    if registered:
        errors._codes[type(error)] = "code"  # type: ignore[index]  # a BaseException could not be registered
    fault = fault_of(error, errors.describe(error))
    effects = failed(delivery(call=call), envelope(attempt=3), error, fault, TERMS, retry=TWICE, now=NOW)
    assert effects[-1] is ACK
    if call:
        assert answer(effects)
    else:
        assert story(effects)["type"]


def test_a_reject_needs_no_traceback() -> None:
    error = raised(Reject("too old"))
    fault = fault_of(error, ErrorRegistry().describe(error))
    assert fault == Fault("rejected", "busline.rejected", "too old", {})


def test_a_failure_keeps_its_traceback_from_where_the_users_code_begins() -> None:
    namespace: dict[str, Any] = {"__name__": "busline.handling"}
    exec(compile("def ours(function):\n    function()", "ours.py", "exec"), namespace)

    def theirs() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError) as caught:
        namespace["ours"](theirs)
    error = caught.value
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert frames[-2:] == ["ours", "theirs"]
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None  # without this test's frame
    fault = fault_of(error, ("KeyError", "broken", {}))
    assert "theirs" in fault.traceback
    assert "ours.py" not in fault.traceback


def test_an_error_of_our_own_frames_only_keeps_them() -> None:
    namespace: dict[str, Any] = {"__name__": "busline.binding"}
    exec(compile("def ours():\n    raise KeyError", "ours.py", "exec"), namespace)
    with pytest.raises(KeyError) as caught:
        namespace["ours"]()
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
    assert traceback.extract_tb(without_our_frames(error).__traceback__)[0].name == "ours"
