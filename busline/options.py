"""What stands beside a handler: the options of one handler, and those of the queue that it then has for itself."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import field
from typing import Any, Literal, TypedDict

from busline.errors import ConfigurationError
from busline.idempotency import Idempotency
from busline.message import Binding
from busline.retry import Retry
from busline.structs import frozen

Ack = Literal["late", "early"]
Executor = Literal["thread", "process"]
OnDown = Literal["pause", "answer", "warn"]

CANCEL_TIMEOUT = 5.0
"""Seconds that cancelled handlers have to end before the worker leaves without them. Not to be chosen."""
_RATE = re.compile(r"(\d+(?:\.\d+)?)/([smh])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@frozen()
class Queue:
    """A queue of a handler's own. Without a name it is `{service}.{topic}`. Times are seconds.

    `message_ttl`: a message must start within so long after it could first be delivered, or it is a dead letter of
    reason `expired`. `max_priority`: the highest priority it must know. `max_length`: more waiting messages are
    refused with QueueFull. `dead_letter`: where its dead letters go instead of `{name}.dead`; several queues may
    share one. `dead_letter_ttl`: they are deleted after so long. `kind`, `bindings`, `passive`: see QueueSpec.
    """

    name: str | None = None
    message_ttl: float | None = None
    max_priority: int | None = None
    max_length: int | None = None
    dead_letter: str | None = None
    dead_letter_ttl: float | None = None
    kind: Literal["quorum", "classic"] | None = None
    bindings: Sequence[Binding] = ()
    passive: bool = False

    def __post_init__(self) -> None:
        for name in (self.name, self.dead_letter):
            check_queue_name(name)
        for figure in (self.message_ttl, self.dead_letter_ttl, self.max_length):
            if figure is not None and not figure > 0:
                raise ConfigurationError(f"a queue's times and lengths are positive: {self}")
        if self.max_priority is not None and not 1 <= self.max_priority <= 255:
            raise ConfigurationError(f"max_priority is 1 to 255, not {self.max_priority}")


def check_queue_name(name: str | None) -> str | None:
    """Return `name`, or raise ConfigurationError if no broker could carry it."""
    if name is None:
        return None
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= 200:
        raise ConfigurationError(f"a queue's name is text of 1 to 200 bytes, {name!r} is not")
    return name


@frozen()
class Check:
    """A health check that a queue requires: an async function that returns; False or an exception means down.

    Called every `period` seconds, each time for at most `timeout` seconds, which counts as down.
    """

    function: Callable[[], Awaitable[object]]
    period: float = 5.0
    timeout: float = 2.0

    def __post_init__(self) -> None:
        if not (self.period > 0 and self.timeout > 0):
            raise ConfigurationError(f"a check's period and timeout are positive seconds: {self}")

    @property
    def name(self) -> str:
        """The function's name, as people see it."""
        return getattr(self.function, "__name__", None) or repr(self.function)


@frozen()
class Breaker:
    """Stops a queue in this process for `pause` seconds when at least `share` of what ended within the last `window`
    seconds failed, and at least `minimum` ended."""

    share: float = 0.5
    window: float = 60.0
    minimum: int = 10
    pause: float = 30.0

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and self.window > 0 and self.minimum > 0 and self.pause > 0):
            raise ConfigurationError(f"a breaker's share is between 0 and 1, its other figures are positive: {self}")


def parse_rate(rate: str) -> float:
    """Seconds between two starts, of a rate such as "10/m", "2.5/s" or "100/h"."""
    found = _RATE.fullmatch(rate)
    if not found or float(found[1]) <= 0:
        raise ConfigurationError(f"rate_limit is a number per second, minute or hour, for example '10/m', not {rate!r}")
    return _SECONDS[found[2]] / float(found[1])


