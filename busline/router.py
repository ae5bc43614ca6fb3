"""Declaring handlers and subscribers, in any module, without a bus at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, Unpack

from busline.errors import ConfigurationError
from busline.lifespan import Lifespan, lifespan_of
from busline.options import HandlerOptions, Options, Queue
from busline.registry import Declaration, ErrorRegistry
from busline.retry import Retry
from busline.topics import Topic, check_pattern, check_topic

F = TypeVar("F", bound=Callable[..., Any])
L = TypeVar("L", bound=Callable[[], Any])
E = TypeVar("E", bound=type[Exception])


class Router:
    """Collects declarations; `bus.include(router, prefix="orders.")` makes them the bus's.

    `retry` is the policy of jobs and events whose handler or subscriber has none of its own; calls are retried only
    by their handler's own.
    """

    def __init__(self, *, retry: Retry | None = None) -> None:
        self._retry = retry
        self._declarations: list[Declaration] = []
        self._errors = ErrorRegistry()
        self._lifespans: list[Lifespan] = []

    @property
    def declarations(self) -> Sequence[Declaration]:
        """What was declared, in order."""
        return tuple(self._declarations)

    def handler(self, topic: str | Topic[Any, Any], **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
        """Declare the one handler of `topic`, for calls and jobs. Returns the function unchanged.

        The options are described at `HandlerOptions`. Raises ConfigurationError for what cannot be.
        """
        name = check_topic(_given("handler", topic.name if isinstance(topic, Topic) else topic))
        checked = Options(**options)

        def declare(function: F) -> F:
            self._declare(Declaration(name, function, checked))
            return function

        return declare

    def subscriber(
        self, pattern: str, *, broadcast: bool = False, **options: Unpack[HandlerOptions]
    ) -> Callable[[F], F]:
        """Declare a subscriber to events: `*` is one word, `#` any number. Returns the function unchanged.

        Each subscriber has a queue of its own, `{service}.{function name}` unless `queue` names it, shared by all
        processes of the service. With `broadcast=True` every process gets its own copy, at most once, while it is
        there; nothing is kept for it, so it takes neither a retry policy nor a `Queue`. The options are described at
        `HandlerOptions`.
        """
        check_pattern(_given("subscriber", pattern))
        checked = Options(**options)
        if broadcast:
            if checked.retry is not None or isinstance(checked.queue, Queue):
                raise ConfigurationError("a broadcast is delivered at most once: it takes no retry= and no Queue(...)")
            if checked.idempotency is not None:
                raise ConfigurationError("a broadcast is for every process: it takes no idempotency=")
            checked = replace(checked, retry=Retry(max_retries=0))

        def declare(function: F) -> F:
            self._declare(Declaration(pattern, function, checked, subscriber=True, broadcast=broadcast))
            return function

        return declare

    def error(self, code: str) -> Callable[[E], E]:
        """Register an exception class that travels as itself, under `code`, where both sides have registered it."""

        def register(cls: E) -> E:
            self._errors.add(code, cls)
            return cls

        return register

    def worker_lifespan(self, function: L) -> L:
        """Declare what begins before a worker consumes and ends when it has settled its last message: an async function
        with one `yield`. Each worker process enters those of its bus in order, and leaves them in reverse order."""
        self._lifespans.append(lifespan_of(function))
        return function

    def include(self, router: Router, *, prefix: str = "") -> None:
        """Take over what `router` has declared so far, each topic and pattern with `prefix` before it."""
        for declaration in router.declarations:
            self._declare(declaration.prefixed(prefix, router._retry))
        self._lifespans += [lifespan for lifespan in router._lifespans if lifespan not in self._lifespans]
        for code, cls in router._errors.items():
            self._errors.add(code, cls)

    def _declare(self, declaration: Declaration) -> None:
        self._declarations.append(declaration)


def _given(decorator: str, name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f'{name!r} is not a topic; it is written @bus.{decorator}("some.topic")')
    return name
