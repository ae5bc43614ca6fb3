"""Running one handler: where, within which limits, and with what its caller is told meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Protocol

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

    async def run(self, work: Work, slot: Cancellable) -> bytes:
        """The JSON of what the handler returned; null where nobody asks for it. Raises what the handler raises."""
        handler, message = work.handler, work.delivery.message
        binding = handler.binding
        began = self._now() if handler.limited else 0.0
        watched: Watched = ()
        try:
            # Each message has context variables of its own: what one handler sets, the slot's next one must not see.
            variables = copy_context()
            observer = self._telemetry.observer
            if observer is not None:
                work.span = variables.run(observer.starting, work.delivery, work.envelope, handler)
            if self._before is not None:
                self._before(work)
            if handler.options.executor == "process":
                watched = self._watch(work, slot, began)
                return await run_in_process(binding.function, message.body, self._threads)
            context = Context(self._bus, work.delivery, work.envelope, work)
            variables.run(CURRENT.set, context)
            if handler.injection is not None:
                result = handler.injection.call(work, context, self._threads)
            elif binding.is_async:
                result = variables.run(binding.invoke, work.payload, context)
            else:
                watched = self._watch(work, slot, began)
                work.thread = ThreadRun()
                result = await work.thread.run(variables, partial(binding.invoke, work.payload, context), self._threads)
            if type(result) is CoroutineType or isawaitable(result):  # also what a plain function returns
                coroutine = result if type(result) is CoroutineType else _awaited(result)
                try:
                    awaited = variables.run(coroutine.send, None)
                except StopIteration as end:  # It never waits, as many do: there is nothing to watch.
                    result = end.value
                else:
                    watched = watched or self._watch(work, slot, began)
                    work.drive = Drive(variables, coroutine, slot.task, awaited)
                    result = await work.drive
            return NULL if message.reply_to is None and work.held is None else encode(result)
        finally:
            # What the drive runs knows the work through its context: a circle, which only the garbage collector ends.
            work.drive = None
            for wheel, key, ticket in watched:
                wheel.discard(key, ticket)

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
