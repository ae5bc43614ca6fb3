"""What a service offers, as declared; and, when it starts, the plan of queues that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import field, replace
from fnmatch import fnmatchcase
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from busline.errors import ConfigurationError
from busline.idempotency import Idempotency
from busline.message import QueueSpec, WorkTerms
from busline.options import Options, Queue
from busline.retry import JOB_RETRY, NO_RETRY, Retry
from busline.structs import entity, value
from busline.topics import check_pattern, check_topic
from busline.wire import text_of

if TYPE_CHECKING:
    from busline.binding import Binding

DEAD_SUFFIX = ".dead"
"""A queue's dead letters go to the queue of its name with this suffix, unless it names another."""


@value
class Declaration:
    """One decorated function: a handler of a topic, or a subscriber to a pattern."""

    topic: str
    """The topic, or the pattern of a subscriber."""
    function: Callable[..., Any]
    options: Options
    subscriber: bool = False
    broadcast: bool = False
    job_retry: Retry | None = None
    """The policy of its router, for jobs and events where it has none of its own."""

    @property
    def name(self) -> str:
        """The function's name, as people see it and as a subscriber's queue is named."""
        return getattr(self.function, "__name__", None) or type(self.function).__name__

    def prefixed(self, prefix: str, retry: Retry | None) -> Declaration:
        """The same under `prefix`, with `retry` for its jobs and events where no router nearer to it has a policy."""
        topic = check_pattern(prefix + self.topic) if self.subscriber else check_topic(prefix + self.topic)
        return replace(self, topic=topic, job_retry=self.job_retry or retry)


class Injecting(Protocol):
    """Runs a handler with its dependencies."""

    def call(self, work: Any, context: Any, threads: Any) -> Coroutine[Any, Any, Any]: ...


@entity
class Handler:
    """A declaration that is about to be served."""

    declaration: Declaration
    binding: Binding
    call_retry: Retry
    """For messages that a caller waits for."""
    job_retry: Retry
    """For all others."""
    on_failure: Binding | None = None
    injection: Injecting | None = None
    """Set while a worker serves it, if it has dependencies."""
    options: Options = field(init=False)
    """As declared."""
    limited: bool = field(init=False)
    """It has a time limit."""
    idempotency: Idempotency | None = field(init=False)
    """As declared."""

    def __post_init__(self) -> None:
        options = self.options = self.declaration.options
        self.idempotency = options.idempotency
        self.limited = options.soft_time_limit is not None or options.time_limit is not None


@entity
class QueuePlan:
    """One queue that a worker serves."""

    spec: QueueSpec
    queue: Queue = field(default_factory=Queue)
    """What was said of the queue."""
    owner: Handler | None = None
    """The one handler or subscriber that has this queue for itself, and whose queue-scoped options hold."""
    handlers: dict[str, Handler] = field(default_factory=dict)
    """By topic."""
    subscriber: Handler | None = None
    """Of an event queue: takes whatever arrives."""

    def find(self, topic: str) -> Handler | None:
        """Who handles a message of `topic` on this queue, or None."""
        return self.subscriber or self.handlers.get(topic)

    @property
    def options(self) -> Options:
        """The queue-scoped options."""
        return self.owner.options if self.owner else Options()

    @property
    def declared(self) -> QueueSpec:
        """The queue, with how it is going to be worked on."""
        served = [self.subscriber] if self.subscriber is not None else list(self.handlers.values())
        limits = [handler.options.time_limit for handler in served]
        terms = WorkTerms(
            longest=max((inf if limit is None else limit for limit in limits), default=inf),
            early=all(handler.options.ack == "early" for handler in served),
            attempts=max((handler.job_retry.attempts for handler in served), default=1),
        )
        return replace(self.spec, work=terms)

    @property
    def dead_letters(self) -> QueueSpec | None:
        """Where its dead letters go; an ephemeral queue has none, because nobody could look for it later."""
        if self.spec.ephemeral:
            return None
        name = self.queue.dead_letter or self.spec.name + DEAD_SUFFIX
        return QueueSpec(name, self.spec.service, for_dead_letters=True)


