"""Declaring handlers and subscribers, in any module, without a bus at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from busline.errors import ConfigurationError
from busline.registry import Declaration, ErrorRegistry
from busline.retry import Retry
from busline.topics import Topic, check_pattern, check_topic

F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=type[Exception])


class Router:
    """Collects declarations; `bus.include(router, prefix="orders.")` makes them the bus's.

    `retry` is the policy of those of its handlers and subscribers that have none of their own.
    """

    def __init__(self, *, retry: Retry | None = None) -> None:
        self._retry = retry
        self._declarations: list[Declaration] = []
        self._errors = ErrorRegistry()

    @property
    def declarations(self) -> Sequence[Declaration]:
        """What was declared, in order."""
        return tuple(self._declarations)

    def handler(
        self, topic: str | Topic[Any, Any], *, queue: str | None = None, retry: Retry | None = None
    ) -> Callable[[F], F]:
        """Declare the one handler of `topic`, for calls and jobs. Returns the function unchanged.

        `queue` names the queue instead of the service's own; handlers may share one. `retry` applies to calls, too,
        which are otherwise not retried. Raises ConfigurationError for a name that cannot be a topic.
        """
        name = check_topic(_given("handler", topic.name if isinstance(topic, Topic) else topic))

        def declare(function: F) -> F:
            self._declare(Declaration(name, function, queue=_checked_queue(queue), retry=retry))
            return function

        return declare

    def subscriber(
        self, pattern: str, *, queue: str | None = None, retry: Retry | None = None, broadcast: bool = False
    ) -> Callable[[F], F]:
        """Declare a subscriber to events: `*` is one word, `#` any number. Returns the function unchanged.

        Each subscriber has a queue of its own, `{service}.{function name}` unless `queue` names it, shared by all
        processes of the service. With `broadcast=True` every process gets its own copy, at most once, while it is
        there; nothing is kept for it, so it cannot have a retry policy.
        """
        check_pattern(_given("subscriber", pattern))
        if broadcast and retry is not None:
            raise ConfigurationError("a broadcast is delivered at most once: it takes no retry=")
        if broadcast:
            retry = Retry(max_retries=0)

        def declare(function: F) -> F:
            self._declare(Declaration(pattern, function, True, broadcast, _checked_queue(queue), retry))
            return function

        return declare

    def error(self, code: str) -> Callable[[E], E]:
        """Register an exception class that travels as itself, under `code`, where both sides have registered it."""

        def register(cls: E) -> E:
            self._errors.add(code, cls)
            return cls

        return register

    def include(self, router: Router, *, prefix: str = "") -> None:
        """Take over what `router` has declared so far, each topic and pattern with `prefix` before it."""
        for declaration in router.declarations:
            self._declare(declaration.prefixed(prefix, router._retry))
        for code, cls in router._errors.items():
            self._errors.add(code, cls)

    def _declare(self, declaration: Declaration) -> None:
        self._declarations.append(declaration)


def _given(decorator: str, name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f'{name!r} is not a topic; it is written @bus.{decorator}("some.topic")')
    return name


def _checked_queue(queue: str | None) -> str | None:
    if queue is None:
        return None
    try:
        size = len(queue.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= 200:
        raise ConfigurationError(f"a queue's name is text of 1 to 200 bytes, {queue!r} is not")
    return queue
