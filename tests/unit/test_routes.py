"""Where a message goes when its sender says more than its topic, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from math import inf, nan

import pytest

from busline.errors import ConfigurationError
from busline.message import ToQueue, ToTopic
from busline.routes import LONGEST, Routes, seconds_until

NOW = 1_000_000_000.0
ROUTES = {"orders.*": "orders-eu", "orders.#": "orders-rest", "exact": "q", "#": "default"}


@pytest.mark.parametrize(
    ("topic", "queue", "to"),
    [
        ("orders.create", None, ToQueue("orders-eu")),
        ("orders.create.now", None, ToQueue("orders-rest")),
        ("orders", None, ToQueue("orders-rest")),
        ("exact", None, ToQueue("q")),
        ("other", None, ToTopic("other")),
        ("orders.create", "named", ToQueue("named")),
        ("other", "named", ToQueue("named")),
    ],
)
def test_a_named_queue_wins_then_the_first_route_then_the_owner(
    topic: str, queue: str | None, to: ToQueue | ToTopic
) -> None:
    assert Routes(ROUTES).to(topic, queue) == to


def test_the_fallback_is_for_what_nobody_owns() -> None:
    assert Routes(ROUTES).fallback == "default"
    assert Routes({"#": "default"}).to("any.topic", None) == ToTopic("any.topic")
    assert Routes(None).fallback is None
    assert Routes({}).to("any.topic", None) == ToTopic("any.topic")


@pytest.mark.parametrize("pattern", ["", "a..b", "a*"])
def test_a_route_has_a_pattern(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        Routes({pattern: "q"})


@pytest.mark.parametrize(
    ("delay", "eta", "seconds"),
    [
        (None, None, 0.0),
        (0, None, 0.0),
        (2.5, None, 2.5),
        (LONGEST, None, LONGEST),
        (None, datetime.fromtimestamp(NOW + 60, UTC), 60.0),
        (None, datetime.fromtimestamp(NOW + 60, timezone(timedelta(hours=9))), 60.0),
        (None, datetime.fromtimestamp(NOW - 60, UTC), 0.0),
        (None, datetime.min.replace(tzinfo=UTC), 0.0),
    ],
)
def test_a_delay_may_be_given_as_seconds_or_as_an_instant(
    delay: float | None, eta: datetime | None, seconds: float
) -> None:
    assert seconds_until(delay, eta, NOW) == seconds


def test_the_last_instant_there_is_can_be_waited_for() -> None:
    assert 0 < seconds_until(None, datetime.max.replace(tzinfo=UTC), 0.0) < LONGEST


@pytest.mark.parametrize(
    ("delay", "eta", "says"),
    [
        (1.0, datetime.fromtimestamp(NOW, UTC), "not both"),
        (0.0, datetime.fromtimestamp(NOW, UTC), "not both"),
        (None, datetime(2030, 1, 1), "time zone"),
        (-1.0, None, "from 0"),
        (nan, None, "from 0"),
        (inf, None, "from 0"),
    ],
)
def test_what_is_no_delay_is_refused(delay: float | None, eta: datetime | None, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        seconds_until(delay, eta, NOW)
