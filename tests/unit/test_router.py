"""Declaring handlers and subscribers, without a bus at hand."""

from __future__ import annotations

from typing import Any

import pytest

from busline.errors import ConfigurationError
from busline.options import Options, Queue
from busline.registry import Declaration
from busline.retry import Retry
from busline.router import Router
from busline.topics import Topic

OWN, SHARED = Retry(max_retries=7), Retry(max_retries=8)


async def function(payload: int) -> None: ...


class NotFound(Exception):
    pass


class Other(Exception):
    pass


def only(router: Router) -> Declaration:
    (declaration,) = router.declarations
    return declaration


def test_a_handler_stays_an_ordinary_function() -> None:
    router = Router()
    assert router.handler("a.topic")(function) is function
    assert router.subscriber("a.*")(function) is function
    assert router.error("code")(NotFound) is NotFound


def test_what_was_declared_is_kept_in_order() -> None:
    router = Router()
    router.handler("b")(function)
    router.subscriber("a.#")(function)
    router.handler("a")(function)
    assert [(d.topic, d.subscriber) for d in router.declarations] == [("b", False), ("a.#", True), ("a", False)]


def test_a_handler_is_declared_with_its_options() -> None:
    router = Router()
    router.handler("a.topic", queue="q", retry=OWN)(function)
    assert only(router) == Declaration("a.topic", function, Options(queue="q", retry=OWN))


def test_a_topic_with_types_is_declared_by_its_name() -> None:
    router = Router()
    router.handler(Topic("a.topic", int, str))(function)
    assert only(router).topic == "a.topic"


def test_a_subscriber_is_declared_with_its_options() -> None:
    router = Router()
    router.subscriber("a.*", queue="q", retry=OWN)(function)
    assert only(router) == Declaration("a.*", function, Options(queue="q", retry=OWN), subscriber=True)


def test_a_broadcast_is_delivered_at_most_once() -> None:
    router = Router()
    router.subscriber("config.#", broadcast=True)(function)
    assert only(router).broadcast
    assert only(router).options.retry == Retry(max_retries=0)
    with pytest.raises(ConfigurationError, match="at most once"):
        router.subscriber("config.#", broadcast=True, retry=OWN)
    with pytest.raises(ConfigurationError, match="at most once"):
        router.subscriber("config.#", broadcast=True, queue=Queue(message_ttl=1))


@pytest.mark.parametrize("topic", ["", ".", "a..b", "a.*", "#", "x" * 256])
def test_what_cannot_be_a_topic_is_refused_where_it_is_written(topic: str) -> None:
    with pytest.raises(ConfigurationError):
        Router().handler(topic)


@pytest.mark.parametrize("pattern", ["", ".", "a..b", "a.b*", "#a", "x" * 256])
def test_what_cannot_be_a_pattern_is_refused_where_it_is_written(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        Router().subscriber(pattern)


@pytest.mark.parametrize("queue", ["", "x" * 201, "ü" * 101, "\ud800"])
def test_what_cannot_name_a_queue_is_refused(queue: str) -> None:
    with pytest.raises(ConfigurationError, match="200 bytes"):
        Router().handler("a.topic", queue=queue)
    with pytest.raises(ConfigurationError, match="200 bytes"):
        Router().subscriber("a.*", queue=queue)


def test_a_queue_may_have_any_name_that_is_text() -> None:
    router = Router()
    router.handler("a.topic", queue="ü" * 100)(function)
    assert only(router).options.queue == "ü" * 100


def test_a_decorator_without_its_parentheses_says_so() -> None:
    forgetful: Any = Router()
    with pytest.raises(ConfigurationError, match=r"handler\(\"some.topic\"\)"):
        forgetful.handler(function)
    with pytest.raises(ConfigurationError, match=r"subscriber\(\"some.topic\"\)"):
        forgetful.subscriber(function)


def test_what_is_included_gets_the_prefix_and_the_policy() -> None:
    orders = Router(retry=SHARED)
    orders.handler("create")(function)
    orders.handler("cancel", retry=OWN)(function)
    orders.subscriber("*")(function)
    root = Router()
    root.include(orders, prefix="orders.")
    assert [(d.topic, d.options.retry, d.job_retry) for d in root.declarations] == [
        ("orders.create", None, SHARED),
        ("orders.cancel", OWN, SHARED),
        ("orders.*", None, SHARED),
    ]
    assert [d.topic for d in orders.declarations] == ["create", "cancel", "*"]


def test_prefixes_add_up_and_the_inner_policy_wins() -> None:
    inner, middle, outer = Router(retry=OWN), Router(retry=SHARED), Router()
    inner.handler("c")(function)
    middle.include(inner, prefix="b.")
    outer.include(middle, prefix="a.")
    assert (only(outer).topic, only(outer).job_retry) == ("a.b.c", OWN)


def test_a_prefix_that_makes_no_topic_is_refused() -> None:
    router = Router()
    router.handler("create")(function)
    with pytest.raises(ConfigurationError):
        Router().include(router, prefix="orders..")


def test_errors_are_included_too() -> None:
    orders, root = Router(), Router()
    orders.error("not_found")(NotFound)
    root.include(orders, prefix="orders.")
    assert dict(root._errors.items()) == {"not_found": NotFound}
    root.include(orders)
    with pytest.raises(ConfigurationError, match="not_found"):
        root.error("not_found")(Other)
