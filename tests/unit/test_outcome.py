"""The two decisions about a delivery, as tables: what comes in, and what is done about it."""

from __future__ import annotations

import asyncio
import json
import traceback
from dataclasses import replace
from typing import Any

import pytest

from busline.errors import Reject, RetryLater, SoftTimeLimitExceeded, TimeLimitExceeded, Undeliverable
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
    Pause,
    Reason,
    Release,
    Reply,
    Resend,
    RunAgain,
    Terms,
    admit,
    after_early_ack,
    after_own_ack,
    dead_letter,
    failed,
    fault_of,
    final,
    later,
    nacked,
    replayed,
    shorter_letters,
    succeeded,
    unavailable,
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


# -- the table of the design's section 4 ------------------------------------------------------------------------------
#
# Every cell that is decided here, as one composed decision: what `handling` asks of `outcome` for a message acked late
# or early. What a broker does by itself (killed workers, lost connections, leases) stands in the conformance suite.

PAUSES = TWICE.on(ConnectionError, pause=600)
AT_ONCE = Retry(max_retries=1, first=2.0, jitter=False, immediate=1)
LATE, EARLY, OWN = "late", "early", "own"


def settled(how: str, effects: tuple[Effect, ...], given: Delivery, before: Envelope) -> list[str]:
    """The effects for a message that was acked in this way, in words."""
    if how == EARLY:
        effects = after_early_ack(effects, given, before, now=NOW)
    elif how == OWN:
        effects = after_own_ack(effects)
    return [word(effect) for effect in effects]


def word(effect: Effect) -> str:
    if isinstance(effect, Reply):
        return reply_status(effect.message)
    if isinstance(effect, Resend):
        return f"again {decode_envelope(effect.message, NOW).attempt} in {effect.message.delay:g}"
    if isinstance(effect, RunAgain):
        return f"now {effect.envelope.attempt}"
    if isinstance(effect, Release | Pause):
        return f"{type(effect).__name__.lower()} {effect.delay if isinstance(effect, Release) else effect.seconds:g}"
    return effect.fault.reason if isinstance(effect, DeadLetter) else type(effect).__name__.lower()


RETURNS = "returns"


@pytest.mark.parametrize(
    ("call", "happens", "attempt", "retry", "late", "early", "own"),
    [
        # handler returns
        (JOB, RETURNS, 1, TWICE, ["ack"], [], []),
        (CALL, RETURNS, 1, TWICE, ["ok", "ack"], ["ok"], ["ok"]),
        # handler raises, retries left
        (JOB, OSError(), 1, TWICE, ["again 2 in 2", "ack"], ["again 2 in 2"], []),
        (JOB, OSError(), 2, TWICE, ["again 3 in 4", "ack"], ["again 3 in 4"], []),
        (CALL, OSError(), 1, TWICE, ["again 2 in 2", "ack"], ["again 2 in 2"], []),
        (JOB, RetryLater(60), 1, TWICE, ["again 2 in 60", "ack"], ["again 2 in 60"], []),
        (JOB, SoftTimeLimitExceeded(1), 1, TWICE, ["again 2 in 2", "ack"], ["again 2 in 2"], []),
        (JOB, TimeLimitExceeded(1), 1, TWICE, ["again 2 in 2", "ack"], ["again 2 in 2"], []),
        # retries that keep the slot
        (JOB, OSError(), 1, AT_ONCE, ["now 2"], ["now 2"], []),
        (JOB, OSError(), 2, AT_ONCE, ["again 3 in 2", "ack"], ["again 3 in 2"], []),
        (JOB, OSError(), 3, AT_ONCE, ["now 4"], ["now 4"], []),
        (JOB, OSError(), 4, AT_ONCE, ["onfailure", "failed", "ack"], ["onfailure", "failed"], ["onfailure"]),
        # retries used up
        (JOB, OSError(), 3, TWICE, ["onfailure", "failed", "ack"], ["onfailure", "failed"], ["onfailure"]),
        (CALL, OSError(), 3, TWICE, ["error", "onfailure", "ack"], ["error", "onfailure"], ["error", "onfailure"]),
        (CALL, OSError(), 1, NO_RETRY, ["error", "onfailure", "ack"], ["error", "onfailure"], ["error", "onfailure"]),
        (JOB, KeyError(), 1, TWICE, ["onfailure", "failed", "ack"], ["onfailure", "failed"], ["onfailure"]),
        (JOB, RetryLater(60), 3, TWICE, ["onfailure", "failed", "ack"], ["onfailure", "failed"], ["onfailure"]),
        # Reject
        (JOB, Reject("no"), 1, TWICE, ["onfailure", "rejected", "ack"], ["onfailure", "rejected"], ["onfailure"]),
        (
            *(CALL, Reject("no"), 1, TWICE),
            ["error", "onfailure", "rejected", "ack"],
            ["error", "onfailure", "rejected"],
            ["error", "onfailure"],
        ),
        # a rule that stops the queue: uncounted, and however often
        (JOB, ConnectionError(), 1, PAUSES, ["pause 600", "release 0"], ["pause 600", "again 1 in 0"], []),
        (JOB, ConnectionError(), 99, PAUSES, ["pause 600", "release 0"], ["pause 600", "again 99 in 0"], []),
        (CALL, ConnectionError(), 1, PAUSES, ["pause 600", "release 0"], ["pause 600", "again 1 in 0"], []),
    ],
)
def test_the_table_after_it_ran(
    call: bool,
    happens: BaseException | str,
    attempt: int,
    retry: Retry,
    late: list[str],
    early: list[str],
    own: list[str],
) -> None:
    given, before = delivery(call=call), envelope(attempt=attempt)
    if isinstance(happens, BaseException):
        fault = fault_of(happens, ErrorRegistry().describe(happens))
        effects = failed(given, before, happens, fault, TERMS, retry=retry, now=NOW)
    else:
        effects = succeeded(given, b"null")
    assert settled(LATE, effects, given, before) == late
    assert settled(EARLY, effects, given, before) == early
    assert settled(OWN, effects, given, before) == own


