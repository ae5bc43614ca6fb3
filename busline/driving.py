"""Running a handler in the slot's own task: in context variables of its own, interruptible at its await point."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context as Variables
from typing import Any

from busline.errors import SoftTimeLimitExceeded

UNBEGUN = object()
"""In the place of what a coroutine waits for, before its next step is made."""


class Drive(Awaitable[Any]):
    """Awaits a coroutine in the current task, but in other context variables. A task would cost 8 µs more.

    `interrupt` raises an exception inside the coroutine, where it awaits. Whatever it awaits sees a cancellation, so
    the exception must be an `asyncio.CancelledError` for `wait_for`, `gather` and task groups to clean up behind it.
    What the coroutine lets through of it comes out as itself, also where `asyncio.TaskGroup` has put it into a group.
    """

    __slots__ = ("_awaited", "_coroutine", "_interruption", "_raised", "_run", "_task")

    def __init__(
        self,
        variables: Variables,
        coroutine: Coroutine[Any, Any, Any],
        task: asyncio.Task[Any] | None = None,
        awaited: object = UNBEGUN,
    ) -> None:
        """`task` is the one that will await it, where that is known already: finding it out costs a system call.
        `awaited` is what the coroutine waits for, if its first step has been made."""
        self._awaited = awaited
        self._run: Callable[..., Any] = variables.run
        self._coroutine = coroutine
        self._task = task
        self._interruption: asyncio.CancelledError | None = None
        self._raised: asyncio.CancelledError | None = None

    def interrupt(self, error: asyncio.CancelledError) -> None:
        """Raise `error` inside the coroutine as soon as the loop turns; it must be waiting for something."""
        if self._task is not None and self._interruption is None:
            self._interruption = error
            self._task.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._task is None:
            self._task = asyncio.current_task()
        run, send, throw = self._run, self._coroutine.send, self._coroutine.throw
        step, argument, awaited = send, None, self._awaited
        while True:
            try:
                if awaited is UNBEGUN:
                    awaited = run(step, argument)
            except StopIteration as stop:
                return stop.value
            except BaseExceptionGroup as group:
                raise self._alone(group) from None
            try:
                argument = yield awaited
                step = send
                if self._interruption is not None:  # a task that was awaited has ignored its cancellation
                    step, argument = throw, self._translated(self._interruption)
            except GeneratorExit:
                run(self._coroutine.close)
                raise
            except asyncio.CancelledError as error:
                step, argument = throw, self._translated(error)
            except BaseException as error:
                step, argument = throw, error
            awaited = UNBEGUN

    def _translated(self, error: asyncio.CancelledError) -> asyncio.CancelledError:
        """The interruption, if that is what the cancellation stands for; then the task counts as not cancelled."""
        interruption, self._interruption = self._interruption, None
        if interruption is None or self._task is None:
            return error
        self._task.uncancel()
        self._raised = interruption
        return interruption

    def _alone(self, group: BaseExceptionGroup[BaseException]) -> BaseException:
        """The interruption, if nothing else is in the group."""
        if self._raised is None or group.split(lambda error: error is self._raised)[1] is not None:
            return group
        return self._raised


def ends_task(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """`error` is not the handler's own: its task is being cancelled, or nobody runs it any more and it is closed.

    A handler may raise anything. A soft time limit that it lets through is its failure also if a cancellation waits:
    that comes again at the next await.
    """
    if task is None or isinstance(error, SoftTimeLimitExceeded):
        return False
    if isinstance(error, asyncio.CancelledError):
        return task.cancelling() > 0
    return isinstance(error, GeneratorExit) and asyncio.current_task(task.get_loop()) is not task
