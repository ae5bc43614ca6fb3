"""From a message's body to a handler's arguments, by the handler's own annotations.

One payload parameter takes the whole body; several take a JSON object by name; a parameter annotated `Context`
gets the context. Decided once, when the handler is registered with a bus that starts.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from busline.codec import NULL, decode, decoder, describe, is_malformed
from busline.context import Context
from busline.errors import CodecError, ConfigurationError
from busline.wire import text_of

Function = Callable[..., Any]
PER_WORKER = "__busline_per_worker__"
"""The mark of a factory whose value is made once for a worker."""


class InvalidPayload(Exception):
    """The body is JSON and does not fit the handler; the text says where."""


class Binding:
    """How one function takes a message. Raises ConfigurationError for a function that cannot take any.

    The `on_failure` of another binding may also take a single name of a payload that the other takes by name, and a
    parameter that is annotated with an exception class gets the error.
    """

    __slots__ = (
        *("_by_name", "_context_name", "_error_name", "_payload_names"),
        *("dependencies", "function", "invoke", "is_async", "read"),
    )

    def __init__(self, function: Function, *, on_failure_of: Binding | None = None) -> None:
        self.function = function
        self.is_async = _is_async(function)
        parameters = _parameters(function)
        self._context_name = _context_name(function, parameters)
        takes_error = on_failure_of is not None
        self._error_name = next((p.name for p in parameters if takes_error and _is_error(p.annotation)), None)
        self.dependencies = _dependencies(function, parameters)
        others = {self._context_name, self._error_name, *self.dependencies}
        payload = [p for p in parameters if p.name not in others]
        self._payload_names = tuple(p.name for p in payload)
        named = on_failure_of._payload_names if on_failure_of is not None and on_failure_of._by_name else ()
        self._by_name: bool = len(payload) > 1 or (len(payload) == 1 and payload[0].name in named)
        self.read = _object_parser(function, payload) if self._by_name else _parser(payload)
        """As `parse`, but that it raises what `refusal_of` makes something of."""
        self.invoke: Callable[[Any, Context], Any] = self._by_place(parameters) or self._by_names
        """Call the function with a payload that `parse` made: a coroutine for an async one, else its result."""

    def parse(self, body: bytes) -> Any:
        """The payload for `invoke`. Raises InvalidPayload, or CodecError for what is not even JSON."""
        try:
            return self.read(body)
        except CodecError:
            raise
        except Exception as error:
            raise refusal_of(error) from error

    def _by_place(self, parameters: list[inspect.Parameter]) -> Callable[[Any, Context], Any] | None:
        """`invoke` for a function that takes the payload first and maybe the context second, or None: arguments by name
        cost more than many a handler. What is around a function may take them by name only."""
        function = self.function
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        plain = len(list(_layers(function))) == 1 and not _given(function) and len(names) == len(parameters)
        if self._by_name or len(self._payload_names) != 1 or not plain:
            return None
        if names == [*self._payload_names]:
            return lambda payload, context: function(payload)
        if names == [*self._payload_names, self._context_name]:
            return function
        return None

    def _by_names(self, payload: Any, context: Context) -> Any:
        return self.function(**self.arguments(payload, context))

    def arguments(self, payload: Any, context: Context | None, error: BaseException | None = None) -> dict[str, Any]:
        """The arguments for a payload that `parse` made."""
        names = self._payload_names
        arguments = dict(payload or ()) if self._by_name or not names else {names[0]: payload}
        if self._context_name is not None:
            arguments[self._context_name] = context
        if self._error_name is not None:
            arguments[self._error_name] = error
        return arguments

    def payload_arguments(self, payload: Any) -> dict[str, Any]:
        """Those of them that the payload fills."""
        arguments = self.arguments(payload, None)
        return {name: arguments[name] for name in self._payload_names}

    @property
    def payload_names(self) -> tuple[str, ...]:
        """The parameters that the payload fills."""
        return self._payload_names

    @property
    def by_name(self) -> bool:
        """The payload is a JSON object with a value for each parameter, and not the one parameter's value."""
        return self._by_name

    @property
    def wants_context(self) -> bool:
        """One of the parameters is the Context."""
        return self._context_name is not None


def refusal_of(error: Exception) -> InvalidPayload | CodecError:
    """What an error of `Binding.read` says of the message."""
    if isinstance(error, CodecError):
        return error
    if not isinstance(error, ValidationError):  # validators are the handler's own code, and may raise anything
        return InvalidPayload(f"{type(error).__name__}: {text_of(error)}")
    if is_malformed(error):
        return CodecError(f"the body is not JSON: {describe(error)}")
    return InvalidPayload(describe(error))


def reply_type(function: Function) -> Any:
    """What the function says that it returns, or Any. Raises ConfigurationError for what cannot be read."""
    return hints_of(function).get("return", Any)


def hints_of(function: Function) -> dict[str, Any]:
    """The annotations of the function beneath all decorators. Raises ConfigurationError for what cannot be read."""
    *_, innermost = _layers(function)
    try:
        return get_type_hints(innermost, include_extras=True)
    except Exception as error:  # annotations are code, and may raise anything
        raise ConfigurationError(f"the parameters of {name_of(function)} cannot be read: {error}") from error


def _is_error(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseException)


def _is_async(function: Function) -> bool:
    if isinstance(function, type) or not callable(function):
        raise ConfigurationError(f"{name_of(function)} is not a function, which a handler is")
    layers = list(_layers(function))
    if any(inspect.isasyncgenfunction(layer) or inspect.isgeneratorfunction(layer) for layer in layers):
        raise ConfigurationError(f"{name_of(function)} is a generator; a handler returns one value")
    return any(inspect.iscoroutinefunction(layer) for layer in layers)


