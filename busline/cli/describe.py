"""What a bus serves, in words."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.registry import Handler, Plan
from busline.retry import Retry
from busline.transports import from_url


@dataclass(frozen=True, slots=True)
class Served:
    """One handler or subscriber."""

    topic: str
    kind: str
    queue: str
    function: str
    place: str
    retry: str


def plan_of(app: str, bus: Bus) -> Plan:
    """The bus's plan. Raises ConfigurationError, and Failure if there is nothing to serve."""
    plan = bus.plan()
    if not plan.queues:
        raise Failure(
            Exit.NO_HANDLER,
            f"{app} has no handlers and no subscribers: import the modules that declare them where the bus is made, "
            "or include their routers",
        )
    return plan


def served(plan: Plan) -> Iterator[Served]:
    """Everything that `plan` serves, queue by queue."""
    for name, queue in plan.queues.items():
        for handler in [queue.subscriber] if queue.subscriber else queue.handlers.values():
            declaration = handler.declaration
            function, place = _source(declaration.function)
            shown = f"{name.rpartition('.')[0]}.*" if queue.spec.ephemeral else name  # the rest is the process's own
            yield Served(declaration.topic, _kind(handler), shown, function, place, _retry(handler))


def where(bus: Bus) -> str:
    """The broker's address, without secrets and without connecting."""
    return from_url(bus.url).where if bus.url else "the transport that the bus was given"


def _kind(handler: Handler) -> str:
    if handler.declaration.broadcast:
        return "broadcast"
    return "subscriber" if handler.declaration.subscriber else "handler"


def _source(function: Callable[..., Any]) -> tuple[str, str]:
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


def _retry(handler: Handler) -> str:
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