def shown_name(queue: str, spec: QueueSpec) -> str:
    """A queue's name for people: of a broadcast subscriber's the rest is the process's own."""
    return f"{queue.rpartition('.')[0]}.*" if spec.ephemeral else queue


class Plan:
    """All queues of a service. Built once when a worker starts; raises ConfigurationError for what cannot be."""

    def __init__(
        self, declarations: Iterable[Declaration], *, service: str | None, retry: Retry | None, instance: str
    ) -> None:
        self._service = service
        self._retry = retry
        self._instance = instance
        self._queues: dict[str, QueuePlan] = {}
        for declaration in declarations:
            self.add(declaration)

    @property
    def queues(self) -> Mapping[str, QueuePlan]:
        """By name, in the order of declaration."""
        return self._queues

    @property
    def service(self) -> str | None:
        """Whose queues they are."""
        return self._service

    def only(self, names: Iterable[str]) -> Plan:
        """The same with the queues of these names alone; `*` stands for anything. Raises ConfigurationError for a name
        that is none of its."""
        chosen = Plan((), service=self._service, retry=self._retry, instance=self._instance)
        for wanted in names:
            found = [name for name in self._queues if fnmatchcase(name, wanted)]
            if not found:
                known = sorted(shown_name(name, plan.spec) for name, plan in self._queues.items())
                raise ConfigurationError(f"no queue is called {wanted!r}; there are {', '.join(known) or 'none'}")
            chosen._queues.update({name: self._queues[name] for name in found})
        return chosen

    @property
    def handlers(self) -> Iterable[Handler]:
        """All handlers and subscribers."""
        for queue in self._queues.values():
            yield from (queue.subscriber,) if queue.subscriber is not None else queue.handlers.values()

    def add(self, declaration: Declaration) -> None:
        """One more. Raises ConfigurationError, and is then as before."""
        handler = self._handler(declaration)
        if declaration.subscriber:
            self._add_subscriber(declaration, handler)
        else:
            self._add_handler(declaration, handler)

    def _handler(self, declaration: Declaration) -> Handler:
        from busline.binding import Binding, check_process_handler  # pydantic, which who only calls may not need

        options, binding = declaration.options, Binding(declaration.function)
        if options.executor == "process":
            check_process_handler(binding)
        if options.soft_time_limit is not None and not binding.is_async:
            raise ConfigurationError(
                f"{declaration.name} is a plain function, into which no soft_time_limit can be raised: make it async, "
                "or give it a time_limit and executor='process'"
            )
        on_failure = Binding(options.on_failure, on_failure_of=binding) if options.on_failure else None
        if on_failure is not None and on_failure.dependencies:
            raise ConfigurationError(f"the on_failure of {declaration.name} has dependencies, which only handlers get")
        return Handler(
            declaration,
            binding,
            call_retry=options.retry or NO_RETRY,
            job_retry=options.retry or declaration.job_retry or self._retry or JOB_RETRY,
            on_failure=on_failure,
        )

    def _add_handler(self, declaration: Declaration, handler: Handler) -> None:
        topic, options = declaration.topic, declaration.options
        name = options.queue_options.name or self._default_queue(declaration)
        for other in self._queues.values():
            if twin := other.handlers.get(topic):
                raise ConfigurationError(
                    f"topic {topic!r} has two handlers, {twin.declaration.name} and {declaration.name}"
                )
        plan = self._queues.get(name)
        if plan is None:
            plan = self._queues[name] = self._new_queue(name, handler, frozenset())
        elif plan.owner or options.owns_queue:
            owner = plan.owner.declaration.name if plan.owner else declaration.name
            raise ConfigurationError(
                f"queue {name!r} is {owner}'s alone, because something was said of the queue there; the handler of "
                f"{topic!r} needs another"
            )
        plan.handlers[topic] = handler
        plan.spec = replace(plan.spec, topics=plan.spec.topics | {topic})

    def _default_queue(self, declaration: Declaration) -> str:
        if not self._service:
            raise ConfigurationError(
                f"the handler of {declaration.topic!r} has no queue: give the bus a service=, whose queue it then uses"
            )
        return f"{self._service}.{declaration.topic}" if declaration.options.owns_queue else self._service

    def _new_queue(
        self, name: str, handler: Handler, patterns: frozenset[str], *, ephemeral: bool = False
    ) -> QueuePlan:
        queue = handler.options.queue_options
        spec = QueueSpec(
            name,
            self._service or name,
            patterns=patterns,
            ephemeral=ephemeral,
            max_priority=queue.max_priority,
            max_length=queue.max_length,
            kind=queue.kind,
            bindings=tuple(queue.bindings),
            passive=queue.passive,
            dead_letter=None if ephemeral else queue.dead_letter or name + DEAD_SUFFIX,
        )
        owns = bool(patterns) or handler.options.owns_queue
        return QueuePlan(spec, queue, owner=handler if owns else None)

    def _add_subscriber(self, declaration: Declaration, handler: Handler) -> None:
        name = declaration.options.queue_options.name or self._subscriber_queue(declaration)
        if declaration.broadcast:
            name = f"{name}.{self._instance}"
        if name in self._queues:
            raise ConfigurationError(
                f"two subscribers, or a subscriber and a handler, want queue {name!r}: each subscriber has a queue of "
                f"its own; rename {declaration.name} or give it queue="
            )
        plan = self._new_queue(name, handler, frozenset({declaration.topic}), ephemeral=declaration.broadcast)
        plan.subscriber = handler
        self._queues[name] = plan

    def _subscriber_queue(self, declaration: Declaration) -> str:
        if not self._service:
            raise ConfigurationError(
                f"the subscriber {declaration.name} has no queue: give the bus a service=, or the subscriber a queue="
            )
        return f"{self._service}.{declaration.name}"


