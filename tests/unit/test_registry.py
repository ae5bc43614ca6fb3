"""What a service offers: declarations, the plan of queues, and the errors that travel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from busline.context import Context
from busline.errors import ConfigurationError
from busline.options import Breaker, Check, Options, Queue
from busline.registry import Declaration, ErrorRegistry, Plan
from busline.retry import JOB_RETRY, NO_RETRY, Retry
from busline.wire import decode_error, encode_error

OWN, ROUTERS, SHARED = Retry(max_retries=7), Retry(max_retries=8), Retry(max_retries=9)


async def create(order: dict[str, int]) -> None: ...
async def cancel(order: dict[str, int]) -> None: ...
async def on_user(event: dict[str, int]) -> None: ...


def plain(order: int) -> None: ...
def with_context(order: int, ctx: Context) -> None: ...


class Callable_:
    def __call__(self, order: int) -> None: ...


def handler(topic: str = "orders.create", function: Callable[..., Any] = create, **options: Any) -> Declaration:
    return Declaration(topic, function, Options(**options))


def subscriber(
    pattern: str = "user.*", function: Callable[..., Any] = on_user, *, broadcast: bool = False, **options: Any
) -> Declaration:
    return Declaration(pattern, function, Options(**options), subscriber=True, broadcast=broadcast)


def plan(*declarations: Declaration, service: str | None = "orders", retry: Retry | None = None) -> Plan:
    return Plan(declarations, service=service, retry=retry, instance="one")


# -- declarations -----------------------------------------------------------------------------------------------------


def test_a_declaration_is_called_as_its_function() -> None:
    assert handler().name == "create"
    assert handler(function=Callable_()).name == "Callable_"
    assert handler(function=functools.partial(create)).name == "partial"
    assert handler(function=lambda order: None).name == "<lambda>"


def test_a_prefix_goes_before_topics_and_patterns() -> None:
    assert handler("create").prefixed("orders.", None).topic == "orders.create"
    assert subscriber("*").prefixed("user.", None).topic == "user.*"


def test_what_a_prefix_makes_of_a_topic_is_checked() -> None:
    with pytest.raises(ConfigurationError):
        handler("create").prefixed("orders..", None)
    with pytest.raises(ConfigurationError):
        handler("create").prefixed("*.", None)
    with pytest.raises(ConfigurationError):
        subscriber("#").prefixed("user", None)


def test_the_policy_of_a_router_stands_beside_the_handlers_own() -> None:
    included = handler(retry=OWN).prefixed("", SHARED)
    assert (included.options.retry, included.job_retry) == (OWN, SHARED)
    included = handler().prefixed("", SHARED)
    assert (included.options.retry, included.job_retry) == (None, SHARED)
    assert handler().prefixed("", None).job_retry is None


def test_the_policy_of_the_nearest_router_holds() -> None:
    assert handler().prefixed("", SHARED).prefixed("", OWN).job_retry is SHARED
    assert handler().prefixed("", None).prefixed("", OWN).job_retry is OWN


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_handlers_share_the_queue_of_their_service() -> None:
    queues = plan(handler(), handler("orders.cancel", cancel)).queues
    assert list(queues) == ["orders"]
    queue = queues["orders"]
    assert queue.spec.topics == {"orders.create", "orders.cancel"}
    assert (queue.spec.service, queue.spec.patterns, queue.spec.ephemeral) == ("orders", frozenset(), False)
    found = queue.find("orders.cancel")
    assert found is not None
    assert found.declaration.function is cancel
    assert queue.find("orders.unknown") is None


def test_a_handler_may_name_its_queue_and_then_needs_no_service() -> None:
    queues = plan(handler(queue="imports"), handler("orders.cancel", cancel, queue="imports"), service=None).queues
    assert list(queues) == ["imports"]
    assert queues["imports"].spec.service == "imports"
    assert plan(handler(queue="imports")).queues["imports"].spec.service == "orders"


def test_each_subscriber_has_a_queue_of_its_own() -> None:
    queues = plan(handler(), subscriber(), subscriber("user.#", cancel)).queues
    assert list(queues) == ["orders", "orders.on_user", "orders.cancel"]
    assert queues["orders.on_user"].spec.patterns == {"user.*"}
    found = queues["orders.on_user"].find("whatever.arrives")
    assert found is not None
    assert found.declaration.function is on_user


def test_a_subscriber_may_name_its_queue_and_then_needs_no_service() -> None:
    assert list(plan(subscriber(queue="mine"), service=None).queues) == ["mine"]


def test_a_broadcast_has_a_queue_in_every_process_that_is_gone_with_it() -> None:
    (queue,) = plan(subscriber(broadcast=True)).queues.values()
    assert (queue.spec.name, queue.spec.ephemeral, queue.dead_letters) == ("orders.on_user.one", True, None)


def test_dead_letters_go_to_a_queue_beside_it() -> None:
    (queue,) = plan(handler()).queues.values()
    assert queue.dead_letters is not None
    assert (queue.dead_letters.name, queue.dead_letters.service) == ("orders.dead", "orders")
    assert queue.dead_letters.topics == queue.dead_letters.patterns == frozenset()


@pytest.mark.parametrize(
    ("own", "routers", "shared", "calls", "jobs"),
    [
        (None, None, None, NO_RETRY, JOB_RETRY),
        (None, None, SHARED, NO_RETRY, SHARED),
        (None, ROUTERS, None, NO_RETRY, ROUTERS),
        (None, ROUTERS, SHARED, NO_RETRY, ROUTERS),
        (OWN, None, None, OWN, OWN),
        (OWN, ROUTERS, SHARED, OWN, OWN),
    ],
)
def test_calls_are_retried_only_if_their_handler_says_so(
    own: Retry | None, routers: Retry | None, shared: Retry | None, calls: Retry, jobs: Retry
) -> None:
    (queue,) = plan(handler(retry=own).prefixed("", routers), retry=shared).queues.values()
    (found,) = queue.handlers.values()
    assert (found.call_retry, found.job_retry) == (calls, jobs)


@pytest.mark.parametrize(
    ("declarations", "says"),
    [
        ([handler(), handler(function=cancel)], "two handlers, create and cancel"),
        ([handler(), handler(function=cancel, queue="other")], "two handlers, create and cancel"),
        ([handler(), handler()], "two handlers, create and create"),
        ([subscriber(), subscriber("other.*")], "each subscriber has a queue of its own; rename on_user"),
        ([subscriber(queue="q"), subscriber("o", cancel, queue="q")], "'q'"),
        ([handler(queue="q"), subscriber(queue="q")], "'q'"),
        ([subscriber(queue="q"), handler(queue="q")], "'q' is on_user's alone"),
        ([subscriber(broadcast=True), subscriber("other.*", broadcast=True)], "rename on_user"),
        ([handler(function=print)], "print"),
        ([handler(function=plain, soft_time_limit=1)], "plain is a plain function"),
        ([handler(function=with_context, executor="process")], "with_context asks for the Context"),
        ([handler(executor="process")], "create is async"),
        ([handler(function=lambda order: None, executor="process")], "top level"),
        ([handler(queue=Queue("q")), handler("o.x", cancel, queue="q")], "'q' is create's alone"),
        ([handler(queue="q"), handler("o.x", cancel, queue="q", concurrency=1)], "'q' is cancel's alone"),
        ([handler(on_failure=print)], "print"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_names(declarations: list[Declaration], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        plan(*declarations)


@pytest.mark.parametrize("service", [None, ""])
def test_without_a_service_a_queue_has_to_be_named(service: str | None) -> None:
    with pytest.raises(ConfigurationError, match="service="):
        plan(handler(), service=service)
    with pytest.raises(ConfigurationError, match="queue="):
        plan(subscriber(), service=service)


def test_a_broadcast_and_a_shared_subscriber_of_one_name_are_two_queues() -> None:
    assert set(plan(subscriber(), subscriber(broadcast=True)).queues) == {"orders.on_user", "orders.on_user.one"}


@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": "1/s"},
        {"concurrency": 2},
        {"requires": [Check(on_user)]},
        {"breaker": Breaker()},
        {"queue": Queue()},
    ],
)
def test_what_is_said_of_a_queue_gives_the_handler_one_of_its_own(options: dict[str, Any]) -> None:
    queues = plan(handler(**options), handler("orders.cancel", cancel)).queues
    assert list(queues) == ["orders.orders.create", "orders"]
    own, shared = queues.values()
    assert own.owner is own.find("orders.create")
    assert (own.options, shared.options) == (Options(**options), Options())
    assert shared.owner is None


def test_a_queue_is_declared_as_it_was_described() -> None:
    described = Queue("q", max_priority=10, max_length=5, dead_letter="failed", dead_letter_ttl=60, kind="classic")
    (queue,) = plan(handler(queue=described)).queues.values()
    spec = queue.spec
    assert (spec.name, spec.max_priority, spec.max_length, spec.kind) == ("q", 10, 5, "classic")
    assert spec.dead_letter == "failed"
    assert queue.dead_letters is not None
    assert (queue.dead_letters.name, queue.dead_letters.for_dead_letters) == ("failed", True)


# -- errors that travel -----------------------------------------------------------------------------------------------


class NotFound(Exception):
    def __init__(self, order_id: str, *, shop: str) -> None:
        super().__init__(f"no order {order_id} in {shop}")
        self.order_id = order_id
        self.shop = shop


class Demanding(Exception):
    def __new__(cls, one: int, two: int) -> Demanding:
        return super().__new__(cls)


class Refusing(Exception):
    def __new__(cls) -> Refusing:
        raise SystemError("made by the library only")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Group(ExceptionGroup[Exception]):
    pass


def travel(error: Exception, **registered: type[Exception]) -> tuple[Exception | None, str, str]:
    """The error as the other side gets it: rebuilt or None, with its type and text."""
    errors = ErrorRegistry()
    for code, cls in registered.items():
        errors.add(code, cls)
    kind, text, details = decode_error(encode_error(*errors.describe(error)))
    return errors.rebuild(kind, text, details), kind, text


def test_a_registered_error_arrives_as_itself_without_running_its_constructor() -> None:
    error, kind, _ = travel(NotFound("7", shop="here"), not_found=NotFound)
    assert kind == "not_found"
    assert isinstance(error, NotFound)
    assert (str(error), error.order_id, error.shop) == ("no order 7 in here", "7", "here")


def test_what_is_not_registered_is_never_made() -> None:
    assert travel(NotFound("7", shop="here")) == (None, "NotFound", "no order 7 in here")


def test_a_subclass_of_a_registered_class_is_not_registered() -> None:
    class Special(NotFound):
        pass

    assert travel(Special("7", shop="here"), not_found=NotFound)[:2] == (None, "Special")


def test_an_error_with_fields_that_have_no_json_form_arrives_with_its_text() -> None:
    broken = NotFound("7", shop="here")
    broken.order_id = object()  # type: ignore[assignment]  # that is the point
    error, _, _ = travel(broken, not_found=NotFound)
    assert isinstance(error, NotFound)
    assert error.args == ("no order 7 in here",)
    odd, _, _ = travel(ValueError(object), value=ValueError)
    assert isinstance(odd, ValueError)
    assert odd.args == (str(object),)


@pytest.mark.parametrize("cls", [Demanding, Refusing, Group])
def test_a_class_that_cannot_be_made_is_left_to_the_remote_error(cls: type[Exception]) -> None:
    errors = ErrorRegistry()
    errors.add("code", cls)
    assert errors.rebuild("code", "text", {"args": [1]}) is None


def test_an_error_that_cannot_say_what_it_is_travels_all_the_same() -> None:
    assert travel(Unprintable("x"))[1:] == ("Unprintable", "(its text cannot be had: RuntimeError)")
    error, kind, _ = travel(Unprintable("x"), silent=Unprintable)
    assert kind == "silent"
    assert isinstance(error, Unprintable)


def test_an_error_of_surrogates_travels() -> None:
    assert travel(OSError("file-\udcff"))[2] == "file-?"
    error, _, _ = travel(ValueError("file-\udcff"), value=ValueError)
    assert isinstance(error, ValueError)
    assert error.args == ("file-?",)


def test_a_group_travels_by_its_name() -> None:
    group = ExceptionGroup("several", [ValueError("a"), KeyError("b")])
    assert travel(group)[1:] == ("ExceptionGroup", "several (2 sub-exceptions)")


@pytest.mark.parametrize("details", [{}, {"args": 5, "state": 5}, {"args": None, "state": []}, {"args": {"a": 1}}])
def test_details_of_the_wrong_kind_do_no_harm(details: dict[str, Any]) -> None:
    errors = ErrorRegistry()
    errors.add("value", ValueError)
    error = errors.rebuild("value", "text", details)
    assert isinstance(error, ValueError)
    assert error.args == ("text",)


def test_details_cannot_change_what_an_error_is() -> None:
    errors = ErrorRegistry()
    errors.add("not_found", NotFound)
    state = {"__class__": "int", "__dict__": 5, "__cause__": 5, "__traceback__": 5, "args": [1]}
    error = errors.rebuild("not_found", "text", {"args": ["a"], "state": state})
    assert type(error) is NotFound
    assert (error.args, error.__cause__, error.__traceback__) == (("a",), None, None)


def test_a_base_exception_is_described_by_its_name() -> None:
    assert ErrorRegistry().describe(SystemExit(3)) == ("SystemExit", "3", {})


def test_a_code_means_one_class_and_a_class_has_one_code() -> None:
    errors = ErrorRegistry()
    errors.add("a", ValueError)
    errors.add("a", ValueError)
    assert list(errors.items()) == [("a", ValueError)]
    with pytest.raises(ConfigurationError, match="'a'"):
        errors.add("a", KeyError)
    with pytest.raises(ConfigurationError, match="ValueError"):
        errors.add("b", ValueError)
