"""Dataclasses that cost little to define and to make: what is rarely asked of one is not compiled for each class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, fields
from threading import Lock
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")

_completing = Lock()


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """As `@dataclass(frozen=True, slots=True)`, but that only type checkers keep it from being assigned to, which
    halves the time when one is made; and that most is done when the first is made. For what users do not hold."""
    return _later(_with(cls, _VALUE))


@dataclass_transform()
def struct(cls: type[T]) -> type[T]:
    """As `@dataclass(slots=True)`; most is done when the first is made."""
    return _later(_with(cls, _STRUCT))


@dataclass_transform(eq_default=False)
def entity(cls: type[T]) -> type[T]:
    """As `@dataclass(slots=True, eq=False)`: compared and hashed by identity; most is done when the first is made."""
    return _later(_with(cls, _ENTITY))


@dataclass_transform(frozen_default=True)
def frozen(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """As `@dataclass(frozen=True, slots=True)`: each field can be set once, which its making does."""
    return lambda cls: dataclass(slots=True, eq=False, repr=False, kw_only=kw_only)(_with(cls, _FROZEN))


def _with(cls: type[T], methods: Mapping[str, object]) -> type[T]:
    for name, method in methods.items():
        if name not in vars(cls):
            setattr(cls, name, method)
    return cls


def _later(cls: type[T]) -> type[T]:
    """A class with slots for the fields of `cls`, which gets what a dataclass has when its first instance is made: a
    program makes instances of few of the classes that it imports, and each takes half a millisecond."""
    fields_of = inspect.get_annotations(cls)
    kept = {name: kept for name, kept in vars(cls).items() if name not in (*fields_of, "__dict__", "__weakref__")}
    made: Any = type(cls.__name__, (), {**kept, "__qualname__": cls.__qualname__, "__slots__": tuple(fields_of)})

    def complete(self: Any, *arguments: Any, **named: Any) -> None:
        with _completing:
            if vars(made)["__init__"] is complete:
                whole = dataclass(eq=False, repr=False)(cls)
                for name in ("__match_args__", "__dataclass_fields__", "__dataclass_params__", "__init__"):
                    setattr(made, name, vars(whole)[name])
        self.__init__(*arguments, **named)

    made.__init__ = complete  # until then
    return cast("type[T]", made)


def _set_once(self: Any, name: str, value: object) -> None:
    if hasattr(self, name):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _keep(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, each.name) for each in fields(self) if each.compare)


def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


_ENTITY: Mapping[str, object] = {"__repr__": _repr}
_VALUE: Mapping[str, object] = {**_ENTITY, "__eq__": _eq, "__hash__": _hash}
_STRUCT: Mapping[str, object] = {**_VALUE, "__hash__": None}
_FROZEN: Mapping[str, object] = {**_VALUE, "__setattr__": _set_once, "__delattr__": _keep}
