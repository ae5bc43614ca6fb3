"""busline: a pure-asyncio RPC and event bus."""

from busline.bus import Bus
from busline.context import Context
from busline.errors import (
    AlreadySettled,
    BuslineError,
    CallError,
    CallTimeout,
    CodecError,
    ConfigurationError,
    ConnectionLost,
    HandlerError,
    LeaseLost,
    MessageTooLarge,
    NoHandler,
    OutcomeUnknown,
    QueueFull,
    QueueNotFound,
    Reject,
    RemoteError,
    ReplyLost,
    RetryLater,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    TransportClosed,
    TransportError,
    Unavailable,
    Undeliverable,
)
from busline.message import Binding, Job
from busline.options import Breaker, Check, Queue
from busline.retry import Retry
from busline.router import Router
from busline.topics import Topic
from busline.worker import Worker

__all__ = [
    "AlreadySettled",
    "Binding",
    "Breaker",
    "Bus",
    "BuslineError",
    "CallError",
    "CallTimeout",
    "Check",
    "CodecError",
    "ConfigurationError",
    "ConnectionLost",
    "Context",
    "HandlerError",
    "Job",
    "LeaseLost",
    "MessageTooLarge",
    "NoHandler",
    "OutcomeUnknown",
    "Queue",
    "QueueFull",
    "QueueNotFound",
    "Reject",
    "RemoteError",
    "ReplyLost",
    "Retry",
    "RetryLater",
    "Router",
    "SoftTimeLimitExceeded",
    "TimeLimitExceeded",
    "Topic",
    "TransportClosed",
    "TransportError",
    "Unavailable",
    "Undeliverable",
    "Worker",
]