class ErrorRegistry:
    """Exception classes that travel as themselves, by code. Closed: what is not registered is never constructed."""

    def __init__(self) -> None:
        self._classes: dict[str, type[Exception]] = {}
        self._codes: dict[type[Exception], str] = {}

    def add(self, code: str, cls: type[Exception]) -> None:
        """Register `cls` under `code`; raises ConfigurationError if either is taken by another."""
        if self._classes.get(code, cls) is not cls or self._codes.get(cls, code) != code:
            raise ConfigurationError(f"error {code!r} or class {cls.__name__} is registered otherwise already")
        self._classes[code] = cls
        self._codes[cls] = code

    def items(self) -> Iterable[tuple[str, type[Exception]]]:
        """Codes and classes."""
        return self._classes.items()

    def describe(self, error: BaseException) -> tuple[str, str, dict[str, Any]]:
        """Type, message and details under which `error` travels."""
        code = self._codes.get(type(error))  # type: ignore[arg-type]  # a BaseException is simply not found
        if code is None:
            return type(error).__name__, text_of(error), {}
        return code, text_of(error), {"args": list(error.args), "state": dict(vars(error))}

    def rebuild(self, code: str, message: str, details: Mapping[str, Any]) -> Exception | None:
        """The registered exception, or None.

        Made without running its constructor, whose signature the other side need not share.
        """
        cls = self._classes.get(code)
        if cls is None:
            return None
        args = details.get("args")
        try:
            error = cls.__new__(cls)
        except Exception:  # its __new__ wants more: the caller gets a RemoteError, which says as much
            return None
        error.args = tuple(args) if isinstance(args, list) else (message,)
        if isinstance(state := details.get("state"), dict):
            vars(error).update(state)
        return error
