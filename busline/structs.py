"""Dataclasses that cost little to define and to make: what is rarely asked of one is not compiled for each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """As `@dataclass(frozen=True, slots=True)`, but that only type checkers keep it from being assigned to: a third of
    the time when it is imported, and half when one is made. For what users do not hold."""
    return _made(cls, _VALUE)


@dataclass_transform()
def struct(cls: type[T]) -> type[T]:
    """As `@dataclass(slots=True)`."""
    return _made(cls, _STRUCT)


@dataclass_transform(frozen_default=True)
def frozen(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """As `@dataclass(frozen=True, slots=True)`: each field can be set once, which its making does."""
    return lambda cls: _made(cls, _FROZEN, kw_only=kw_only)


def _made(cls: type[T], methods: Mapping[str, object], *, kw_only: bool = False) -> type[T]:
    for name, method in methods.items():
        if name not in vars(cls):
            setattr(cls, name, method)
    return dataclass(slots=True, eq=False, repr=False, kw_only=kw_only)(cls)


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


_VALUE: Mapping[str, object] = {"__repr__": _repr, "__eq__": _eq, "__hash__": _hash}
_STRUCT: Mapping[str, object] = {**_VALUE, "__hash__": None}
_FROZEN: Mapping[str, object] = {**_VALUE, "__setattr__": _set_once, "__delattr__": _keep}
