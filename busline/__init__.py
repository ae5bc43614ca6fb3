"""busline: a pure-asyncio RPC and event bus."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    IdempotencyConflict,
    IdempotencyMismatch,
    JobCancelled,
    JobNotFound,
    JobTimeout,
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
    StoreError,
    StoreUnavailable,
    TimeLimitExceeded,
    TransportClosed,
    TransportError,
    Unavailable,
    Undeliverable,
)
from busline.idempotency import Idempotency
from busline.jobs import Job, JobInfo, Progress
from busline.message import Binding
from busline.options import Breaker, Check, Queue
from busline.remote import remote
from busline.retry import Retry
from busline.router import Router
from busline.topics import Topic

if TYPE_CHECKING:
    from busline.sync import SyncBus
    from busline.sync_jobs import SyncJob
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
    "Idempotency",
    "IdempotencyConflict",
    "IdempotencyMismatch",
    "Job",
    "JobCancelled",
    "JobInfo",
    "JobNotFound",
    "JobTimeout",
    "LeaseLost",
    "MessageTooLarge",
    "NoHandler",
    "OutcomeUnknown",
    "Progress",
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
    "StoreError",
    "StoreUnavailable",
    "SyncBus",
    "SyncJob",
    "TimeLimitExceeded",
    "Topic",
    "TransportClosed",
    "TransportError",
    "Unavailable",
    "Undeliverable",
    "Worker",
    "remote",
]

_LATER = {"SyncBus": "busline.sync", "SyncJob": "busline.sync_jobs", "Worker": "busline.worker"}
"""What a bus makes for those who ask for it; programs name these in annotations only."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
