"""The client library logs every connection that ends, with tracebacks. A driver is silent: `health()` tells.

The library's loggers belong to the process, which may use the library for itself. So what is dropped are the records
of our own connections and channels only: a context variable is set while they are made, and their tasks inherit it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = ("aiormq.channel", "aiormq.connection", "aiormq.connection.marshall", "aio_pika")
_OURS: ContextVar[bool] = ContextVar("busline amqp connection", default=False)


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
