"""From a message's body to a handler's arguments: every kind of function, every kind of body."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Optional, cast

import pytest
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from busline.binding import Binding, InvalidPayload
from busline.context import Context
from busline.errors import CodecError, ConfigurationError

CONTEXT = cast("Context", object())


class Order(BaseModel):
    id: str
    qty: int = 1


@dataclass
class Line:
    sku: str
    qty: int


class Address(TypedDict):
    street: str


Positive = Annotated[int, Field(gt=0)]


def bind(function: Callable[..., Any], body: bytes) -> Any:
    """What the function returns for this body."""
    binding = Binding(function)
    result = binding.invoke(binding.parse(body), CONTEXT)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


# -- what a function may ask for --------------------------------------------------------------------------------------


def model(order: Order) -> Any:
    return order


def record(line: Line) -> Any:
    return line


def typed(address: Address) -> Any:
    return address


def builtin(number: int) -> Any:
    return number


def constrained(number: Positive) -> Any:
    return number


def optional(order: Optional[Order]) -> Any:  # noqa: UP045  # people write it
    return order


def untyped(anything) -> Any:  # type: ignore[no-untyped-def]  # people write it
    return anything


def defaulted(number: int = 7) -> Any:
    return number


def keyword_only(*, number: int) -> Any:
    return number


def nothing() -> Any:
    return "called"


def several(sku: str, qty: Positive = 3, *, line: Line | None = None) -> Any:
    return sku, qty, line


def strange(_private: int, json: int, copy: int, schema: int, model_dump: int, model_config: int, self: int) -> Any:
    return _private, json, copy, schema, model_dump, model_config, self


async def coroutine(number: int) -> Any:
    return number


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        (model, b'{"id":"o"}', Order(id="o")),
        (record, b'{"sku":"s","qty":2}', Line("s", 2)),
        (typed, b'{"street":"s"}', {"street": "s"}),
        (builtin, b"5", 5),
        (constrained, b"5", 5),
        (optional, b"", None),
        (optional, b"null", None),
        (optional, b'{"id":"o"}', Order(id="o")),
        (untyped, b'{"any":["thing"]}', {"any": ["thing"]}),
        (untyped, b"", None),
        (defaulted, b"5", 5),
        (defaulted, b"", 7),
        (defaulted, b"null", 7),
        (keyword_only, b"5", 5),
        (nothing, b"", "called"),
        (nothing, b"whatever", "called"),
        (several, b'{"sku":"s"}', ("s", 3, None)),
        (several, b'{"sku":"s","qty":1,"line":{"sku":"t","qty":2},"more":1}', ("s", 1, Line("t", 2))),
        (
            strange,
            b'{"_private":1,"json":2,"copy":3,"schema":4,"model_dump":5,"model_config":6,"self":7}',
            (1, 2, 3, 4, 5, 6, 7),
        ),
        (coroutine, b"5", 5),
    ],
)
def test_a_body_becomes_the_arguments(function: Callable[..., Any], body: bytes, result: Any) -> None:
    assert bind(function, body) == result


def test_the_context_comes_by_annotation_wherever_it_stands() -> None:
    def first(ctx: Context, number: int) -> Any:
        return ctx, number

    def last(number: int, *, anything: Context) -> Any:
        return anything, number

    def alone(ctx: Context) -> Any:
        return ctx, 5

    def among(a: int, ctx: Context, b: int) -> Any:
        return ctx, a + b

    def spare(number: int, ctx: Context = cast("Context", None)) -> Any:  # noqa: B008
        return ctx, number

    for function in (first, last, alone, spare):
        assert bind(function, b"5") == (CONTEXT, 5)
    assert bind(among, b'{"a":2,"b":3}') == (CONTEXT, 5)


def test_a_parameter_that_is_only_called_ctx_is_payload() -> None:
    def handler(ctx: int) -> Any:
        return ctx

    assert bind(handler, b"5") == 5


def test_a_default_that_can_be_changed_is_not_shared_by_messages() -> None:
    def handler(tags: list[str] = [], number: int = 0) -> Any:  # noqa: B006
        tags.append("x")
        return tags

    binding = Binding(handler)
    for _ in range(2):
        assert binding.invoke(binding.parse(b"{}"), CONTEXT) == ["x"]


# -- what counts as a function ----------------------------------------------------------------------------------------


class Service:
    async def method(self, number: int, ctx: Context) -> Any:
        return number, ctx

    @classmethod
    def of_class(cls, number: int) -> Any:
        return number

    @staticmethod
    async def static(number: int) -> Any:
        return number


class Callable_:
    async def __call__(self, number: int) -> Any:
        return number


class Wrapping:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def passing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a coroutine function of any function, as many decorators for logging and timing do."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    return wrapper


class Decorated:
    @passing
    async def __call__(self, number: int) -> Any:
        return number


async def with_dependency(dependency: str, number: int, ctx: Context, *, other: object) -> Any:
    return dependency, number, ctx, other


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (builtin, False),
        (coroutine, True),
        (Service.of_class, False),
        (Service.static, True),
        (Callable_(), True),
        (Decorated(), True),
        (Wrapping(builtin), False),
        (Wrapping(coroutine), True),
        (passing(builtin), False),
        (passing(passing(coroutine)), True),
        (awaiting(builtin), True),
        (awaiting(coroutine), True),
        (passing(awaiting(passing(builtin))), True),
        (functools.partial(coroutine), True),
        (passing(functools.partial(coroutine)), True),
        (functools.partial(awaiting(builtin)), True),
        (functools.partial(Callable_()), True),
        (functools.lru_cache(builtin), False),
    ],
)
def test_whatever_can_be_called_can_handle(function: Callable[..., Any], is_async: bool) -> None:
    assert Binding(function).is_async is is_async
    assert bind(function, b"5") == 5


def test_a_bound_method_keeps_its_self() -> None:
    assert bind(Service().method, b"5") == (5, CONTEXT)


def test_a_partial_keeps_what_it_was_given_and_no_message_can_replace_it() -> None:
    other = object()
    function = functools.partial(functools.partial(with_dependency, "dependency"), other=other)
    assert bind(function, b"5") == ("dependency", 5, CONTEXT, other)
    by_name = functools.partial(with_dependency, dependency="fixed", other=other)
    assert bind(by_name, b"5") == ("fixed", 5, CONTEXT, other)


def test_the_decorators_of_a_handler_are_called_too() -> None:
    seen = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs)
            return function(*args, **kwargs)

        return wrapper

    assert bind(noting(builtin), b"5") == 5
    assert seen == [{"number": 5}]


# -- what is refused when the worker starts ---------------------------------------------------------------------------


def star(*args: int) -> None: ...
def double_star(**kwargs: int) -> None: ...
def star_and_name(number: int, *rest: int) -> None: ...
def positional_only(number: int, /) -> None: ...
def generator(number: int) -> Iterator[int]:
    yield number


async def async_generator(number: int) -> AsyncIterator[int]:
    yield number


def undefined(number: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def undefined_inside(number: list[Nowhere]) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def no_expression(number: "int |") -> None: ...  # type: ignore[syntax]  # noqa: F722
def no_attribute(number: asyncio.Nowhere) -> None: ...  # type: ignore[name-defined]
def no_type(number: 5) -> None: ...  # type: ignore[valid-type]
def no_json(socket: Service) -> None: ...
def no_json_among_others(number: int, socket: Service) -> None: ...
def two_contexts(a: Context, b: Context) -> None: ...
def maybe_context(a: Context | None) -> None: ...
def field_as_default(number: int = Field(3, gt=0)) -> None: ...
def field_as_default_among_others(a: int, number: int = Field(3, gt=0)) -> None: ...


REFUSED: list[tuple[Any, str]] = [
    (star, r"\*args"),
    (double_star, r"\*\*kwargs"),
    (star_and_name, r"\*rest"),
    (positional_only, "number"),
    (generator, "is a generator"),
    (passing(generator), "is a generator"),
    (functools.partial(generator), "is a generator"),
    (async_generator, "is a generator"),
    (undefined, "Nowhere"),
    (undefined_inside, "Nowhere"),
    (no_expression, "cannot be read"),
    (no_attribute, "Nowhere"),
    (no_type, "cannot be read"),
    (no_json, "cannot be read from JSON"),
    (no_json_among_others, "cannot be read from JSON"),
    (two_contexts, "a and b"),
    (maybe_context, "Context"),
    (field_as_default, "Annotated"),
    (field_as_default_among_others, "Annotated"),
    (print, "print"),
    (max, "max"),
    (len, "len"),
    (int, "not a function"),
    (Order, "not a function"),
    (5, "not a function"),
    (None, "not a function"),
    ("builtin", "not a function"),
    (coroutine.__name__, "not a function"),
]


@pytest.mark.parametrize(("function", "says"), REFUSED)
def test_what_cannot_take_a_message_is_refused_with_the_reason(function: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Binding(function)


class Half(BaseModel):
    other: Nowhere  # type: ignore[name-defined]  # noqa: F821


def test_a_model_with_undefined_parts_is_refused_too() -> None:
    def alone(half: Half) -> None: ...
    def among(half: Half, number: int) -> None: ...

    for function in (alone, among):
        with pytest.raises(ConfigurationError, match=r"Half|Nowhere"):
            Binding(function)


# -- what is refused when a message comes -----------------------------------------------------------------------------


class Touchy(BaseModel):
    kind: str

    @field_validator("kind")
    @classmethod
    def _check(cls, kind: str) -> str:
        raise {
            "value": ValueError("not that one"),
            "assertion": AssertionError("not that one"),
            "key": KeyError("not that one"),
            "zero": ZeroDivisionError("not that one"),
            "recursion": RecursionError("not that one"),
            "surrogate": ValueError("not that one \ud800"),
            "dumb": type("Dumb", (Exception,), {"__str__": lambda self: 5})(),
        }[kind]


def touchy(payload: Touchy) -> None: ...
def touchy_among_others(payload: Touchy, number: int = 1) -> None: ...


@pytest.mark.parametrize("kind", ["value", "assertion", "key", "zero", "recursion", "surrogate", "dumb"])
def test_whatever_a_validator_raises_the_payload_is_invalid(kind: str) -> None:
    with pytest.raises(InvalidPayload) as caught:
        Binding(touchy).parse(b'{"kind":"%s"}' % kind.encode())
    assert str(caught.value).encode()
    with pytest.raises(InvalidPayload):
        Binding(touchy_among_others).parse(b'{"payload":{"kind":"%s"}}' % kind.encode())


@pytest.mark.parametrize(
    ("function", "body", "says"),
    [
        (builtin, b'"five"', "body: "),
        (builtin, b"", "body: "),
        (builtin, b"5.5", "body: "),
        (constrained, b"0", "greater than 0"),
        (model, b"null", "body: "),
        (model, b"{}", "id: Field required"),
        (record, b'{"sku":"s"}', "qty: "),
        (several, b"", "body: "),
        (several, b"[]", "body: "),
        (several, b"{}", "sku: Field required"),
        (several, b'{"sku":"s","qty":0}', "qty: "),
        (several, b'{"sku":"s","line":{"sku":1}}', "line.sku: "),
        (strange, b'{"p0":1}', "_private: Field required"),
    ],
)
def test_what_does_not_fit_is_invalid_and_says_where(function: Callable[..., Any], body: bytes, says: str) -> None:
    with pytest.raises(InvalidPayload, match=says):
        Binding(function).parse(body)


@pytest.mark.parametrize("function", [builtin, model, record, typed, optional, untyped, defaulted, several, touchy])
@pytest.mark.parametrize(
    "body",
    [b"{", b'"\xff"', b'"\\ud800"', b"[" * 100_000, b"9" * 200_000, b"\x00", b"\xef\xbb\xbf1"],
    ids=["cut off", "invalid UTF-8", "surrogate", "depth bomb", "200,000 digits", "zero", "byte order mark"],
)
def test_what_is_not_json_is_undecodable(function: Callable[..., Any], body: bytes) -> None:
    with pytest.raises(CodecError, match="not JSON"):
        Binding(function).parse(body)


# -- on_failure -------------------------------------------------------------------------------------------------------


def test_on_failure_takes_single_names_of_a_payload_that_its_handler_takes_by_name() -> None:
    def handler(job_id: str, path: str) -> None: ...
    def told(job_id: str, error: Exception) -> None: ...

    binding = Binding(told, on_failure_of=Binding(handler))
    failure = OSError("full")
    arguments = binding.arguments(binding.parse(b'{"job_id": "7", "path": "/tmp"}'), None, failure)
    assert arguments == {"job_id": "7", "error": failure}


def test_on_failure_takes_the_whole_payload_under_a_name_of_its_own() -> None:
    def handler(job_id: str, path: str) -> None: ...
    def told(question: dict[str, str]) -> None: ...

    binding = Binding(told, on_failure_of=Binding(handler))
    assert binding.arguments(binding.parse(b'{"job_id": "7"}'), None) == {"question": {"job_id": "7"}}


def test_on_failure_takes_the_whole_payload_where_its_handler_does() -> None:
    def handler(job: dict[str, str]) -> None: ...
    def told(job: dict[str, str], error: Exception) -> None: ...
    def needs_nothing() -> None: ...

    binding = Binding(told, on_failure_of=Binding(handler))
    assert binding.arguments(binding.parse(b'{"a": "b"}'), None, None) == {"job": {"a": "b"}, "error": None}
    nothing = Binding(needs_nothing, on_failure_of=Binding(handler))
    assert nothing.arguments(nothing.parse(b'{"a": "b"}'), None, None) == {}
