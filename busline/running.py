"""Running one handler: where, within which limits, and with what its caller is told meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import Context as Variables
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Protocol, cast

from anyio import CapacityLimiter

from busline.codec import NULL, encode
from busline.context import CURRENT, Context
from busline.driving import Drive
from busline.errors import SoftTimeLimitExceeded
from busline.executors import ThreadRun, run_in_process
from busline.services import Alarm, Services
from busline.wheel import Wheel
from busline.work import Why, Work

LONG_CALL = 1.0
"""Seconds after which the caller of a call that still runs is told that it has been started."""


Watched = Sequence[tuple[Wheel[Any], Any, int]]
"""Wheel, key and ticket of what is to happen if a handler goes on."""


class Cancellable(Protocol):
    """The slot in which a handler runs."""

    task: asyncio.Task[Any] | None
    """Its own, which awaits the handler."""

    def cancel(self, why: Why) -> None:
        """Cancel the handler."""


class Runner:
    """Runs the handlers of one queue."""

    def __init__(self, services: Services) -> None:
        self._bus = services.bus
        self._now = services.clock.time
        self._alarms = services.alarms
        self._threads = services.threads
        self._telemetry = services.telemetry
        self._before = services.before
        self._notices = services.notices

    def begin(self, work: Work, slot: Cancellable) -> bytes | Coroutine[Any, Any, bytes]:
        """Call the handler. The JSON of what it returned if it never waits, as many do, else what waits for that; null
        where nobody asks for it. Raises what the handler raises. A coroutine only where something waits: each one that
        a message passes through costs it a microsecond or two."""
        handler = work.handler
        began = self._now() if handler.limited else 0.0
        # Each message has context variables of its own: what one handler sets, the slot's next one must not see.
        variables = copy_context()
        observer = self._telemetry.observer
        if observer is not None:
            work.span = variables.run(observer.starting, work.delivery, work.envelope, handler)
        if self._before is not None:
            self._before(work)
        context = Context(self._bus, work.delivery, work.envelope, work)
        variables.run(CURRENT.set, context)
        result: Any
        if handler.injection is not None:
            result = handler.injection.call(work, context, self._threads)
        elif handler.binding.is_async:
            result = variables.run(handler.binding.invoke, work.payload, context)
        else:
            return self._watched(work, slot, began, self._elsewhere(work, slot, variables, context))
        if type(result) is not CoroutineType:
            if not isawaitable(result):  # a decorator may return anything
                return _json(work, result)
            result = _awaited(result)
        try:
            awaited = variables.run(result.send, None)
        except StopIteration as end:
            return _json(work, end.value)
        work.drive = Drive(variables, result, slot.task, awaited)
        return self._watched(work, slot, began, work.drive)

    async def _watched(self, work: Work, slot: Cancellable, began: float, running: Awaitable[Any]) -> bytes:
        watched = self._watch(work, slot, began)
        try:
            result = await running
        finally:
            # What the drive runs knows the work through its context: a circle, which only the garbage collector ends.
            work.drive = None
            for wheel, key, ticket in watched:
                wheel.discard(key, ticket)
        # Another process has written the JSON itself.
        return cast("bytes", result) if work.handler.options.executor == "process" else _json(work, result)

    async def _elsewhere(self, work: Work, slot: Cancellable, variables: Variables, context: Context) -> Any:
        """What a plain function returns, in another process or in a thread."""
        binding, threads = work.handler.binding, self._threads
        if work.handler.options.executor == "process":
            return await run_in_process(binding.function, work.delivery.message.body, threads)
        work.thread = ThreadRun()
        result = await work.thread.run(variables, partial(binding.invoke, work.payload, context), threads)
        if not isawaitable(result):  # also a plain function may return what is
            return result
        work.drive = Drive(variables, _awaited(result), slot.task)
        return await work.drive

    def _watch(self, work: Work, slot: Cancellable, began: float) -> Watched:
        """Bound the time of a handler that goes on, and let its caller be told; returns what is to be discarded."""
        watched: list[tuple[Wheel[Any], Any, int]] = []
        if work.delivery.message.reply_to is not None and (deadline := work.envelope.deadline) is not None:
            notice = work.began_at + min((deadline - work.began_at) / 2, LONG_CALL)
            watched.append((self._notices, work.delivery, self._notices.add(work.delivery, notice)))
        if work.handler.limited:
            for limit, alarm in _limits(work, slot):
                watched.append((self._alarms, alarm, self._alarms.add(alarm, began + limit)))
        return watched


async def call_apart(call: Callable[[], Any], context: Context, is_async: bool, threads: CapacityLimiter) -> None:
    """Call something beside a handler, in context variables of its own in which `context` is the current one; what
    is not async runs in a thread."""
    variables = copy_context()
    variables.run(CURRENT.set, context)
    result = variables.run(call) if is_async else await ThreadRun().run(variables, call, threads)
    if isawaitable(result):
        await Drive(variables, _awaited(result))


def _json(work: Work, result: object) -> bytes:
    return NULL if work.delivery.message.reply_to is None and work.held is None else encode(result)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _limits(work: Work, slot: Cancellable) -> Iterator[tuple[float, Alarm]]:
    options = work.handler.options
    if options.soft_time_limit is not None:
        yield options.soft_time_limit, partial(_interrupt, work, options.soft_time_limit)
    if options.time_limit is not None:
        yield options.time_limit, partial(slot.cancel, "time_limit")


def _interrupt(work: Work, limit: float) -> None:
    if work.drive is not None:
        work.drive.interrupt(SoftTimeLimitExceeded(limit))
