"""Running one handler: where, within which limits, and with what its caller is told meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Protocol

from anyio import CapacityLimiter

from busline.clock import Clock
from busline.codec import NULL, encode
from busline.context import CURRENT, Context, Verbs
from busline.driving import Drive
from busline.errors import SoftTimeLimitExceeded
from busline.executors import ThreadRun, run_in_process
from busline.message import Delivery
from busline.wheel import Wheel
from busline.work import Why, Work

Alarm = Callable[[], None]


class Cancellable(Protocol):
    """The slot in which a handler runs."""

    def cancel(self, why: Why) -> None:
        """Cancel the handler."""


class Runner:
    """Runs the handlers of one queue."""

    def __init__(
        self,
        bus: Verbs,
        clock: Clock,
        alarms: Wheel[Alarm],
        threads: CapacityLimiter,
        notify: Callable[[Delivery], None],
    ) -> None:
        self._bus = bus
        self._now = clock.time
        self._alarms = alarms
        self._threads = threads
        self._notify = notify

    async def run(self, work: Work, payload: Any, slot: Cancellable) -> bytes:
        """The JSON of what the handler returned; null where nobody waits for it. Raises what the handler raises."""
        tickets = self._set_alarms(work, slot)
        try:
            return await self._run(work, payload)
        finally:
            for alarm, ticket in tickets:
                self._alarms.discard(alarm, ticket)

    async def _run(self, work: Work, payload: Any) -> bytes:
        binding, message = work.handler.binding, work.delivery.message
        if work.handler.options.executor == "process" and not binding.is_async:
            return await run_in_process(binding.function, message.body, self._threads)
        # Each message has context variables of its own: what one handler sets, the slot's next one must not see.
        variables = copy_context()
        context = Context(self._bus, work.delivery, work.envelope, work)
        variables.run(CURRENT.set, context)
        invoke = partial(binding.invoke, payload, context)
        if binding.is_async:
            result = variables.run(invoke)
        else:
            work.thread = ThreadRun()
            result = await work.thread.run(variables, invoke, self._threads)
        if isawaitable(result):  # also of a plain function, whose work would otherwise be lost without a word
            work.drive = Drive(variables, result if isinstance(result, CoroutineType) else _awaited(result))
            result = await work.drive
        return NULL if message.reply_to is None else encode(result)

    def _set_alarms(self, work: Work, slot: Cancellable) -> list[tuple[Alarm, int]]:
        options, deadline = work.handler.options, work.envelope.deadline
        alarms: list[tuple[float, Alarm]] = []
        now = self._now()
        if deadline is not None and work.delivery.message.reply_to is not None:
            alarms.append((min(1.0, (deadline - now) / 2), partial(self._notify, work.delivery)))
        if options.soft_time_limit is not None:
            alarms.append((options.soft_time_limit, partial(_interrupt, work, options.soft_time_limit)))
        if options.time_limit is not None:
            alarms.append((options.time_limit, partial(slot.cancel, "time_limit")))
        return [(alarm, self._alarms.add(alarm, now + delay)) for delay, alarm in alarms]


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _interrupt(work: Work, limit: float) -> None:
    if work.drive is not None:
        work.drive.interrupt(SoftTimeLimitExceeded(limit))
