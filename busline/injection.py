"""Giving handlers their dependencies. fast-depends reads factories and runs them; the order, the scopes and the end of
each value are ours.

Its own resolution is by name in one flat namespace: a payload's field, or a neighbour's dependency, that happens to be
called as a factory's parameter would take its place. Here each factory gets exactly what it asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from inspect import Parameter, isawaitable, isgeneratorfunction
from types import TracebackType
from typing import Any, cast

import anyio
from anyio import CapacityLimiter, to_thread
from fast_depends import Provider
from fast_depends.core import CallModel, build_call_model

from busline.binding import PER_WORKER, Binding, Function, name_of
from busline.context import Context
from busline.errors import ConfigurationError, SoftTimeLimitExceeded
from busline.executors import ThreadRun
from busline.overrides import Overrides
from busline.work import Work

CLEANUP = 4.0
"""Seconds that a dependency has to end when its handler was cancelled: less than a handler itself has."""


class Step:
    """One factory, and where its arguments come from."""

    __slots__ = ("context_names", "identity", "key", "model", "needs", "payload_names")

    def __init__(self, key: Function, model: CallModel) -> None:
        self.key = key
        self.model = model
        self.identity = (key, model.call)
        """Who is asked for, and who stands for him."""
        self.needs = tuple(cast("dict[str, Function]", model.dependencies).items())
        """Parameter and factory."""
        self.context_names: tuple[str, ...] = ()
        self.payload_names: tuple[str, ...] = ()

    async def solve(self, stack: AsyncExitStack, values: Mapping[Any, Any], context: Any, payload: Any) -> Any:
        """Make its value, which ends with `stack`."""
        arguments: dict[str, Any] = {parameter: values[key] for parameter, key in self.needs}
        for name in self.context_names:
            arguments[name] = context
        for name in self.payload_names:
            arguments[name] = payload[name]
        call = self.model.call
        if isgeneratorfunction(call) or isgeneratorfunction(getattr(call, "__call__", None)):  # noqa: B004
            return await stack.enter_async_context(_Threaded(partial(call, **arguments)))
        return await self.model.asolve(stack=stack, cache_dependencies={}, nested=True, **arguments)


class Graph:
    """The factories that a function needs, in the order in which they can run."""

    def __init__(self, binding: Binding, overrides: Overrides) -> None:
        self._payload = frozenset(binding.payload_names)
        self._overrides = overrides
        self._provider = Provider()
        self.steps: dict[Function, Step] = {}
        self.version = overrides.version
        self._path: list[Function] = []
        for dependant in binding.dependencies.values():
            if not dependant.use_cache:
                raise ConfigurationError(
                    f"{dependant}: within one message a factory runs once, so leave use_cache alone"
                )
            self._add(dependant.dependency, per_worker=False)

    def _add(self, key: Function, *, per_worker: bool) -> None:
        if per_worker and not is_per_worker(key):
            raise ConfigurationError(
                f"{name_of(key)} is made for each message, and {name_of(self._path[-1])} needs it once"
            )
        if key in self.steps:
            return
        if key in self._path:
            raise ConfigurationError(f"{name_of(key)} depends on itself")
        self._path.append(key)
        step = Step(key, self._read(self._overrides.of(key)))
        for _, needed in step.needs:
            self._add(needed, per_worker=is_per_worker(key))
        self._fill(step)
        self._path.pop()
        self.steps[key] = step

    def _read(self, factory: Function) -> CallModel:
        try:
            return build_call_model(
                factory, dependency_provider=self._provider, is_sync=False, serialize_result=False, serializer_cls=None
            )
        except Exception as error:  # annotations are code, and may raise anything
            raise ConfigurationError(f"the parameters of {name_of(factory)} cannot be read: {error!r}") from error

    def _fill(self, step: Step) -> None:
        alone = is_per_worker(step.key)
        names: dict[bool, list[str]] = {True: [], False: []}
        for item in step.model.params:
            wants_context = item.field_type is Context
            if item.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                continue
            if not alone and (wants_context or item.field_name in self._payload):
                names[wants_context].append(item.field_name)
            elif item.default_value is ...:
                what = (
                    "is made once for all messages"
                    if alone
                    else "gets dependencies, the Context, and the payload by name"
                )
                raise ConfigurationError(f"{name_of(step.model.call)} asks for {item.field_name}, and it {what}")
        step.context_names, step.payload_names = tuple(names[True]), tuple(names[False])


def is_per_worker(factory: Function) -> bool:
    """It was marked so by `busline.depends.per_worker`."""
    return getattr(factory, PER_WORKER, False) is True


class Injection:
    """Runs one handler with its dependencies. `made` holds what was made once for the worker, by `Step.identity`."""

    def __init__(self, binding: Binding, overrides: Overrides, made: Mapping[Any, Any]) -> None:
        self._binding = binding
        self._overrides = overrides
        self._made = made
        self._roots = {name: dependant.dependency for name, dependant in binding.dependencies.items()}
        self.graph = Graph(binding, overrides)

    async def make(self, stack: AsyncExitStack, made: dict[Any, Any]) -> None:
        """Make what is made once for a worker and is not in `made` yet; it ends with `stack`."""
        for step in self.graph.steps.values():
            if is_per_worker(step.key) and step.identity not in made:
                values = {key: made[self.graph.steps[key].identity] for _, key in step.needs}
                made[step.identity] = await step.solve(stack, values, None, {})

    async def call(self, work: Work, context: Context, threads: CapacityLimiter) -> Any:
        """What the handler returns. Each value ends when the handler has, and before the message is settled; an error
        in there is the handler's. A value that catches the handler's error has not made it a success."""
        failure: BaseException | None = None
        result = None
        async with _Stack() as stack:
            try:
                arguments = self._binding.arguments(work.payload, context)
                arguments |= await self._solve(stack, work.payload, context)
                function = partial(self._binding.function, **arguments)
                if self._binding.is_async:
                    result = await function()
                else:
                    work.thread = ThreadRun()
                    result = await work.thread.run(copy_context(), function, threads)
                    result = await result if isawaitable(result) else result
            except BaseException as error:
                failure = error
                raise
        if failure is not None:
            raise failure
        return result

    async def _solve(self, stack: AsyncExitStack, payload: Any, context: Context) -> dict[str, Any]:
        if self.graph.version != self._overrides.version:
            self.graph = Graph(self._binding, self._overrides)
        names = self._binding.payload_names
        by_name = payload or {} if self._binding.by_name or not names else {names[0]: payload}
        values: dict[Any, Any] = {}
        for key, step in self.graph.steps.items():
            if step.identity in self._made:
                values[key] = self._made[step.identity]
            else:
                values[key] = await step.solve(stack, values, context, by_name)
        return {name: values[key] for name, key in self._roots.items()}


class _Threaded(AbstractAsyncContextManager[Any]):
    """A plain generator, which runs in threads. Unlike with fast-depends it sees a cancellation, and ends in a thread
    then, too; there it is left to be collected."""

    def __init__(self, call: Callable[[], Iterator[Any]]) -> None:
        self._manager = contextmanager(call)()

    async def __aenter__(self) -> Any:
        return await to_thread.run_sync(self._manager.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        # With a limiter of its own, so that what ends never waits for what begins.
        return await to_thread.run_sync(self._manager.__exit__, kind, error, trace, limiter=CapacityLimiter(1))


class _Stack(AsyncExitStack):
    """Lets each value end in peace, also when the handler was cancelled, within bounds."""

    async def enter_async_context(self, cm: AbstractAsyncContextManager[Any, bool | None]) -> Any:
        return await super().enter_async_context(_Peaceful(cm))


class _Peaceful(AbstractAsyncContextManager[Any]):
    def __init__(self, inner: AbstractAsyncContextManager[Any, bool | None]) -> None:
        self._inner = inner

    async def __aenter__(self) -> Any:
        return await self._inner.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if not isinstance(error, asyncio.CancelledError) or isinstance(error, SoftTimeLimitExceeded):
            return await self._inner.__aexit__(kind, error, trace)
        with anyio.move_on_after(CLEANUP, shield=True):
            return await self._inner.__aexit__(kind, error, trace)
        return False