def _layers(function: Function) -> Iterator[Function]:
    """What is called, and the functions beneath its partials, `__call__` and decorators; the innermost comes last."""
    layer: Any = function
    while layer is not None:
        if isinstance(layer, functools.partial):
            layer = layer.func
            continue
        called = layer if inspect.isroutine(layer) else type(layer).__call__
        yield called
        layer = getattr(layer, "__wrapped__", None) or getattr(called, "__wrapped__", None)


def _parameters(function: Function) -> list[inspect.Parameter]:
    hints = hints_of(function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the parameters of {name_of(function)} cannot be read: {error}") from error
    parameters = []
    given = _given(function)
    for parameter in signature.parameters.values():
        if parameter.name in given:
            continue
        _check(function, parameter)
        parameters.append(parameter.replace(annotation=hints.get(parameter.name, Any)))
    return parameters


def _given(function: Function) -> set[str]:
    """The parameters that a partial has fixed by name: no payload may replace them."""
    given: set[str] = set()
    while isinstance(function, functools.partial):
        given |= function.keywords.keys()
        function = function.func
    return given


def _check(function: Function, parameter: inspect.Parameter) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise ConfigurationError(
            f"{name_of(function)} has the parameter {parameter}; a handler's are named, one by one, so that a "
            "payload can be bound to them"
        )
    if isinstance(parameter.default, FieldInfo):
        raise ConfigurationError(
            f"{name_of(function)} has a Field(...) as the default of {parameter.name}, which a caller would get: "
            "put it into the annotation, as Annotated[type, Field(...)]"
        )


def _context_name(function: Function, parameters: list[inspect.Parameter]) -> str | None:
    names = [p.name for p in parameters if p.annotation is Context]
    if len(names) > 1:
        raise ConfigurationError(f"{name_of(function)} asks for the context twice, as {' and '.join(names)}")
    return names[0] if names else None


def _dependencies(function: Function, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """What fast-depends' `Depends` marks, by parameter. Nobody can have used it where it was not imported."""
    library = sys.modules.get("fast_depends.dependencies.model")
    found: dict[str, Any] = {}
    for parameter in parameters:
        marks = getattr(parameter.annotation, "__metadata__", ())
        if any(type(mark).__name__ == "Depends" and type(mark).__module__.startswith("fastapi") for mark in marks):
            raise ConfigurationError(
                f"{name_of(function)}: {parameter.name} has FastAPI's Depends, which only FastAPI can follow; import "
                "Depends from busline.depends"
            )
        if library is None:
            continue
        if isinstance(parameter.default, library.Dependant):
            raise ConfigurationError(
                f"{name_of(function)} has a Depends(...) as the default of {parameter.name}, which whoever calls it "
                "would get: put it into the annotation, as Annotated[type, Depends(...)]"
            )
        dependants = [mark for mark in marks if isinstance(mark, library.Dependant)]
        if len(dependants) > 1:
            raise ConfigurationError(f"{name_of(function)}: {parameter.name} has two Depends(...)")
        if dependants:
            found[parameter.name] = dependants[0]
    return found


def _parser(payload: list[inspect.Parameter]) -> Callable[[bytes], Any]:
    if not payload:
        return lambda body: None
    parameter = payload[0]
    read = decode if parameter.annotation is Any else decoder(parameter.annotation)
    if parameter.default is parameter.empty:
        return read
    return lambda body: parameter.default if body in (b"", NULL) else read(body)


def _object_parser(function: Function, payload: list[inspect.Parameter]) -> Callable[[bytes], Any]:
    # The fields have names of their own, because a parameter may be called what pydantic's models do not allow.
    names = {f"p{number}": p.name for number, p in enumerate(payload)}
    fields: dict[str, Any] = {
        field: (Annotated[p.annotation, Field(alias=p.name)], ... if p.default is p.empty else p.default)
        for field, p in zip(names, payload, strict=True)
    }
    try:
        model: type[BaseModel] = create_model(name_of(function), **fields)
        model.__pydantic_core_schema__.get("type")  # raises for what is defined nowhere, as in `decoder`
    except Exception as error:  # pydantic raises half a dozen unrelated types here
        raise ConfigurationError(f"the parameters of {name_of(function)} cannot be read from JSON: {error}") from error
    validate = model.model_validate_json

    def read(body: bytes) -> dict[str, Any]:
        values = vars(validate(body or NULL))
        return {name: values[field] for field, name in names.items()}

    return read


def name_of(function: Function) -> str:
    """What people call it."""
    return getattr(function, "__qualname__", None) or repr(function)


def check_process_handler(binding: Binding) -> None:
    """Raise ConfigurationError if the function cannot run in another process."""
    function, name = binding.function, name_of(binding.function)
    if binding.is_async:
        raise ConfigurationError(f"{name} is async; executor='process' is for plain functions")
    if binding.dependencies:
        raise ConfigurationError(
            f"{name} has dependencies, which are made in the worker's process: make them inside the function, "
            "or let it run in a thread"
        )
    if binding.wants_context:
        raise ConfigurationError(f"{name} asks for the {Context.__name__}, which stays in the worker's process")
    if "<" in name or not hasattr(function, "__module__"):
        raise ConfigurationError(f"{name} is not at the top level of a module, where another process could find it")
