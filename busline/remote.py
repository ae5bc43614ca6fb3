"""Handlers as their callers see them, so that type checkers know a client that is made from them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from busline.context import Context
from busline.errors import ConfigurationError

P = ParamSpec("P")
Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Remote(Generic[P, Rep]):
    """A handler, in a class from which `bus.client` makes a client."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Rep]:
        """What a client does, and only a client can."""
        name = getattr(self.function, "__qualname__", repr(self.function))
        raise ConfigurationError(f"{name} is called through a client of the class that it stands in: bus.client(...)")


# An async function is also a plain one, which returns a coroutine: the order says which is meant.
@overload
def remote(function: Callable[Concatenate[Context, P], Coroutine[Any, Any, Rep]]) -> Remote[P, Rep]: ...  # type: ignore[overload-overlap]  # see above
@overload
def remote(function: Callable[[Req, Context], Coroutine[Any, Any, Rep]]) -> Remote[[Req], Rep]: ...
@overload
def remote(function: Callable[P, Coroutine[Any, Any, Rep]]) -> Remote[P, Rep]: ...  # type: ignore[overload-overlap]  # see above
@overload
def remote(function: Callable[Concatenate[Context, P], Rep]) -> Remote[P, Rep]: ...  # type: ignore[overload-overlap]  # see above
@overload
def remote(function: Callable[[Req, Context], Rep]) -> Remote[[Req], Rep]: ...
@overload
def remote(function: Callable[P, Rep]) -> Remote[P, Rep]: ...
def remote(function: Callable[..., Any]) -> Remote[..., Any]:
    """The handler `function` as an attribute of a class, for a client whose types are those of the handlers:

    class Orders:
        create = remote(create)
        find = remote(find)

    orders = bus.client(Orders)

    A client's method takes what the handler takes, without Context and dependencies. Type checkers can leave out a
    Context that comes first or after a single payload, and no dependency: describe such handlers by methods beside
    these, as in a Protocol.
    """
    return Remote(function)
