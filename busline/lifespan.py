"""What lasts as long as a worker: its lifespans, and the dependencies that are made once for it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from busline.errors import ConfigurationError
from busline.overrides import Overrides
from busline.registry import Handler, Plan

if TYPE_CHECKING:
    from busline.injection import Injection

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


def lifespan_of(function: Callable[[], Any]) -> Lifespan:
    """An async generator function, or one that returns an async context manager, as the latter. Raises
    ConfigurationError for anything else."""
    name = getattr(function, "__qualname__", None) or repr(function)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ConfigurationError(f"the lifespan {name} is called without arguments: {error}") from error
    if inspect.isasyncgenfunction(function):
        return asynccontextmanager(function)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"the lifespan {name} is an async function with one `yield`, between start and end")
    return function


@asynccontextmanager
async def lasting(lifespans: Sequence[Lifespan], plan: Plan, overrides: Overrides) -> AsyncIterator[None]:
    """Enter the lifespans in order, then make what handlers need once; end it in reverse order. All in one task."""
    made: dict[Any, Any] = {}
    injections = [_injection(handler, overrides, made) for handler in plan.handlers if handler.binding.dependencies]
    async with AsyncExitStack() as stack:
        for lifespan in lifespans:
            await stack.enter_async_context(lifespan())
        for injection in injections:
            await injection.make(stack, made)
        yield


def _injection(handler: Handler, overrides: Overrides, made: dict[Any, Any]) -> Injection:
    from busline.injection import Injection  # fast-depends, which only those need who use it

    handler.injection = injection = Injection(handler.binding, overrides, made)
    return injection
