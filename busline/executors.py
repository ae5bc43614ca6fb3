"""Where plain functions run: in a thread, or in a process that can be killed."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context as Variables
from functools import partial
from threading import Event
from typing import Any

from anyio import BrokenWorkerProcess, CapacityLimiter, to_thread

from busline.binding import Binding, Function
from busline.codec import encode


class ThreadRun:
    """One plain function in a thread. Cancelling it leaves the thread behind, which `left_behind` then tells."""

    __slots__ = ("_done", "_started")

    def __init__(self) -> None:
        self._done = Event()
        self._started = False

    @property
    def left_behind(self) -> bool:
        """The thread was started and has not ended."""
        return self._started and not self._done.is_set()

    async def run(self, variables: Variables, call: Callable[[], Any], limiter: CapacityLimiter) -> Any:
        """The function's result."""
        return await to_thread.run_sync(partial(self._call, variables, call), abandon_on_cancel=True, limiter=limiter)

    def _call(self, variables: Variables, call: Callable[[], Any]) -> Any:
        self._started = True
        try:
            return variables.run(call)
        except GeneratorExit as error:  # a task that is handed one is closed by it
            raise RuntimeError("a plain function raised GeneratorExit") from error
        finally:
            self._done.set()


async def run_in_process(function: Function, body: bytes, limiter: CapacityLimiter) -> bytes:
    """The JSON of what `function` returns for `body`, both read and written in the other process.

    Cancelling it kills the process. A process that dies by itself is a failure of the handler.
    """
    from anyio import to_process  # here, as it takes pickle and subprocess along

    try:
        return await to_process.run_sync(_call_there, function, body, cancellable=True, limiter=limiter)
    except BrokenWorkerProcess as error:
        raise RuntimeError("the process that ran the handler died") from error


def _call_there(function: Function, body: bytes) -> bytes:
    binding = Binding(function)
    arguments = binding.arguments(binding.parse(body), None)
    try:
        return encode(binding.function(**arguments))
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        # Its process would leave, and be handed the next message all the same.
        raise RuntimeError(f"the handler raised {type(error).__name__}: {error}") from None
