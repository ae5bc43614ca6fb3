"""Many deadlines, one timer."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busline.clock import Timer
from busline.testing.clock import VirtualClock
from busline.wheel import RESOLUTION, Wheel

always = settings(derandomize=True, deadline=None)
START = 1_000_000_000.0


class Hand:
    """A timer that a test may look at."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Clockwork:
    """A clock without a loop, turned to exactly where its next timer is due; it keeps every timer it gave out."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.hands: list[Hand] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.hands.append(Hand(when, callback))
        return self.hands[-1]

    @property
    def armed(self) -> list[Hand]:
        return [hand for hand in self.hands if not hand.cancelled]

    def tick(self) -> None:
        hand = min(self.armed, key=lambda hand: hand.when)
        self.hands.remove(hand)
        self.now = max(self.now, hand.when)
        hand.callback()


class Diary:
    """A wheel that notes what it reported, and when."""

    def __init__(self, now: float = 0.0) -> None:
        self.clock = Clockwork(now)
        self.reported: dict[str, float] = {}
        self.wheel: Wheel[str] = Wheel(self.clock, self.note)

    def note(self, key: str) -> None:
        assert key not in self.reported, "reported twice"
        self.reported[key] = self.clock.now

    def run(self) -> None:
        while self.clock.armed:
            self.clock.tick()


instants = st.floats(0, 100) | st.floats(START, START + 100) | st.integers(0, 10_000).map(lambda n: n / 100)


@always
@given(st.lists(instants, min_size=1))
def test_a_key_is_never_reported_early_and_late_by_a_bucket_at_most(deadlines: list[float]) -> None:
    diary = Diary()
    for number, at in enumerate(deadlines):
        diary.wheel.add(str(number), at)
    assert len(diary.wheel) == len(deadlines)
    for _ in deadlines:  # one turn each at most: no timer fires for nothing
        if diary.clock.armed:
            diary.clock.tick()
    assert len(diary.wheel) == 0
    for number, at in enumerate(deadlines):
        assert at <= diary.reported[str(number)] <= at + RESOLUTION


@always
@given(st.lists(st.tuples(instants, st.booleans())))
def test_what_was_discarded_is_not_reported(entries: list[tuple[float, bool]]) -> None:
    diary = Diary()
    tickets = [diary.wheel.add(str(number), at) for number, (at, _) in enumerate(entries)]
    for number, (_, kept) in enumerate(entries):
        if not kept:
            diary.wheel.discard(str(number), tickets[number])
    diary.run()
    assert set(diary.reported) == {str(number) for number, (_, kept) in enumerate(entries) if kept}
    assert len(diary.wheel) == 0


def test_there_is_one_timer_and_it_is_for_the_earliest() -> None:
    diary = Diary()
    for at in (30.0, 20.0, 40.0, 10.0):
        diary.wheel.add(str(at), at)
    (hand,) = diary.clock.armed
    assert 10.0 <= hand.when <= 10.0 + RESOLUTION


def test_a_key_in_the_past_is_reported_in_the_next_turn() -> None:
    diary = Diary(START)
    diary.wheel.add("late", START - 1000)
    assert not diary.reported
    diary.clock.tick()
    assert diary.reported == {"late": START}


def test_a_timer_that_fires_early_reports_nothing_and_is_set_again() -> None:
    diary = Diary()
    diary.wheel.add("a", 10.0)
    (hand,) = diary.clock.hands
    diary.clock.hands.clear()
    diary.clock.now = 9.99
    hand.callback()
    assert not diary.reported
    diary.run()
    assert diary.reported["a"] >= 10.0


def test_discarding_twice_or_what_was_reported_is_harmless() -> None:
    diary = Diary()
    ticket = diary.wheel.add("a", 1.0)
    diary.run()
    diary.wheel.discard("a", ticket)
    other = diary.wheel.add("b", 2.0)
    diary.wheel.discard("b", other)
    diary.wheel.discard("b", other)
    diary.wheel.discard("never", 12345)
    assert len(diary.wheel) == 0


def test_many_short_lived_keys_leave_nothing_behind() -> None:
    """A call that is answered at once adds and discards; the next one shares its bucket."""
    diary = Diary()
    for number in range(10_000):
        key = str(number)
        diary.wheel.discard(key, diary.wheel.add(key, 3600.0))
    assert len(diary.wheel) == 0
    assert len(diary.clock.hands) == 1
    assert len(diary.wheel._heap) == 1


def test_deadlines_far_away_that_were_met_long_before_are_not_remembered() -> None:
    """Calls of an hour's timeout that are answered at once, for an hour; a few take longer."""
    diary = Diary()
    for second in range(3600):
        diary.clock.now = float(second)
        key = str(second)
        ticket = diary.wheel.add(key, second + 3600.0)
        if second % 100:
            diary.wheel.discard(key, ticket)
        assert len(diary.wheel._buckets) == len(diary.wheel._heap) <= 64 + 2 * len(diary.wheel)
    diary.run()
    assert len(diary.reported) == 36


