"""Every error that busline raises, in one tree.

    BuslineError
    ├── ConfigurationError              what was asked for cannot work; raised at startup, never later
    ├── TransportError                  the broker, or the way to it
    │   ├── ConnectionLost              the connection ended; nothing is known to have been accepted
    │   ├── OutcomeUnknown              the confirmation was lost: the broker may or may not have the message
    │   ├── QueueNotFound               (queue)
    │   ├── QueueFull                   (queue, max_length)
    │   ├── MessageTooLarge             (size, limit), in bytes
    │   ├── LeaseLost                   the message is no longer ours; somebody else may be working on it
    │   └── TransportClosed             used before open() or after aclose()
    ├── CallError                       an `await bus.call()` that has no result
    │   ├── CallTimeout                 (topic, timeout, state, where); also a TimeoutError
    │   ├── NoHandler                   (topic, where): nobody ever declared the topic
    │   ├── Unavailable                 the handler exists and declines to work now
    │   ├── ReplyLost                   the way back was cut; the handler may have run
    │   └── RemoteError                 (type, message, details): the handler raised
    ├── StoreError                      the idempotency-key and job store
    │   ├── StoreUnavailable            it is down, slow, locked or full; whether it happened may be unknown
    │   ├── ClaimLost                   (key): somebody else has taken the claim over
    │   ├── JobNotFound                 (id): nobody tracks it, or its result has expired
    │   ├── JobCancelled                (id): somebody has cancelled it
    │   └── JobTimeout                  (id, timeout): it has not ended yet; also a TimeoutError
    ├── IdempotencyMismatch             (key): the key was used with another payload
    ├── IdempotencyConflict             (key): another worker is working on the key, and the handler does not wait
    ├── HandlerError                    (what became of a handler, as retry rules and on_failure see it)
    │   ├── TimeLimitExceeded           (limit): it ran into its hard time limit
    │   ├── AlreadySettled              (first): ack() or nack() after something had settled the message
    │   └── Undeliverable               (reason): it never ran: expired, or handed out too often
    └── CodecError                      bytes that are not what they claim to be

`Reject` and `RetryLater` stand beside the tree: a handler raises them as instructions, they report no fault.
`SoftTimeLimitExceeded` does, too: it is an `asyncio.CancelledError`, because whatever the handler awaits must treat it
as a cancellation (as a plain Exception it would leave the children of `wait_for`, `gather` and task groups running).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import inf
from typing import Any, Literal

CallState = Literal["queued", "started"]


class BuslineError(Exception):
    """The root of every error that busline raises."""


class ConfigurationError(BuslineError):
    """Something that was asked for cannot work here; the text says what to change."""


class TransportError(BuslineError):
    """The broker, or the way to it, failed."""


class ConnectionLost(TransportError):
    """The connection to the broker ended before the operation was accepted."""


class OutcomeUnknown(TransportError):
    """The broker's confirmation was lost: it may or may not have the message. Sending again may duplicate."""


class QueueNotFound(TransportError):
    """No queue of this name exists at the broker."""

    def __init__(self, queue: str, where: str = "") -> None:
        super().__init__(f"queue {queue!r} does not exist" + (f" at {where}" if where else ""))
        self.queue = queue
        self.where = where


class QueueFull(TransportError):
    """The queue holds as many messages as it may; nothing was stored.

    `max_length` is 0 where the bound is not known, because somebody else has set it at the broker.
    """

    def __init__(self, queue: str, max_length: int) -> None:
        super().__init__(f"queue {queue!r} is full" + (f" ({max_length} messages)" if max_length else ""))
        self.queue = queue
        self.max_length = max_length


