"""The bus in an aiohttp application.

app = web.Application()
bus.setup(app, timeout=10)

async def create(request: web.Request) -> web.Response:
    order = await get_bus(request).call("orders.create", await request.json())
    return web.json_response(order)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from anyio import CancelScope

from busline.bus import Bus
from busline.errors import BuslineError, ConfigurationError, JobNotFound
from busline.integrations import sse
from busline.integrations.http import ANSWERS, WorkerOptions, answer_to, hosted, time_left
from busline.jobs import Job

try:
    from aiohttp import web
except ImportError as missing:
    raise ConfigurationError("this needs aiohttp: pip install 'busline[aiohttp]'") from missing

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

__all__ = ["BUS", "WorkerOptions", "get_bus", "job_events", "setup"]

BUS = web.AppKey("bus", Bus)
"""Where the application has its bus."""
_STREAMS: web.AppKey[set[CancelScope]] = web.AppKey("busline_streams", set)
"""Of what streams events at the moment."""


class _Progress:
    """Of the request that runs: was the head of its response sent?"""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        self.begun = False


_PROGRESS: ContextVar[_Progress] = ContextVar("busline_request")
"""A variable, as keys of requests are strings in older versions of aiohttp and something else in newer ones."""


def get_bus(request: web.Request) -> Bus:
    """The bus of the application that the request came to, also from a sub-application of it.

    Raises ConfigurationError for an application that has none.
    """
    bus = request.config_dict.get(BUS)
    if bus is None:
        raise ConfigurationError("this application has no bus: call bus.setup(app) before it is started")
    return bus


def setup(
    bus: Bus,
    app: web.Application,
    *,
    timeout: float | None = None,
    timeout_header: str | None = None,
    retry_after: float = 1.0,
    worker: WorkerOptions | None = None,
) -> None:
    """The same as `bus.setup(app, ...)`: the bus is open while the application runs.

    With `worker={}`, or with options of `Bus.worker` in it, the application's own process handles messages, too.

    CallTimeout is answered with 504; NoHandler, Unavailable, ConnectionLost and QueueFull, of which nothing was begun,
    with 503 and `Retry-After` of `retry_after` seconds; ReplyLost and OutcomeUnknown with 502. The errors are logged.

    All calls of a request, and what they call in turn, end within `timeout` seconds, or sooner if the request says so
    in the header `timeout_header`, in seconds; a header that is not a number is answered with 400.
    Raises ConfigurationError if the application has a bus already.
    """
    if BUS in app:
        raise ConfigurationError("this application has a bus already; open another one by a cleanup context of yours")
    app[BUS], app[_STREAMS] = bus, set()

    async def context(app: web.Application) -> AsyncIterator[None]:
        async with hosted(bus, worker):
            yield

    app.cleanup_ctx.append(context)
    app.on_shutdown.append(_end_streams)
    app.on_response_prepare.append(_note_begun)
    app.middlewares.append(_middleware(bus, timeout, timeout_header, retry_after))


async def job_events(request: web.Request, job: Job, *, lifetime: float | None = None) -> web.StreamResponse:
    """A job's state and progress as server-sent events: `return await job_events(request, job)`.

    An event `job` tells how it is now, and comes again each time that it changes; an event `end` is the last and has
    the result or the error. A job that the store does not know is answered with 404. The stream lasts as long as the
    job, at most `lifetime` seconds, and ends when the application is told to stop; a browser then connects again by
    itself and hears first how the job is then. Raises ConfigurationError without `bus.setup(app)`.
    """
    get_bus(request)
    streams = request.config_dict[_STREAMS]
    try:
        await job.info()
    except JobNotFound:
        return web.json_response({"detail": "there is no such job"}, status=404)
    response = web.StreamResponse(headers={**sse.HEADERS, "Content-Type": sse.CONTENT_TYPE})
    await response.prepare(request)
    scope = CancelScope()
    streams.add(scope)
    try:
        with scope:
            async for event in sse.stream(job, lifetime):
                await response.write(event)
        await response.write_eof()
    except ConnectionResetError:
        pass  # Whoever listened has left, which is how most streams end.
    finally:
        streams.discard(scope)
    return response


async def _end_streams(app: web.Application) -> None:
    streams = app[_STREAMS]
    for scope in list(streams):
        scope.cancel()


async def _note_begun(request: web.Request, response: web.StreamResponse) -> None:
    if (progress := _PROGRESS.get(None)) is not None:
        progress.begun = True


def _middleware(bus: Bus, timeout: float | None, header: str | None, retry_after: float) -> Middleware:
    @web.middleware
    async def busline(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            left = time_left(timeout, request.headers.get(header) if header else None)
        except ValueError:
            return web.json_response({"detail": f"{header} must be a positive number of seconds"}, status=400)
        progress = _Progress()
        _PROGRESS.set(progress)
        try:
            if left is None:
                return await handler(request)
            with bus.within(left):
                return await handler(request)
        except tuple(ANSWERS) as error:
            if progress.begun:
                raise  # It is too late for another status: aiohttp logs it and cuts the connection.
            return _answer(request, error, retry_after)

    return busline


def _answer(request: web.Request, error: BuslineError, retry_after: float) -> web.Response:
    answer, headers = answer_to(error, f"{request.method} {request.path}", retry_after)
    return web.json_response({"detail": answer.detail}, status=answer.status, headers=headers)