def test_a_queue_stops_also_for_a_caller_who_cannot_wait_for_it() -> None:
    """He gets the error now: the queue is stopped for longer than his deadline."""
    error = ConnectionError()
    effects = failed(delivery(call=True), envelope(deadline=NOW + 599), error, FAULT, TERMS, retry=PAUSES, now=NOW)
    assert [word(effect) for effect in effects] == ["pause 600", "error", "onfailure", "ack"]


@pytest.mark.parametrize(
    ("call", "fields", "terms", "deliveries", "done"),
    [
        # ttl passed before it started
        (JOB, {"expires_at": NOW - 6}, {}, 1, ["onfailure", "expired", "ack"]),
        (JOB, {}, {"message_ttl": 94.0}, 1, ["onfailure", "expired", "ack"]),
        (JOB, {}, {"message_ttl": 95.0}, 1, None),
        (CALL, {"deadline": NOW + 60}, {"message_ttl": 94.0}, 1, ["error", "onfailure", "ack"]),
        (CALL, {"deadline": NOW - 6}, {"message_ttl": 94.0}, 1, ["drop", "ack"]),
        # the queue's counts from when it could first be delivered, the sender's from sending; the shorter holds
        (JOB, {"due_at": NOW - 50}, {"message_ttl": 60.0}, 1, None),
        (JOB, {"due_at": NOW - 66}, {"message_ttl": 60.0}, 1, ["onfailure", "expired", "ack"]),
        (JOB, {"expires_at": NOW + 60}, {"message_ttl": 94.0}, 1, ["onfailure", "expired", "ack"]),
        (JOB, {"expires_at": NOW - 6}, {"message_ttl": 9999.0}, 1, ["onfailure", "expired", "ack"]),
        (JOB, {"expires_at": NOW + 60}, {"message_ttl": 9999.0}, 1, None),
        # deadline passed
        (CALL, {"deadline": NOW - 5}, {}, 1, None),
        (CALL, {"deadline": NOW - 6}, {}, 1, ["drop", "ack"]),
        (CALL, {"deadline": NOW - 1}, {"skew": 0.0}, 1, ["drop", "ack"]),
        # kills its worker again and again
        (JOB, {}, {"max_deliveries": 3}, 3, None),
        (JOB, {}, {"max_deliveries": 3}, 4, ["onfailure", "poison", "ack"]),
        (CALL, {}, {"max_deliveries": 3}, 4, ["error", "onfailure", "poison", "ack"]),
        (JOB, {"expires_at": NOW - 60}, {"max_deliveries": 3}, 4, ["onfailure", "poison", "ack"]),
    ],
)
def test_the_table_before_it_runs(
    call: bool, fields: dict[str, Any], terms: dict[str, Any], deliveries: int, done: list[str] | None
) -> None:
    effects = admit(delivery(call=call, deliveries=deliveries), envelope(**fields), replace(TERMS, **terms), now=NOW)
    assert (effects and [word(effect) for effect in effects]) == done


def test_what_never_ran_tells_on_failure_why() -> None:
    effects = admit(delivery(), envelope(expires_at=NOW - 60), TERMS, now=NOW) or ()
    (told,) = [effect.error for effect in effects if isinstance(effect, OnFailure)]
    assert isinstance(told, Undeliverable)
    assert told.reason == "expired"