class HandlerOptions(TypedDict, total=False):
    """What `Router.handler` and `Router.subscriber` take by keyword. Times are seconds.

    Said of the handler:

    * `retry`: applies to calls, too, which are otherwise not retried.
    * `ack`: "late", after it ran, so that a crash delivers the message again (the default); or "early", confirmed
      before it runs, so that a crash loses it.
    * `soft_time_limit`: SoftTimeLimitExceeded is raised inside an async handler, which may clean up, or return.
    * `time_limit`: the handler is cancelled, or its process killed; a failure like any other.
    * `executor`: where a plain function runs; "thread", or "process", which makes it killable.
    * `idempotency`: its effect happens once per key, by means of a store; see Idempotency.
    * `on_failure`: called on the final failure, with what it asks for by annotation: the error, the Context, and the
      payload as the handler takes it. Its own failure is logged and loses nothing.

    Said of the queue, so that the handler has one of its own, `{service}.{topic}`:

    * `queue`: a `Queue` with options; or only the name of a queue, which several handlers may share.
    * `rate_limit`: starts per second, minute or hour, e.g. "10/m", of all processes of one worker together.
    * `concurrency`: messages at a time in each process.
    * `requires`, `on_down`: health checks; while one fails the queue is not consumed ("pause", the default), or
      callers get Unavailable at once and jobs wait as delayed copies ("answer"), or it is only logged ("warn").
    * `breaker`: stops the queue for a while when too large a share fails.
    """

    queue: str | Queue | None
    retry: Retry | None
    ack: Ack
    soft_time_limit: float | None
    time_limit: float | None
    executor: Executor
    idempotency: Idempotency | None
    on_failure: Callable[..., Any] | None
    rate_limit: str | None
    concurrency: int | None
    requires: Sequence[Check | Callable[[], Awaitable[object]]]
    on_down: OnDown
    breaker: Breaker | None


@frozen(kw_only=True)
class Options:
    """`HandlerOptions` with their defaults, checked. Raises ConfigurationError for what cannot be."""

    queue: str | Queue | None = None
    retry: Retry | None = None
    ack: Ack = "late"
    soft_time_limit: float | None = None
    time_limit: float | None = None
    executor: Executor = "thread"
    idempotency: Idempotency | None = None
    on_failure: Callable[..., Any] | None = None
    rate_limit: str | None = None
    concurrency: int | None = None
    requires: Sequence[Check | Callable[[], Awaitable[object]]] = ()
    on_down: OnDown = "pause"
    breaker: Breaker | None = None
    checks: tuple[Check, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if isinstance(self.queue, str):
            check_queue_name(self.queue)
        checks = tuple(each if isinstance(each, Check) else Check(each) for each in self.requires)
        object.__setattr__(self, "checks", checks)
        self._check_words()
        self._check_figures()

    def _check_words(self) -> None:
        for name, allowed in (
            ("ack", ("late", "early")),
            ("executor", ("thread", "process")),
            ("on_down", ("pause", "answer", "warn")),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise ConfigurationError(f"{name} is {' or '.join(map(repr, allowed))}, not {value!r}")
        if self.on_down != "pause" and not self.checks:
            raise ConfigurationError("on_down= says what to do when a check of requires= fails, and there is none")
        if self.rate_limit is not None:
            parse_rate(self.rate_limit)

    def _check_figures(self) -> None:
        soft, hard = self.soft_time_limit, self.time_limit
        if any(limit is not None and not limit > 0 for limit in (soft, hard)):
            raise ConfigurationError("time limits are positive seconds")
        if soft is not None and hard is not None and soft >= hard:
            raise ConfigurationError(f"soft_time_limit ({soft:g} s) must end before time_limit ({hard:g} s)")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigurationError("concurrency is at least 1")

    @property
    def owns_queue(self) -> bool:
        """Something in here is said of a queue, which must therefore be this handler's alone."""
        scoped = (self.rate_limit, self.concurrency, self.breaker)
        return isinstance(self.queue, Queue) or bool(self.checks) or any(each is not None for each in scoped)

    @property
    def queue_options(self) -> Queue:
        """What is said of the queue."""
        return self.queue if isinstance(self.queue, Queue) else Queue(self.queue)
