"""The client library logs where it has found credentials. A driver is silent: `health()` tells.

The library's loggers belong to the process, which may use the library for itself. So what is dropped are the records
of our own clients only: a context variable is set while they are made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = ("aiobotocore.credentials", "botocore.credentials", "botocore.tokens", "botocore.hooks")
_OURS: ContextVar[bool] = ContextVar("busline sqs client", default=False)


class _NotOurs(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _OURS.get()


_NOT_OURS = _NotOurs()


@contextmanager
def silence() -> Iterator[None]:
    """What the library logs in here, and in the tasks that it starts in here, is dropped."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_NOT_OURS)
    token = _OURS.set(True)
    try:
        yield
    finally:
        _OURS.reset(token)