class MessageTooLarge(TransportError):
    """The message is larger than the bus or the broker takes. Sizes are bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the message has {size} bytes, the limit is {limit}; send a reference to the data instead")
        self.size = size
        self.limit = limit


class LeaseLost(TransportError):
    """The lease on a message ended before it was settled; the broker may have given it to somebody else."""


class TransportClosed(TransportError):
    """The transport was used before it was opened or after it was closed."""


class CallError(BuslineError):
    """A call ended without a result."""


class CallTimeout(CallError, TimeoutError):
    """No reply came before the deadline.

    `state` is "started" where a worker reported that it had begun, else "queued". `where` names the broker.
    """

    def __init__(self, topic: str, timeout: float, state: CallState, where: str) -> None:
        hint = (
            "a worker had started it and did not finish in time"
            if state == "started"
            else "no worker had reported a start; is a worker of its service running?"
        )
        super().__init__(f"call to {topic!r} got no reply within {round(timeout, 3):g} s at {where}: {hint}")
        self.topic = topic
        self.timeout = timeout
        self.state: CallState = state
        self.where = where


class NoHandler(CallError):
    """Nobody ever declared the topic at this broker, or the worker that was asked does not know it."""

    def __init__(self, topic: str, where: str) -> None:
        super().__init__(
            f"nobody handles {topic!r} at {where}; has a worker with a handler for it ever been started there?"
        )
        self.topic = topic
        self.where = where


class Unavailable(CallError):
    """The handler exists and declines to work at the moment."""


class ReplyLost(CallError):
    """The way back to the caller was cut while the call was in flight; the handler may have run."""


class RemoteError(CallError):
    """The handler raised an exception that is not registered on this side.

    `type` is its registered code or class name, `message` its text, `details` what it carried (plain JSON).
    """

    def __init__(self, type: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message
        self.details: Mapping[str, Any] = details or {}


class StoreError(BuslineError):
    """The store, or the way to it, failed."""


class StoreUnavailable(StoreError):
    """The store is down, slow, locked or full; whether the operation happened may be unknown."""


class ClaimLost(StoreError):
    """The claim on an idempotency key is no longer ours: its lease had ended and somebody else has taken it over."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the claim on {key!r} is no longer ours")
        self.key = key


class IdempotencyMismatch(BuslineError):
    """The idempotency key was used before with another payload; nothing was run and the record is untouched."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the idempotency key {key!r} was used with another payload")
        self.key = key


class IdempotencyConflict(BuslineError):
    """Another worker is working on the idempotency key, and its handler says not to wait; nothing was run."""

    def __init__(self, key: str) -> None:
        super().__init__(f"another worker is working on the idempotency key {key!r}")
        self.key = key


class JobNotFound(StoreError):
    """The store knows no such job: it was not tracked, is older than the store remembers, or its result has expired."""

    def __init__(self, id: str) -> None:
        super().__init__(f"the store knows no job {id!r}, or its result has expired")
        self.id = id


class JobCancelled(StoreError):
    """The job has no result, because somebody has cancelled it."""

    def __init__(self, id: str) -> None:
        super().__init__(f"job {id!r} was cancelled")
        self.id = id


class JobTimeout(StoreError, TimeoutError):
    """The job has not ended within `timeout` seconds; it goes on."""

    def __init__(self, id: str, timeout: float) -> None:
        super().__init__(f"job {id!r} has not ended within {timeout:g} s; it goes on")
        self.id = id
        self.timeout = timeout


class HandlerError(BuslineError):
    """What became of a handler, as retry rules and `on_failure` see it."""


class TimeLimitExceeded(HandlerError, TimeoutError):
    """The handler was cancelled, or its process killed, because it ran longer than `time_limit` seconds."""

    def __init__(self, limit: float) -> None:
        super().__init__(f"ran longer than its time_limit of {limit:g} s")
        self.limit = limit


class AlreadySettled(HandlerError):
    """`ctx.ack()` or `ctx.nack()` came after the message had been settled; `first` says by what."""

    def __init__(self, first: str) -> None:
        super().__init__(f"the message was settled already, by {first}")
        self.first = first


class Undeliverable(HandlerError):
    """The message became a dead letter without running; `reason` as on the dead letter."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SoftTimeLimitExceeded(asyncio.CancelledError):
    """Raised inside a running handler, where it awaits, after `soft_time_limit` seconds.

    It may clean up, and may even return a result. What it lets through is a failure like any other. Raised in the body
    of an `asyncio.TaskGroup` it comes out of it in a group, as every exception does: `except* SoftTimeLimitExceeded`.
    """

    def __init__(self, limit: float) -> None:
        super().__init__(f"running longer than its soft_time_limit of {limit:g} s")
        self.limit = limit


class CodecError(BuslineError):
    """Bytes that are not the JSON, or the metadata, that they should be."""


class Reject(Exception):
    """Raised by a handler: dead-letter this message now, with `reason`, whatever the retry policy says."""

    def __init__(self, reason: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason


class RetryLater(Exception):
    """Raised by a handler: try again after `delay` seconds; counts as an attempt.

    Raises ValueError instead for what is not a finite number from 0.
    """

    def __init__(self, delay: float) -> None:
        if not 0 <= delay < inf:
            raise ValueError(f"RetryLater takes a number of seconds from 0, not {delay!r}")
        super().__init__(f"retry in {delay:g} s")
        self.delay = delay
