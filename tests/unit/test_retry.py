"""When a failed message is tried again."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from busline.errors import ConfigurationError
from busline.retry import JITTER, JOB_RETRY, NO_RETRY, Retry, Verdict

always = settings(derandomize=True, deadline=None)
seconds = st.floats(0, 1e9)
FAILURE = OSError("broken")


def next_delay(retry: Retry, attempt: int, error: BaseException) -> float | None:
    """Seconds until the next attempt, None if there is none."""
    verdict = retry.verdict(attempt, error)
    return verdict.delay if verdict.action == "later" else None


def delays(retry: Retry, attempts: int) -> list[float | None]:
    return [next_delay(retry, attempt, FAILURE) for attempt in range(1, attempts + 1)]


@st.composite
def policies(draw: st.DrawFn) -> Retry:
    return Retry(
        max_retries=draw(st.integers(1, 10**7)),
        first=draw(seconds),
        factor=draw(st.floats(0.001, 1e12)),
        cap=draw(seconds),
        delays=draw(st.none() | st.lists(seconds, min_size=1)),
    )


@always
@given(policies(), st.integers(1, 10**6))
def test_a_retry_is_never_early_and_at_most_a_quarter_late(retry: Retry, attempt: int) -> None:
    assume(attempt <= retry.limit)
    plain_policy = Retry(
        max_retries=retry.limit,
        first=retry.first,
        factor=retry.factor,
        cap=retry.cap,
        delays=retry.delays,
        jitter=False,
    )
    plain = next_delay(plain_policy, attempt, FAILURE)
    jittered = next_delay(retry, attempt, FAILURE)
    assert plain is not None
    assert jittered is not None
    assert plain <= jittered <= plain * (1 + JITTER)


@always
@given(policies(), st.integers(1, 10**6))
def test_exponential_delays_stay_below_their_cap(retry: Retry, attempt: int) -> None:
    if retry.delays is None and (delay := next_delay(retry, attempt, FAILURE)) is not None:
        assert 0 <= delay <= retry.cap * (1 + JITTER)


def test_jobs_are_tried_again_after_2_4_and_8_seconds() -> None:
    plain = Retry(jitter=False)
    assert delays(plain, 4) == [2.0, 4.0, 8.0, None]
    assert (JOB_RETRY.limit, JOB_RETRY.first, JOB_RETRY.factor) == (plain.limit, plain.first, plain.factor)


def test_calls_are_not_tried_again() -> None:
    assert delays(NO_RETRY, 1) == [None]


def test_jitter_spreads() -> None:
    retry = Retry(first=4.0)
    assert len({next_delay(retry, 1, FAILURE) for _ in range(20)}) > 1


def test_given_delays_repeat_their_last_up_to_max_retries() -> None:
    assert delays(Retry(delays=[5, 15], jitter=False), 3) == [5, 15, None]
    assert delays(Retry(delays=(5, 15), max_retries=4, jitter=False), 5) == [5, 15, 15, 15, None]
    assert delays(Retry(delays=[5, 15], max_retries=1, jitter=False), 2) == [5, None]
    assert delays(Retry(delays=[5], max_retries=0), 1) == [None]


def test_a_millionth_attempt_waits_for_the_cap_whatever_the_factor() -> None:
    for factor in (1.0001, 2, 2.0, 10**10, 1e300, inf):
        retry = Retry(max_retries=10**7, factor=factor, cap=600.0, jitter=False)
        assert next_delay(retry, 10**6, FAILURE) == 600.0


def test_a_small_factor_goes_on_growing_until_the_cap() -> None:
    retry = Retry(max_retries=1000, first=1.0, factor=1.01, cap=10.0, jitter=False)
    assert next_delay(retry, 101, FAILURE) == pytest.approx(1.01**100)
    assert next_delay(retry, 1000, FAILURE) == 10.0


def test_a_factor_below_one_makes_the_delays_shrink_towards_nothing() -> None:
    retry = Retry(max_retries=10**7, first=8.0, factor=0.5, jitter=False)
    assert delays(retry, 3) == [8.0, 4.0, 2.0]
    assert next_delay(retry, 10**6, FAILURE) == 0.0


def test_no_cap_and_no_first_mean_at_once() -> None:
    assert delays(Retry(cap=0), 3) == [0.0, 0.0, 0.0]
    assert delays(Retry(first=0, factor=1e300), 3) == [0.0, 0.0, 0.0]


class Missing(OSError):
    pass


@pytest.mark.parametrize("when", [OSError, (OSError,), (ValueError, OSError), OSError | ValueError])
def test_when_says_which_failures_are_tried_again(when: Any) -> None:
    retry = Retry(when=when)
    assert next_delay(retry, 1, Missing()) is not None
    assert next_delay(retry, 1, KeyError()) is None


@pytest.mark.parametrize("unless", [Missing, (Missing,), (ValueError, Missing), Missing | ValueError])
def test_unless_wins_over_when(unless: Any) -> None:
    retry = Retry(when=OSError, unless=unless)  # type: ignore[arg-type]  # a single class is what people write
    assert next_delay(retry, 1, OSError()) is not None
    assert next_delay(retry, 1, Missing()) is None


def test_by_default_everything_is_tried_again() -> None:
    assert next_delay(Retry(), 1, SystemExit()) is not None


@pytest.mark.parametrize(
    "figures",
    [
        {"first": -1},
        {"first": nan},
        {"first": inf},
        {"cap": -1},
        {"cap": nan},
        {"factor": 0},
        {"factor": -2},
        {"factor": nan},
        {"max_retries": -1},
        {"delays": [1, -1]},
        {"delays": [nan]},
        {"delays": [inf]},
        {"delays": []},
        {"delays": ()},
        {"when": "OSError"},
        {"when": [OSError]},
        {"when": OSError("an instance")},
        {"unless": ["ValueError"]},
        {"unless": None},
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_followed_is_refused_when_it_is_written(figures: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Retry(**figures)


def test_linear_and_fixed_are_shorthands() -> None:
    assert delays(Retry.linear(2, 3, jitter=False), 4) == [2, 5, 8, None]
    assert delays(Retry.linear(2, 3, cap=4, max_retries=2, jitter=False), 3) == [2, 4, None]
    assert delays(Retry.fixed(7, jitter=False), 4) == [7, 7, 7, None]


def test_immediate_retries_come_before_each_delay() -> None:
    retry = Retry(delays=[1, 5], immediate=2, jitter=False)
    verdicts = [retry.verdict(attempt, FAILURE) for attempt in range(1, 10)]
    assert [(v.action, v.delay) for v in verdicts] == [
        *[("now", 0.0)] * 2,
        ("later", 1),
        *[("now", 0.0)] * 2,
        ("later", 5),
        *[("now", 0.0)] * 2,
        ("end", 0.0),
    ]
    assert retry.attempts == 9


def test_the_first_rule_that_matches_decides() -> None:
    retry = (
        Retry(jitter=False)
        .on(Missing, delays=[1, 2])
        .on(OSError, pause=600)
        .on(KeyError, dead_letter=True)
        .on(TimeoutError, immediate=1)
    )
    assert retry.verdict(1, Missing()) == Verdict("later", 1)
    assert retry.verdict(3, Missing()).action == "end"
    assert retry.verdict(1, OSError()) == Verdict("pause", 600)
    assert retry.verdict(1, KeyError()).action == "end"
    assert retry.verdict(1, ValueError()) == Verdict("later", 2.0)


def test_a_rule_of_immediate_retries_only_ends_after_them() -> None:
    retry = Retry().on(ConnectionError, immediate=2)
    assert [retry.verdict(n, ConnectionError()).action for n in (1, 2, 3)] == ["now", "now", "end"]


@pytest.mark.parametrize(
    "rule",
    [{}, {"dead_letter": True, "pause": 1}, {"delays": [1], "dead_letter": True}, {"pause": 0}, {"pause": -1}],
)
def test_a_rule_says_exactly_one_thing(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Retry().on(OSError, **rule)
    with pytest.raises(ConfigurationError):
        Retry().on(dead_letter=True)
