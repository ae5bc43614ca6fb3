"""The spacing of a rate limit and the window of a circuit breaker."""

from __future__ import annotations

import random

import pytest

from busline.limits import FailureWindow, Spacing
from busline.options import Breaker, parse_rate

# -- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [("10/m", 6.0), ("2.5/s", 0.4), ("100/h", 36.0), ("1/s", 1.0), ("0.5/h", 7200.0), ("1/m", 60.0)],
)
def test_a_rate_is_a_distance_between_starts(rate: str, seconds: float) -> None:
    assert parse_rate(rate) == seconds


def test_nothing_has_to_wait_at_first() -> None:
    assert Spacing(6.0).wait(0.0) == 0.0
    assert Spacing(6.0).wait(1e9) == 0.0


def test_the_next_start_waits_for_its_turn_and_no_longer() -> None:
    spacing = Spacing(6.0)
    spacing.started(100.0)
    assert [spacing.wait(now) for now in (100.0, 103.0, 106.0, 200.0)] == [6.0, 3.0, 0.0, 0.0]


def test_nothing_is_saved_up_while_idle() -> None:
    spacing = Spacing(6.0)
    spacing.started(0.0)
    spacing.started(1000.0)
    assert spacing.wait(1000.0) == 6.0


def test_no_window_of_a_rate_has_more_starts_than_it_allows() -> None:
    spacing, now, starts, chance = Spacing(parse_rate("10/m")), 0.0, [], random.Random(1)
    while now < 3600:
        now += chance.choice([0.0, 0.1, 30.0]) + spacing.wait(now)
        spacing.started(now)
        starts.append(now)
    for first in starts:
        assert sum(first <= start < first + 59.999 for start in starts) <= 10


# -- breakers ---------------------------------------------------------------------------------------------------------

HALF = Breaker(share=0.5, window=60.0, minimum=4, pause=30.0)


def trips(window: FailureWindow, *ended: tuple[float, bool]) -> list[bool]:
    return [window.ended(now, failed=failed) for now, failed in ended]


def test_it_trips_at_its_share_and_not_below_its_minimum() -> None:
    assert trips(FailureWindow(HALF), (0, True), (1, True), (2, True), (3, True)) == [False, False, False, True]
    assert trips(FailureWindow(HALF), (0, True), (1, False), (2, False), (3, True)) == [False, False, False, True]
    assert not any(trips(FailureWindow(HALF), (0, True), (1, False), (2, False), (3, False)))


def test_counting_begins_anew_after_it_tripped() -> None:
    window = FailureWindow(HALF)
    assert trips(window, *[(n, True) for n in range(4)])[-1]
    assert trips(window, *[(n, True) for n in range(4, 8)]) == [False, False, False, True]


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = FailureWindow(HALF)
    assert not any(trips(window, (0, True), (1, True), (2, True)))
    assert not window.ended(63.5, failed=True)
    assert not window.ended(63.6, failed=False)
    assert trips(window, (63.7, True), (63.8, False)) == [False, True]


def test_the_edge_of_the_window_belongs_to_it() -> None:
    window = FailureWindow(HALF)
    assert not any(trips(window, (0, True), (0, True), (0, True)))
    assert window.ended(60.0, failed=True)


def test_it_agrees_with_a_slow_recount() -> None:
    chance = random.Random(7)
    window, ended, now = FailureWindow(HALF), list[tuple[float, bool]](), 0.0
    tripped = 0
    for _ in range(5000):
        now += chance.choice([0.0, 1.0, 20.0, 70.0])
        failed = chance.random() < 0.3
        ended = [(at, bad) for at, bad in [*ended, (now, failed)] if at >= now - 60]
        bad = sum(bad for _, bad in ended)
        expected = len(ended) >= 4 and bad >= len(ended) / 2
        assert window.ended(now, failed=failed) is expected
        if expected:
            tripped += 1
            ended = []
    assert tripped > 50
