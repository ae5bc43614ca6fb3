"""From a message's body to a handler's arguments, by the handler's own annotations.

One payload parameter takes the whole body; several take a JSON object by name; a parameter annotated `Context`
gets the context. Decided once, when the handler is registered with a bus that starts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from busline.codec import NULL, decode, decoder, describe, is_malformed
from busline.context import Context
from busline.errors import CodecError, ConfigurationError

Function = Callable[..., Any]


class InvalidPayload(Exception):
    """The body is JSON and does not fit the handler; the text says where."""


class Binding:
    """How one function takes a message. Raises ConfigurationError for a function that cannot take any.

    With `takes_error=True` (an `on_failure`) a parameter annotated with an exception class gets the error.
    """

    __slots__ = ("_context_name", "_error_name", "_parse", "_payload_names", "function", "is_async")

    def __init__(self, function: Function, *, takes_error: bool = False) -> None:
        self.function = function
        self.is_async = _is_async(function)
        parameters = _parameters(function)
        self._context_name = next((p.name for p in parameters if p.annotation is Context), None)
        self._error_name = next((p.name for p in parameters if takes_error and _is_error(p.annotation)), None)
        payload = [p for p in parameters if p.name not in (self._context_name, self._error_name)]
        self._payload_names = tuple(p.name for p in payload)
        self._parse = _parser(function, payload)

    def parse(self, body: bytes) -> Any:
        """The payload for `invoke`. Raises InvalidPayload, or CodecError for what is not even JSON."""
        try:
            return self._parse(body)
        except ValidationError as error:
            if is_malformed(error):
                raise CodecError(f"the body is not JSON: {describe(error)}") from error
            raise InvalidPayload(describe(error)) from error

    def invoke(self, payload: Any, context: Context) -> Any:
        """Call the function: a coroutine for an async one, else its result."""
        return self.function(**self.arguments(payload, context))

    def arguments(self, payload: Any, context: Context | None, error: BaseException | None = None) -> dict[str, Any]:
        """The arguments for a payload that `parse` made."""
        names = self._payload_names
        arguments = {}
        if len(names) == 1:
            arguments[names[0]] = payload
        elif names:
            arguments = {name: getattr(payload, name) for name in names}
        if self._context_name is not None:
            arguments[self._context_name] = context
        if self._error_name is not None:
            arguments[self._error_name] = error
        return arguments

    @property
    def wants_context(self) -> bool:
        """One of the parameters is the Context."""
        return self._context_name is not None


def _is_error(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseException)


def _is_async(function: Function) -> bool:
    target = _underlying(function)
    if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
        raise ConfigurationError(f"{_name(function)} is a generator; a handler returns one value")
    return inspect.iscoroutinefunction(target)


def _underlying(function: Function) -> Function:
    """The function as it was written, beneath partials, decorators and `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    return inspect.unwrap(function)  # type: ignore[no-any-return]  # typeshed: Any


def _parameters(function: Function) -> list[inspect.Parameter]:
    try:
        hints = get_type_hints(_underlying(function), include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(f"an annotation of {_name(function)} cannot be read: {error}") from error
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigurationError(
                f"{_name(function)} has the parameter {parameter}; a handler's are named, one by one, so that a "
                "payload can be bound to them"
            )
        parameters.append(parameter.replace(annotation=hints.get(parameter.name, Any)))
    return parameters


def _parser(function: Function, payload: list[inspect.Parameter]) -> Callable[[bytes], Any]:
    if not payload:
        return lambda body: None
    if len(payload) > 1:
        return _object_parser(function, payload)
    parameter = payload[0]
    read = decode if parameter.annotation is Any else decoder(parameter.annotation)
    if parameter.default is parameter.empty:
        return read
    return lambda body: parameter.default if body in (b"", NULL) else read(body)


def _object_parser(function: Function, payload: list[inspect.Parameter]) -> Callable[[bytes], Any]:
    fields: dict[str, Any] = {p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in payload}
    try:
        model: type[BaseModel] = create_model(
            _name(function), __config__=ConfigDict(arbitrary_types_allowed=False), **fields
        )
    except Exception as error:  # pydantic raises half a dozen unrelated types here
        raise ConfigurationError(f"the parameters of {_name(function)} cannot be read from JSON: {error}") from error
    validate = model.model_validate_json
    return lambda body: validate(body or NULL)


def _name(function: Function) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def check_process_handler(binding: Binding) -> None:
    """Raise ConfigurationError if the function cannot run in another process."""
    function, name = binding.function, _name(binding.function)
    if binding.is_async:
        raise ConfigurationError(f"{name} is async; executor='process' is for plain functions")
    if binding.wants_context:
        raise ConfigurationError(f"{name} asks for the {Context.__name__}, which stays in the worker's process")
    if "<" in name or not hasattr(function, "__module__"):
        raise ConfigurationError(f"{name} is not at the top level of a module, where another process could find it")
