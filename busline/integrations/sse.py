"""A job's life as server-sent events, the same for every framework.

retry: 1000                          for the browser: connect again a second after the stream has ended
event: job                           the job as it is now, and each time that it changes
data: {"id": …, "state": "STARTED", "attempts": 1, "progress": {"current": 500, "total": 10000, "note": "rows"}}

event: end                           the last, in one of SUCCESS, FAILURE and CANCELLED
data: {"id": …, "state": "SUCCESS", …, "result": …}        or "error": {"type": …, "message": …}
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from busline.codec import decode, encode
from busline.jobs import Job, JobInfo

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""The second keeps nginx from collecting the events before it passes them on."""
CONTENT_TYPE = "text/event-stream"
BEGINNING = b"retry: 1000\n\n"
ALIVE = b": still here\n\n"
PERIOD = 15.0
"""Seconds of silence after which a comment is sent, for proxies that cut what is silent."""
LIFETIME = 30.0
"""Seconds after which a stream ends and the browser connects again."""


def as_data(info: JobInfo) -> dict[str, Any]:
    """What a visitor sees of a job, as plain data."""
    progress = info.progress
    data: dict[str, Any] = {
        "id": info.id,
        "topic": info.topic,
        "state": info.state,
        "attempts": info.attempts,
        "progress": None
        if progress is None
        else {"current": progress.current, "total": progress.total, "note": progress.note},
    }
    if info.state == "SUCCESS":
        data["result"] = decode(info.result)
    elif info.state == "FAILURE":
        error = decode(info.error)
        data["error"] = {name: error.get(name) for name in ("type", "message")}
    return data


def event_of(info: JobInfo) -> bytes:
    """One event. JSON has no line breaks of its own, so its data is one line."""
    return b"event: %b\ndata: %b\n\n" % (b"end" if info.ended else b"job", encode(as_data(info)))


async def stream(job: Job, lifetime: float | None) -> AsyncIterator[bytes]:
    """The events of `job` until it has ended, or for `lifetime` seconds. Raises what `Job.watch` raises."""
    now = asyncio.get_running_loop().time
    ends_at = None if lifetime is None else now() + lifetime
    watching = job.watch()
    coming: asyncio.Future[JobInfo | None] | None = None
    yield BEGINNING
    try:
        while True:
            coming = coming or asyncio.ensure_future(_next(watching))
            left = PERIOD if ends_at is None else min(PERIOD, ends_at - now())
            if left <= 0:
                return
            await asyncio.wait({coming}, timeout=left)
            if not coming.done():
                yield ALIVE
                continue
            info, coming = coming.result(), None
            if info is None:
                return
            yield event_of(info)
    finally:
        if coming is not None:
            coming.cancel()


async def _next(watching: AsyncIterator[JobInfo]) -> JobInfo | None:
    return await anext(watching, None)
