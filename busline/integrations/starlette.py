"""The bus in a Starlette application; in a FastAPI one through `busline.integrations.fastapi`, which is the same.

app = Starlette(routes=..., lifespan=bus.lifespan)
install(app, timeout=10)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Unpack

from busline.bus import Bus
from busline.errors import BuslineError, ConfigurationError, JobNotFound
from busline.integrations import sse
from busline.integrations.http import ANSWERS, WorkerOptions, answer_to, hosted, time_left
from busline.jobs import Job

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as missing:
    raise ConfigurationError("this needs Starlette or FastAPI: pip install 'busline[fastapi]'") from missing

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
"""What applications take as `lifespan=`."""


def get_bus(connection: HTTPConnection) -> Bus:
    """The bus of the running application, from a request or a websocket; in FastAPI `Depends(get_bus)`.

    Raises ConfigurationError if the application runs without a lifespan that has opened one.
    """
    bus = connection.scope.get("state", {}).get("bus")
    if not isinstance(bus, Bus):
        raise ConfigurationError(
            "this application has no open bus: give it lifespan=bus.lifespan, and serve it, or test it, with something "
            "that runs lifespans, as uvicorn and `with TestClient(app)` do"
        )
    return bus


def combine(*lifespans: Lifespan) -> Lifespan:
    """One lifespan of several: entered in order and left in reverse, with the states of all.

    Raises ConfigurationError, when the application starts, for two states with the same name.
    """

    @asynccontextmanager
    async def combined(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        state: dict[str, Any] = {}
        async with AsyncExitStack() as entered:
            for lifespan in lifespans:
                more = await entered.enter_async_context(lifespan(app)) or {}
                if twice := state.keys() & more.keys():
                    raise ConfigurationError(f"two lifespans have a state of the name {sorted(twice)[0]!r}")
                state |= more
            yield state

    return combined


def serving(bus: Bus, **options: Unpack[WorkerOptions]) -> Lifespan:
    """As `bus.lifespan`, and the application's own process handles messages, too: `lifespan=serving(bus)`.

    The options are those of `Bus.worker`. Should the worker end before the application does, that is logged as
    critical, and its error is raised when the application stops.
    """

    @asynccontextmanager
    async def served(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with hosted(bus, options):
            yield {"bus": bus}

    return served


def install(
    app: Starlette, *, timeout: float | None = None, timeout_header: str | None = None, retry_after: float = 1.0
) -> None:
    """Make the application answer failed calls as a gateway does, and bound the calls of each request.

    CallTimeout becomes 504; NoHandler, Unavailable, ConnectionLost and QueueFull, of which nothing was begun, 503 with
    `Retry-After` of `retry_after` seconds; ReplyLost and OutcomeUnknown 502. The errors themselves are logged.

    All calls of a request, and what they call in turn, end within `timeout` seconds, or sooner if the request says so
    in the header `timeout_header`, in seconds; a header that is not a number is answered with 400. What goes on after
    the response, as background tasks do, is not bounded. Call it before the application has started.
    """
    for error in ANSWERS:
        app.add_exception_handler(error, partial(_answer, retry_after=retry_after))
    if timeout is not None or timeout_header is not None:
        app.add_middleware(DeadlineMiddleware, timeout=timeout, header=timeout_header)


async def _answer(request: Request, error: Exception, *, retry_after: float) -> JSONResponse:
    assert isinstance(error, BuslineError), "only these are registered"
    answer, headers = answer_to(error, f"{request.method} {request.url.path}", retry_after)
    return JSONResponse({"detail": answer.detail}, answer.status, headers)


class DeadlineMiddleware:
    """Bounds the calls of each HTTP request, as `install` describes. Needs `bus.lifespan`."""

    def __init__(self, app: ASGIApp, *, timeout: float | None = None, header: str | None = None) -> None:
        self._app = app
        self._timeout = timeout
        self._header = header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            left = time_left(self._timeout, connection.headers.get(self._header) if self._header else None)
        except ValueError:
            refusal = JSONResponse({"detail": f"{self._header} must be a positive number of seconds"}, 400)
            await refusal(scope, receive, send)
            return
        if left is None:
            await self._app(scope, receive, send)
            return
        with get_bus(connection).within(left) as bound:

            async def send_on(message: Message) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    bound.lift()

            await self._app(scope, receive, send_on)


class JobEvents(Response):
    """Made by `job_events`."""

    def __init__(self, job: Job, lifetime: float | None) -> None:
        super().__init__(media_type=sse.CONTENT_TYPE)
        self._job = job
        self._lifetime = lifetime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        response: Response
        try:
            await self._job.info()
        except JobNotFound:
            response = JSONResponse({"detail": "there is no such job"}, 404)
        else:
            events = sse.stream(self._job, self._lifetime)
            response = StreamingResponse(events, headers=sse.HEADERS, media_type=sse.CONTENT_TYPE)
        await response(scope, receive, send)


def job_events(job: Job, *, lifetime: float | None = sse.LIFETIME) -> JobEvents:
    """A job's state and progress as server-sent events, to be returned by an endpoint: `return job_events(job)`.

    An event `job` tells how it is now, and comes again each time that it changes; an event `end` is the last and has
    the result or the error. A job that the store does not know is answered with 404.

    The stream ends after `lifetime` seconds, whereupon a browser connects again by itself and hears first how the job
    is then: so a server that is told to stop, and waits for its requests, waits no longer than that. With None it
    lasts as long as the job.
    """
    return JobEvents(job, lifetime)
