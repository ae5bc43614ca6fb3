"""What a plan serves, in words: for people at a terminal, and for what a worker tells of itself."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from busline.registry import Handler, Plan, shown_name
from busline.retry import Retry
from busline.structs import value


@value
class Served:
    """One handler or subscriber."""

    topic: str
    kind: str
    queue: str
    function: str
    place: str
    retry: str


def served(plan: Plan) -> Iterator[Served]:
    """Everything that `plan` serves, queue by queue."""
    for name, queue in plan.queues.items():
        for handler in [queue.subscriber] if queue.subscriber else queue.handlers.values():
            declaration = handler.declaration
            function, place = source_of(declaration.function)
            shown = shown_name(name, queue.spec)
            yield Served(declaration.topic, kind_of(handler), shown, function, place, retry_of(handler))


def kind_of(handler: Handler) -> str:
    """`handler`, `subscriber` or `broadcast`."""
    if handler.declaration.broadcast:
        return "broadcast"
    return "subscriber" if handler.declaration.subscriber else "handler"


def source_of(function: Callable[..., Any]) -> tuple[str, str]:
    """`module:name` and `file:line`, the file relative to the current folder if it is below it."""
    while isinstance(function, functools.partial):
        function = function.func
    target = inspect.unwrap(function)
    if not inspect.isroutine(target):
        target = type(target).__call__
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(target, "__code__", None)
    place = f"{_relative(code.co_filename)}:{code.co_firstlineno}" if code else "built in"
    return f"{function.__module__}:{name}", place


def _relative(path: str) -> str:
    here = os.path.join(os.getcwd(), "")
    return path.removeprefix(here)


def retry_of(handler: Handler) -> str:
    """How often and when it is tried again, for calls apart where that differs."""
    jobs = _series(handler.job_retry)
    if handler.declaration.subscriber:
        return jobs
    calls = _series(handler.call_retry)
    return jobs if calls == jobs else f"calls {calls}; jobs {jobs}"


def _series(retry: Retry) -> str:
    """`3×, first after 2 s`, or `never`."""
    if not retry.limit:
        return "never"
    first = retry.delays[0] if retry.delays else retry.first
    return f"{retry.limit}×, first after {first:g} s"
