"""A client of a whole service, made from a class that describes it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from busline.binding import hints_of
from busline.codec import decoder
from busline.context import Context
from busline.context import Verbs as Speaking
from busline.errors import ConfigurationError
from busline.jobs import Job
from busline.topics import check_topic

S = TypeVar("S")

_SENDS = frozenset({"queue", "priority", "headers"})
"""Options of a call that make sense for a job, too."""


def client_of(bus: Speaking, service: Callable[..., S], prefix: str | None, options: Mapping[str, Any]) -> S:
    """See `Verbs.client`. The class comes as a callable, because mypy takes no Protocol for a type[S]."""
    if not isinstance(service, type):
        raise ConfigurationError(f"{service!r} is not a class whose methods describe a service")
    before = _prefix(service) if prefix is None else prefix
    functions = _functions(service)
    methods = {name: _method(bus, service, name, function, before, options) for name, function in functions.items()}
    text = f"<client of {service.__name__} at {before}*>"
    made = type(f"{service.__name__}Client", (), {"__slots__": (), "__repr__": lambda self: text, **methods})
    return cast("S", made())


def _prefix(service: type) -> str:
    name = service.__name__.removesuffix("Service").lstrip("_")
    if not name:
        raise ConfigurationError(
            f"{service.__name__} names no service: give the prefix of its topics, prefix='orders.'"
        )
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() + "."


def _functions(service: type) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for cls in reversed(service.__mro__):
        if cls in (object, Protocol) or cls.__module__ == "typing":
            continue
        fields = [name for name in inspect.get_annotations(cls) if not name.startswith("_")]
        for name in [*vars(cls), *fields]:
            if name.startswith("_"):
                continue
            value = vars(cls).get(name)
            if not inspect.isfunction(value):
                raise ConfigurationError(f"{service.__name__}.{name} is not a method; a service has nothing else")
            found[name] = value
    if not found:
        raise ConfigurationError(f"{service.__name__} has no public methods, so there is nothing to call")
    return found


def _method(
    bus: Speaking, service: type, name: str, function: Callable[..., Any], prefix: str, options: Mapping[str, Any]
) -> Callable[..., Any]:
    topic = check_topic(prefix + name)
    where = f"{service.__name__}.{name}"
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{where} is not async; whoever calls a service waits for it")
    hints = hints_of(function)
    if "return" not in hints:
        raise ConfigurationError(f"{where} does not say what it returns: annotate it, -> None if nothing")
    signature = inspect.signature(function)
    names = _check_parameters(where, list(signature.parameters.values())[1:], hints)
    returns = hints["return"]
    sends = returns is Job
    given = {key: value for key, value in options.items() if not sends or key in _SENDS}
    if not sends:
        decoder(returns)  # raises for what cannot be read from JSON
        given["returns"] = None if returns is Any else returns

    async def method(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {parameter: bound.arguments[parameter] for parameter in names}
        payload = values if len(names) > 1 else next(iter(values.values()), None)
        return await (bus.send if sends else bus.call)(topic, payload, **given)

    method.__name__, method.__doc__ = name, function.__doc__
    method.__signature__ = signature  # type: ignore[attr-defined]  # as functools.wraps would, without __wrapped__
    return method


def _check_parameters(where: str, parameters: list[inspect.Parameter], hints: Mapping[str, Any]) -> tuple[str, ...]:
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(f"{where} has the parameter {parameter}; a payload's are named, one by one")
        annotation = hints.get(parameter.name, parameter.empty)
        if annotation is parameter.empty:
            raise ConfigurationError(f"{where} does not say what {parameter.name} is")
        if annotation is Context:
            raise ConfigurationError(f"{where} asks for the context, which a handler has and its caller has not")
        decoder(annotation)
    return tuple(parameter.name for parameter in parameters)
