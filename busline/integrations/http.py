"""What is the same for every framework: how the bus lives with an application, what a failed call means to an HTTP
client, and how long a request may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil, inf
from typing import TypedDict

from busline.bus import Bus
from busline.errors import (
    BuslineError,
    CallTimeout,
    ConnectionLost,
    NoHandler,
    OutcomeUnknown,
    QueueFull,
    ReplyLost,
    Unavailable,
)
from busline.telemetry import log
from busline.worker import Worker


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the reason that a stranger may read; it names neither topic nor broker."""

    status: int
    detail: str


NOW_NOT = Answer(503, "this cannot be done at the moment; nothing was begun")
UNKNOWN = Answer(502, "the connection was lost meanwhile; it may have been done")
TOO_LATE = Answer(504, "there was no answer in time; it may still be done")

ANSWERS: dict[type[BuslineError], Answer] = {
    CallTimeout: TOO_LATE,
    NoHandler: NOW_NOT,
    Unavailable: NOW_NOT,
    ConnectionLost: NOW_NOT,
    QueueFull: NOW_NOT,
    ReplyLost: UNKNOWN,
    OutcomeUnknown: UNKNOWN,
}
"""By error. All others are faults of the program or its handlers, and the framework answers them with 500."""


class WorkerOptions(TypedDict, total=False):
    """How an application consumes within its own process; as the arguments of `Bus.worker`."""

    concurrency: int
    prefetch: int
    drain_timeout: float
    rate_share: float


@asynccontextmanager
async def hosted(bus: Bus, options: WorkerOptions | None) -> AsyncIterator[None]:
    """The bus is open, and with `options` also consumes, in the application's own process.

    Should the worker end before the application does, that is logged as critical, and its error is raised at the end.
    """
    if options is None:
        async with bus:
            yield
        return
    async with bus.worker(**options) as worker:
        watch = asyncio.create_task(_report_end(worker), name="busline watch")
        try:
            yield
        finally:
            watch.cancel()


async def _report_end(worker: Worker) -> None:
    try:
        await worker.wait()
    except BuslineError as error:
        log.critical("the worker in this application has ended: %s", error, extra={"event": "worker_ended"})


def answer_to(error: BuslineError, request: str, retry_after: float) -> tuple[Answer, dict[str, str]]:
    """The answer to an error of `ANSWERS`, with its headers. Logs the error, which only the operator should read."""
    answer = next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
    log.warning(
        "%s answered with %d: %s: %s",
        *(request, answer.status, type(error).__name__, error),
        extra={"event": "http_error", "status": answer.status},
    )
    return answer, {"Retry-After": str(ceil(retry_after))} if answer is NOW_NOT else {}


def time_left(timeout: float | None, header: str | None) -> float | None:
    """Seconds that a request may take: what it asks for in its header, at most `timeout`; None = no limit.

    Raises ValueError for a header that is not a positive number.
    """
    if header is None:
        return timeout
    asked = float(header)
    if not 0 < asked < inf:
        raise ValueError(f"{header!r} is not a positive number of seconds")
    return asked if timeout is None else min(asked, timeout)
