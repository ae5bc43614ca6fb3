"""What may be said beside a handler, and what is refused where it is written."""

from __future__ import annotations

import asyncio
from dataclasses import FrozenInstanceError
from math import inf, nan
from typing import Any, get_type_hints

import pytest

from busline import Bus
from busline.errors import ConfigurationError
from busline.options import Breaker, Check, HandlerOptions, Options, Queue, check_queue_name, parse_rate
from busline.routes import LONGEST, Routes, check_seconds
from busline.topics import check_pattern, check_topic


async def check() -> None: ...


@pytest.mark.parametrize(
    "rate", ["", "10", "10/", "/m", "10/d", "ten/m", "-1/s", "0/s", "0.0/h", "1/s ", "1e3/s", "inf/s"]
)
def test_what_is_no_rate_is_refused_with_an_example(rate: str) -> None:
    with pytest.raises(ConfigurationError, match="10/m"):
        parse_rate(rate)
    with pytest.raises(ConfigurationError, match="10/m"):
        Options(rate_limit=rate)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ack": "never"}, "'late' or 'early'"),
        ({"executor": "fiber"}, "'thread' or 'process'"),
        ({"on_down": "panic", "requires": [check]}, "'pause' or 'answer' or 'warn'"),
        ({"on_down": "answer"}, "there is none"),
        ({"on_down": "warn"}, "there is none"),
        ({"soft_time_limit": 0}, "positive"),
        ({"soft_time_limit": -1}, "positive"),
        ({"soft_time_limit": nan}, "positive"),
        ({"time_limit": 0}, "positive"),
        ({"time_limit": nan}, "positive"),
        ({"soft_time_limit": 5, "time_limit": 5}, "must end before"),
        ({"soft_time_limit": 6, "time_limit": 5}, "must end before"),
        ({"concurrency": 0}, "at least 1"),
        ({"concurrency": -1}, "at least 1"),
        ({"queue": ""}, "200 bytes"),
        ({"queue": "\ud800"}, "200 bytes"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Options(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft_time_limit": 1, "time_limit": 2},
        {"soft_time_limit": 1},
        {"time_limit": 0.001},
        {"on_down": "pause"},
        {"on_down": "answer", "requires": [check]},
        {"ack": "early", "executor": "process"},
    ],
)
def test_what_can_be_is_taken(options: dict[str, Any]) -> None:
    assert not [
        name for name, value in options.items() if name != "requires" and getattr(Options(**options), name) != value
    ]


@pytest.mark.parametrize(
    ("options", "owns"),
    [
        ({}, False),
        ({"queue": "q"}, False),
        ({"time_limit": 1, "ack": "early"}, False),
        ({"queue": Queue()}, True),
        ({"queue": Queue("q")}, True),
        ({"rate_limit": "1/s"}, True),
        ({"concurrency": 1}, True),
        ({"requires": [check]}, True),
        ({"breaker": Breaker()}, True),
    ],
)
def test_what_is_said_of_a_queue_asks_for_one(options: dict[str, Any], owns: bool) -> None:
    assert Options(**options).owns_queue is owns


def test_a_queue_may_be_given_by_name_or_whole() -> None:
    assert Options().queue_options == Queue()
    assert Options(queue="q").queue_options == Queue("q")
    whole = Queue("q", message_ttl=5)
    assert Options(queue=whole).queue_options is whole


def test_checks_may_be_given_as_functions_or_with_their_figures() -> None:
    given = Check(check, period=1, timeout=0.5)
    assert Options(requires=[check, given]).checks == (Check(check), given)
    assert given.name == "check"


def test_every_option_of_the_decorators_is_one_of_the_options() -> None:
    assert set(get_type_hints(HandlerOptions)) == set(Options.__dataclass_fields__) - {"checks"}


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Options().ack = "early"  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "x" * 201},
        {"name": "\ud800"},
        {"dead_letter": ""},
        {"dead_letter": "ü" * 101},
        {"message_ttl": 0},
        {"message_ttl": -1},
        {"message_ttl": nan},
        {"dead_letter_ttl": 0},
        {"max_length": 0},
        {"max_priority": 0},
        {"max_priority": 256},
        {"max_priority": -1},
    ],
)
def test_what_no_queue_can_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Queue(**fields)


def test_what_a_queue_can_be() -> None:
    Queue("ü" * 100, message_ttl=0.1, max_priority=255, max_length=1, dead_letter="d", dead_letter_ttl=1)
    Queue(max_priority=1)
    assert check_queue_name(None) is None
    assert check_queue_name("q") == "q"


@pytest.mark.parametrize("figures", [{"period": 0}, {"timeout": 0}, {"period": nan}, {"timeout": -1}])
def test_a_check_has_positive_figures(figures: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="positive"):
        Check(check, **figures)


@pytest.mark.parametrize(
    "figures",
    [{"share": 0}, {"share": 1.1}, {"share": nan}, {"window": 0}, {"minimum": 0}, {"pause": 0}, {"pause": nan}],
)
def test_a_breaker_has_figures_that_make_sense(figures: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="breaker"):
        Breaker(**figures)


# -- what senders give ------------------------------------------------------------------------------------------------

NO_TIME = [inf, -inf, nan, 0, -1, 1e308, LONGEST * 1.01]


@pytest.mark.parametrize("seconds", NO_TIME)
def test_what_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="ttl is a positive number"):
        check_seconds("ttl", seconds)


@pytest.mark.parametrize("seconds", NO_TIME)
async def test_no_verb_takes_what_is_no_time(seconds: float) -> None:
    async with Bus("memory://no-time") as bus:
        with pytest.raises(ConfigurationError, match="timeout"):
            await bus.call("a.topic", timeout=seconds)
        with pytest.raises(ConfigurationError, match="ttl"):
            await bus.send("a.topic", ttl=seconds)
        with pytest.raises(ConfigurationError, match="ttl"):
            await bus.publish("a.topic", ttl=seconds)
        if seconds != 0:
            with pytest.raises(ConfigurationError, match="delay"):
                await bus.send("a.topic", delay=seconds)


@pytest.mark.parametrize("seconds", NO_TIME)
def test_nor_does_a_bus_as_its_default(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="call_timeout"):
        Bus("memory://no-time", call_timeout=seconds)


async def test_a_very_long_time_is_one() -> None:
    bus = Bus("memory://long-time", service="svc")

    @bus.handler("a.topic")
    async def handler() -> str:
        return "answer"

    async with bus.worker():
        assert await bus.call("a.topic", timeout=LONGEST) == "answer"
        await bus.send("a.topic", delay=LONGEST, ttl=LONGEST)
        await asyncio.sleep(0)


@pytest.mark.parametrize("topic", ["", "\ud800", "a.\udcff.b", "x" * 256, "ü" * 128, "a..b", ".", "a.*"])
async def test_no_verb_takes_what_is_no_topic(topic: str) -> None:
    async with Bus("memory://no-topic") as bus:
        for verb in (bus.call, bus.send, bus.publish):
            with pytest.raises(ConfigurationError):
                await verb(topic)
    with pytest.raises(ConfigurationError):
        check_topic(topic)


@pytest.mark.parametrize("pattern", ["\ud800", "a.\udcff", "\ud800.#"])
def test_a_pattern_is_text(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        check_pattern(pattern)
    with pytest.raises(ConfigurationError):
        Routes({pattern: "q"})