def test_on_due_may_add_so_many_that_what_is_empty_is_cleared_away() -> None:
    clock = Clockwork()
    reported: list[str] = []

    def on_due(key: str) -> None:
        reported.append(key)
        wheel.discard("same bucket", ticket)
        if key == "first":
            for number in range(1000):
                wheel.discard("gone", wheel.add("gone", 10.0 + number))
            wheel.add("last", 5000.0)

    wheel: Wheel[str] = Wheel(clock, on_due)
    ticket = wheel.add("same bucket", 1.0)
    wheel.add("first", 1.0)
    while clock.armed:
        clock.tick()
    assert reported == ["first", "last"]
    assert not wheel._buckets


def test_buckets_that_were_emptied_set_no_timer() -> None:
    diary = Diary()
    diary.wheel.add("first", 1.0)
    for number in range(2, 50):
        diary.wheel.discard("gone", diary.wheel.add("gone", float(number)))
    diary.wheel.add("last", 100.0)
    diary.clock.tick()
    diary.clock.tick()
    assert set(diary.reported) == {"first", "last"}
    assert not diary.clock.armed


def test_on_due_may_add_and_discard() -> None:
    clock = Clockwork()
    reported: list[str] = []

    def on_due(key: str) -> None:
        reported.append(key)
        if key == "first":
            wheel.add("far", 1000.0)
            wheel.add("past", 0.0)
            wheel.discard("discarded", ticket)

    wheel: Wheel[str] = Wheel(clock, on_due)
    wheel.add("near", 5.0)
    ticket = wheel.add("discarded", 2.0)
    wheel.add("first", 1.0)
    while clock.armed:
        clock.tick()
        if "near" in reported:
            assert clock.now < 1000.0 or "far" in reported
    assert reported == ["first", "past", "near", "far"]


def test_a_key_near_by_does_not_wait_for_one_that_on_due_added_far_away() -> None:
    clock = Clockwork()
    seen: dict[str, float] = {}

    def on_due(key: str) -> None:
        seen[key] = clock.now
        if key == "first":
            wheel.add("far", 1000.0)

    wheel: Wheel[str] = Wheel(clock, on_due)
    wheel.add("first", 1.0)
    wheel.add("near", 5.0)
    while clock.armed:
        clock.tick()
    assert 5.0 <= seen["near"] <= 5.0 + RESOLUTION


def test_a_key_is_not_reported_after_another_of_its_bucket_discarded_it() -> None:
    clock = Clockwork()
    reported: list[str] = []

    def on_due(key: str) -> None:
        reported.append(key)
        for other, ticket in tickets.items():
            if other != key:
                wheel.discard(other, ticket)

    wheel: Wheel[str] = Wheel(clock, on_due)
    tickets = {key: wheel.add(key, 1.0) for key in "abc"}
    while clock.armed:
        clock.tick()
    assert len(reported) == 1


def test_closing_forgets_everything_and_calls_the_timer_off() -> None:
    diary = Diary()
    diary.wheel.add("a", 1.0)
    diary.wheel.close()
    diary.wheel.close()
    assert len(diary.wheel) == 0
    assert not diary.clock.armed


@pytest.mark.parametrize("instant", [inf, -inf, nan])
def test_an_instant_that_never_comes_is_refused_and_not_kept(instant: float) -> None:
    diary = Diary()
    with pytest.raises((OverflowError, ValueError)):
        diary.wheel.add("never", instant)
    assert len(diary.wheel) == 0
    assert not diary.clock.armed


async def test_a_wheel_turns_with_the_clock() -> None:
    clock = VirtualClock(0.0)
    reported: list[str] = []
    wheel: Wheel[str] = Wheel(clock, reported.append)
    wheel.add("a", 0.29)  # 0.29 / 0.01 is 28.999…
    await clock.advance(0.28)
    assert reported == []
    await clock.advance(0.02)
    assert reported == ["a"]
