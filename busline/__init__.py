"""busline: a pure-asyncio RPC and event bus."""

from busline.bus import Bus
from busline.context import Context
from busline.errors import (
    BuslineError,
    CallError,
    CallTimeout,
    CodecError,
    ConfigurationError,
    ConnectionLost,
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
    TransportClosed,
    TransportError,
    Unavailable,
)
from busline.message import Job
from busline.retry import Retry
from busline.router import Router
from busline.topics import Topic
from busline.worker import Worker

__all__ = [
    "Bus",
    "BuslineError",
    "CallError",
    "CallTimeout",
    "CodecError",
    "ConfigurationError",
    "ConnectionLost",
    "Context",
    "Job",
    "LeaseLost",
    "MessageTooLarge",
    "NoHandler",
    "OutcomeUnknown",
    "QueueFull",
    "QueueNotFound",
    "Reject",
    "RemoteError",
    "ReplyLost",
    "Retry",
    "RetryLater",
    "Router",
    "Topic",
    "TransportClosed",
    "TransportError",
    "Unavailable",
    "Worker",
]
