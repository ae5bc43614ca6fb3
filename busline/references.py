"""Naming a topic by the function that handles it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from busline.errors import ConfigurationError
from busline.registry import Declaration
from busline.structs import value


@value
class Reference:
    """What a handler's function tells its callers."""

    topic: str
    returns: Any
    """The type of its result; None where it says none."""
    names: tuple[str, ...]
    """The values that it takes by name; () if it takes one payload, or none."""

    def check(self, payload: object) -> None:
        """Raise ConfigurationError if the payload cannot be what the function takes."""
        if self.names and (payload is None or isinstance(payload, str | bytes | int | float | list | tuple)):
            raise ConfigurationError(
                f"the handler of {self.topic!r} takes {', '.join(self.names)}: give it a dict of them, "
                f"not {type(payload).__name__}"
            )


class References:
    """Finds the declaration of a function among those of a bus, which may grow."""

    def __init__(self, declarations: Sequence[Declaration]) -> None:
        self._declarations = declarations
        self._found: dict[Callable[..., Any], Reference] = {}
        self._read = 0

    def find(self, function: Callable[..., Any]) -> Reference:
        """Raises ConfigurationError for a function that handles no topic here, or several."""
        if self._read != len(self._declarations):
            self._found.clear()
            self._read = len(self._declarations)
        reference = self._found.get(function)
        if reference is None:
            reference = self._found[function] = self._look_up(function)
        return reference

    def knows(self, function: object) -> bool:
        """Does it handle a topic?"""
        return any(each.function is function and not each.subscriber for each in self._declarations)

    def _look_up(self, function: Callable[..., Any]) -> Reference:
        topics = [each.topic for each in self._declarations if each.function == function and not each.subscriber]
        name = getattr(function, "__qualname__", None) or repr(function)
        if not topics:
            raise ConfigurationError(
                f"{name} handles no topic of this bus: has its router been included, and is it a handler?"
            )
        if len(topics) > 1:
            raise ConfigurationError(f"{name} handles {' and '.join(topics)}: call one of them by its topic")
        from busline.binding import Binding, reply_type

        binding, returns = Binding(function), reply_type(function)
        return Reference(
            topics[0], None if returns is Any else returns, binding.payload_names if binding.by_name else ()
        )
