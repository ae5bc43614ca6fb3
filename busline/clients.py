"""A client of a whole service, made from a class that describes it or from its handlers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

from busline.binding import Binding, hints_of
from busline.codec import decoder
from busline.context import Context
from busline.context import Verbs as Speaking
from busline.errors import ConfigurationError
from busline.jobs import Job
from busline.references import References
from busline.remote import Remote
from busline.router import Router
from busline.topics import check_topic

Function = Callable[..., Any]

_SENDS = frozenset({"queue", "priority", "headers"})
"""Options of a call that make sense for a job, too."""
_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


class Client:
    """Calls the handlers of a router or a module by their names. Type checkers know neither names nor types; `remote`
    tells them."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        names = [each for each in dir(type(self)) if not each.startswith("_")]
        raise AttributeError(f"{self!r} has no {name!r}; it has {', '.join(names)}", name=name, obj=self)


def client_of(
    bus: Speaking, references: References, service: object, prefix: str | None, options: Mapping[str, Any]
) -> Any:
    """See `Verbs.client`."""
    if isinstance(service, Router | ModuleType):
        if prefix is not None:
            raise ConfigurationError("handlers know their topics: prefix= is for a class whose methods describe them")
        functions = _functions(service, references)
        text = service.__name__ if isinstance(service, ModuleType) else ", ".join(functions)
        return _made("Client", text, {n: _asking(bus, n, f, references, options) for n, f in functions.items()})
    if not isinstance(service, type):
        raise ConfigurationError(f"{service!r} is not a class that describes a service, nor a router or a module")
    described, text = _described(service), service.__name__
    if not all(isinstance(each, Remote) for each in described.values()):
        prefix = _prefix(service) if prefix is None else prefix
        text = f"{text} at {prefix}*"
    methods = {
        name: _asking(bus, name, each.function, references, options)
        if isinstance(each, Remote)
        else _method(bus, service, name, each, prefix or "", options)
        for name, each in described.items()
    }
    return _made(f"{service.__name__}Client", text, methods)


def _made(name: str, of: str, methods: Mapping[str, Function]) -> Any:
    return type(name, (Client,), {"__slots__": (), "__repr__": lambda self: f"<client of {of}>", **methods})()


def _functions(service: Router | ModuleType, references: References) -> dict[str, Function]:
    if isinstance(service, ModuleType):
        found = {name: each for name, each in vars(service).items() if references.knows(each)}
    else:
        found = {}
        for each in service.declarations:
            if not each.subscriber and found.setdefault(each.name, each.function) is not each.function:
                raise ConfigurationError(f"the router has two handlers named {each.name}: call them by their topics")
    if not found:
        raise ConfigurationError(f"{service!r} has no handler of this bus: has its router been included?")
    return found


def _asking(
    bus: Speaking, name: str, function: Function, references: References, options: Mapping[str, Any]
) -> Function:
    references.find(function)  # raises for what cannot be called by its function
    binding, whole = Binding(function), inspect.signature(function)
    given = whole.replace(parameters=[whole.parameters[each] for each in binding.payload_names])

    async def method(self: Client, *args: Any, **kwargs: Any) -> Any:
        values = given.bind(*args, **kwargs).arguments
        return await bus.call(function, values if binding.by_name else next(iter(values.values()), None), **options)

    return _documented(method, name, function, given.replace(parameters=[_SELF, *given.parameters.values()]))


def _documented(method: Function, name: str, function: Function, signature: inspect.Signature) -> Function:
    """As functools.wraps would, without `__wrapped__`."""
    method.__name__, method.__doc__ = name, function.__doc__
    method.__signature__ = signature  # type: ignore[attr-defined]  # which inspect.signature looks for
    return method


def _prefix(service: type) -> str:
    name = service.__name__.removesuffix("Service").lstrip("_")
    if not name:
        raise ConfigurationError(
            f"{service.__name__} names no service: give the prefix of its topics, prefix='orders.'"
        )
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() + "."


def _described(service: type) -> dict[str, Any]:
    """What it has: functions, and handlers as `Remote`."""
    found: dict[str, Any] = {}
    for cls in reversed(service.__mro__):
        if cls in (object, Protocol) or cls.__module__ == "typing":
            continue
        fields = [name for name in inspect.get_annotations(cls) if not name.startswith("_")]
        for name in [*vars(cls), *fields]:
            if name.startswith("_"):
                continue
            value = vars(cls).get(name)
            if not (inspect.isfunction(value) or isinstance(value, Remote)):
                raise ConfigurationError(f"{service.__name__}.{name} is not a method; a service has nothing else")
            found[name] = value
    if not found:
        raise ConfigurationError(f"{service.__name__} has no public methods, so there is nothing to call")
    return found


def _method(
    bus: Speaking, service: type, name: str, function: Function, prefix: str, options: Mapping[str, Any]
) -> Function:
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

    return _documented(method, name, function, signature)


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
