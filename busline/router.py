"""Declaring handlers and subscribers, in any module, without a bus at hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from busline.errors import ConfigurationError
from busline.options import Ack, Breaker, Check, Executor, OnDown, Options, Queue
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
        self,
        topic: str | Topic[Any, Any],
        *,
        queue: str | Queue | None = None,
        retry: Retry | None = None,
        ack: Ack = "late",
        soft_time_limit: float | None = None,
        time_limit: float | None = None,
        executor: Executor = "thread",
        on_failure: Callable[..., Any] | None = None,
        rate_limit: str | None = None,
        concurrency: int | None = None,
        requires: Sequence[Check | Callable[[], Awaitable[object]]] = (),
        on_down: OnDown = "pause",
        breaker: Breaker | None = None,
    ) -> Callable[[F], F]:
        """Declare the one handler of `topic`, for calls and jobs. Returns the function unchanged. Times are seconds.

        * `queue`: the queue's name instead of the service's own, or a `Queue` with options, which is then its alone.
        * `retry`: applies to calls, too, which are otherwise not retried.
        * `ack`: "late", after it ran, so that a crash delivers the message again; or "early", confirmed before it
          runs, so that a crash loses it.
        * `soft_time_limit`: SoftTimeLimitExceeded is raised inside an async handler, which may clean up or return.
        * `time_limit`: the handler is cancelled, or its process killed; a failure like any other.
        * `executor`: where a plain function runs; "process" makes it killable.
        * `on_failure`: called on the final failure, with what it asks for by annotation: the error, the Context, and
          the payload as the handler takes it. Its own failure is logged and loses nothing.
        * `rate_limit`: starts per second, minute or hour, e.g. "10/m", of all processes of one worker together.
        * `concurrency`: messages at a time in each process.
        * `requires`, `on_down`: health checks; while one fails the queue is not consumed ("pause"), or callers get
          Unavailable at once and jobs wait as delayed copies ("answer"), or it is only logged ("warn").
        * `breaker`: stops the queue for a while when too large a share fails.

        The last five, and a `Queue`, are said of the queue: the handler then has one of its own, `{service}.{topic}`.
        Raises ConfigurationError for what cannot be.
        """
        name = check_topic(topic.name if isinstance(topic, Topic) else topic)
        options = Options(
            queue=queue,
            retry=retry,
            ack=ack,
            soft_time_limit=soft_time_limit,
            time_limit=time_limit,
            executor=executor,
            on_failure=on_failure,
            rate_limit=rate_limit,
            concurrency=concurrency,
            requires=requires,
            on_down=on_down,
            breaker=breaker,
        )

        def declare(function: F) -> F:
            self._declare(Declaration(name, function, options))
            return function

        return declare

    def subscriber(
        self,
        pattern: str,
        *,
        broadcast: bool = False,
        queue: str | Queue | None = None,
        retry: Retry | None = None,
        ack: Ack = "late",
        soft_time_limit: float | None = None,
        time_limit: float | None = None,
        executor: Executor = "thread",
        on_failure: Callable[..., Any] | None = None,
        rate_limit: str | None = None,
        concurrency: int | None = None,
        requires: Sequence[Check | Callable[[], Awaitable[object]]] = (),
        on_down: OnDown = "pause",
        breaker: Breaker | None = None,
    ) -> Callable[[F], F]:
        """Declare a subscriber to events: `*` is one word, `#` any number. Returns the function unchanged.

        Each subscriber has a queue of its own, `{service}.{function name}` unless `queue` names it, shared by all
        processes of the service. With `broadcast=True` every process gets its own copy, at most once, while it is
        there; nothing is kept for it, so it takes neither a retry policy nor a `Queue`. The other options are as for
        `handler`.
        """
        check_pattern(pattern)
        if broadcast and (retry is not None or isinstance(queue, Queue)):
            raise ConfigurationError("a broadcast is delivered at most once: it takes no retry= and no Queue(...)")
        options = Options(
            queue=queue,
            retry=Retry(max_retries=0) if broadcast else retry,
            ack=ack,
            soft_time_limit=soft_time_limit,
            time_limit=time_limit,
            executor=executor,
            on_failure=on_failure,
            rate_limit=rate_limit,
            concurrency=concurrency,
            requires=requires,
            on_down=on_down,
            breaker=breaker,
        )

        def declare(function: F) -> F:
            self._declare(Declaration(pattern, function, options, subscriber=True, broadcast=broadcast))
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