@pytest.mark.parametrize(
    ("call", "requeue", "how", "done"),
    [
        (JOB, True, LATE, ["release 7"]),
        (CALL, True, LATE, ["release 7"]),
        (JOB, False, LATE, ["onfailure", "rejected", "ack"]),
        (CALL, False, LATE, ["error", "onfailure", "rejected", "ack"]),
    ],
)
def test_the_table_of_nacks(call: bool, requeue: bool, how: str, done: list[str]) -> None:
    given = delivery(call=call)
    effects = nacked(given, envelope(), TERMS, requeue=requeue, delay=7.0, now=NOW)
    assert settled(how, effects, given, envelope()) == done


def test_what_a_drain_gives_back_is_the_same_attempt_and_sent_again_if_it_was_acked_early() -> None:
    given, before = delivery(), envelope(attempt=2)
    assert settled(LATE, (Release(),), given, before) == ["release 0"]
    assert settled(EARLY, (Release(),), given, before) == ["again 2 in 0"]
    assert settled(OWN, (Release(),), given, before) == []


@pytest.mark.parametrize(("call", "done"), [(CALL, ["error", "ack"]), (JOB, ["again 1 in 5", "ack"])])
def test_while_a_queue_answers_that_it_is_unavailable(call: bool, done: list[str]) -> None:
    given = delivery(call=call)
    effects = unavailable(given, envelope(), why="no model server", again_in=5.0, now=NOW)
    assert [word(effect) for effect in effects] == done
    if call:
        assert answer(effects) == ("busline.unavailable", "no model server")
    else:
        (resend, _) = effects
        assert isinstance(resend, Resend)
        assert decode_envelope(resend.message, NOW).due_at == NOW + 5


def test_a_copy_for_later_is_the_same_attempt() -> None:
    given, before = delivery(priority=5), envelope(attempt=3, failure=None)
    copy = later(given, before, delay=9.0, now=NOW)
    assert replace(copy, meta="meta", delay=0.0) == given.message
    after = decode_envelope(copy, NOW)
    assert (copy.delay, after.attempt, after.due_at, after.id) == (9.0, 3, NOW + 9, "i")


def test_dead_letters_live_as_long_as_their_queue_says() -> None:
    letter = dead_letter(delivery(ttl=60.0), envelope(), FAULT, replace(TERMS, dead_letter_ttl=86400.0), NOW)
    assert (letter.ttl, letter.expendable) == (86400.0, True)


def test_a_letter_grows_shorter_and_stays_itself() -> None:
    letters = shorter_letters(delivery(call=True), envelope(attempt=3), FAULT, TERMS, now=NOW)
    assert [len(letter.meta) for letter in letters[:3]] == sorted(
        (len(letter.meta) for letter in letters[:3]), reverse=True
    )
    assert letters[-1].meta == "meta"
    for letter in letters:
        assert (letter.body, letter.topic, letter.reply_to, letter.delay) == (b"body", "a.topic", None, 0.0)
    told = [decode_envelope(letter, NOW).failure or {} for letter in letters[:3]]
    assert [{"traceback", "message", "reason"} & set(each) for each in told] == [
        {"message", "reason"},
        {"reason"},
        set(),
    ]
    assert [each.get("attempts") for each in told] == [3, 3, None]


# -- replayed ---------------------------------------------------------------------------------------------------------


def test_a_replayed_letter_is_a_first_attempt_of_the_same_message() -> None:
    given = delivery(call=True, priority=5, ttl=60.0, delay=1.0)
    before = envelope(attempt=3, expires_at=NOW - 1, causation_id="cause")
    letter = dead_letter(given, before, FAULT, replace(TERMS, dead_letter_ttl=9.0), NOW)
    queue, message = replayed(letter, decode_envelope(letter, NOW), now=NOW + 5)
    assert (queue, message.topic, message.body, message.headers) == ("q", "a.topic", b"body", {"user": "header"})
    assert (message.priority, message.ttl, message.expendable) == (5, None, False)
    after = decode_envelope(message, NOW)
    assert (after.id, after.attempt, after.failure, after.due_at, after.expires_at) == ("i", 1, None, NOW + 5, None)
    assert after.causation_id == "cause"


@pytest.mark.parametrize(("failure", "queue"), [(None, ""), ({}, ""), ({"queue": 5, "priority": "high"}, "5")])
def test_a_letter_that_does_not_say_where_it_came_from(failure: dict[str, Any] | None, queue: str) -> None:
    found, message = replayed(delivery(priority=5).message, envelope(failure=failure), now=NOW)
    assert (found, message.priority) == (queue, 0)
