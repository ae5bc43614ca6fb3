"""The bus: where handlers are declared, and from where calls, jobs and events leave."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from anyio import CapacityLimiter

from busline.calls import Calls
from busline.clock import Clock, SystemClock
from busline.codec import encode
from busline.context import CURRENT
from busline.errors import (
    CallTimeout,
    ConfigurationError,
    MessageTooLarge,
    NoHandler,
    TransportClosed,
)
from busline.events import Events
from busline.message import Job, Message, ToQueue
from busline.outbox import Departure
from busline.registry import Plan
from busline.replies import result_of
from busline.retry import Retry
from busline.router import Router
from busline.routes import Routes, check_seconds, seconds_until
from busline.services import Services, Settings
from busline.telemetry import Stats, Telemetry, log
from busline.topics import Topic, check_topic
from busline.transports import from_url
from busline.transports.base import Transport
from busline.wheel import Wheel
from busline.wire import Envelope, new_id
from busline.worker import Worker

T = TypeVar("T")
Req = TypeVar("Req")
Rep = TypeVar("Rep")

DEFAULT_URL = "sqlite:///busline.db"
URL_VARIABLE = "BUSLINE_URL"


@dataclass(slots=True)
class _Session:
    """What exists while the bus is open."""

    transport: Transport
    calls: Calls
    events: Events
    users: int = 1
    """How often the bus has been entered; the last one to leave closes it."""


class Bus(Router):
    """An asyncio RPC and event bus over one transport.

    `url` names the transport (`sqlite:///file.db`, `memory://name`, …) or is one; without it `$BUSLINE_URL` is used,
    else `sqlite:///busline.db` in the current folder. `service` names this service and its queue; a bus that only
    calls, sends and publishes needs none. The constructor only stores: `async with bus:` connects, and
    `async with bus.worker():` also consumes.

    * `routes`: pattern → queue; the first match overrides who owns a topic, `"#"` is a fallback for unowned topics.
    * `call_timeout`: seconds that a call waits by default.
    * `retry`: policy of jobs and events without one of their own (default: 3 retries after 2, 4 and 8 s).
    * `max_body_bytes`: larger payloads are refused when sent and dead-lettered when received.
    * `max_deliveries`: starts after which a message that is never settled is dead-lettered without running.
    * `unknown_grace`: seconds for which a worker leaves a message of a topic it doesn't know to its siblings.
    * `max_clock_skew`: seconds by which the clocks of two machines may differ; nothing where all share one machine.
    """

    def __init__(
        self,
        url: str | Transport | None = None,
        *,
        service: str | None = None,
        routes: Mapping[str, str] | None = None,
        call_timeout: float = 30.0,
        retry: Retry | None = None,
        max_body_bytes: int = 1_048_576,
        max_deliveries: int = 20,
        unknown_grace: float = 10.0,
        max_clock_skew: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(retry=retry)
        self._url = url
        self._service = check_topic(service) if service is not None else None
        self._routes = Routes(routes)
        self._call_timeout = call_timeout
        self._settings = Settings(max_body_bytes, max_deliveries, unknown_grace, max_clock_skew)
        self._clock = clock or SystemClock()
        self._telemetry = Telemetry()
        self._instance = new_id()[:12]
        self._session: _Session | None = None

    @property
    def service(self) -> str | None:
        """The service's name, as given."""
        return self._service

    @property
    def stats(self) -> Stats:
        """Counters since this bus was made."""
        return self._telemetry.stats

    @property
    def calls_in_flight(self) -> int:
        """Calls that wait for their reply now; 0 outside `async with bus`."""
        return len(self._session.calls) if self._session is not None else 0

    @property
    def transport(self) -> Transport:
        """The open transport; raises TransportClosed outside `async with bus`."""
        return self._open_session.transport

    @property
    def url(self) -> str:
        """The URL that is, or would be, used; "" for a bus that was given a transport."""
        if isinstance(self._url, str):
            return self._url
        return "" if self._url is not None else os.environ.get(URL_VARIABLE) or DEFAULT_URL

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._session is not None:
            self._session.users += 1
            return self
        given = self._url
        transport = from_url(self.url) if given is None or isinstance(given, str) else given
        calls, events = Calls(transport, self._clock, self.stats), Events(transport, self._clock)
        session = _Session(transport, calls, events)
        self._session = session
        try:
            await transport.open()
        except BaseException:
            self._session = None
            await transport.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._open_session
        session.users -= 1
        if session.users == 0:
            self._session = None
            await session.calls.close()
            await session.events.aclose()
            await session.transport.aclose()

    @property
    def _open_session(self) -> _Session:
        if self._session is None:
            raise TransportClosed("the bus is not open: use it inside `async with bus:` or `async with bus.worker():`")
        return self._session

    def plan(self) -> Plan:
        """The queues this bus would serve. Raises ConfigurationError for what cannot be served."""
        return Plan(self._declarations, service=self._service, retry=self._retry, instance=self._instance)

    @asynccontextmanager
    async def worker(
        self,
        *,
        concurrency: int = 10,
        prefetch: int = 1,
        drain_timeout: float = 25.0,
        rate_share: float = 1.0,
        on_stuck: Callable[[str], None] | None = None,
        on_message: Callable[[], None] | None = None,
    ) -> AsyncIterator[Worker]:
        """Consume every queue of this bus, opening the bus if it is not open.

        `concurrency` messages at a time per queue. Leaving the block stops fetching, waits up to `drain_timeout`
        seconds for running handlers, cancels the rest and gives their messages back. `rate_share` is this process's
        share of every rate limit. `on_stuck` is told of a handler that cannot be ended; by default that is logged.
        `on_message` is called each time a message is taken, before it is handled; it must be quick and not raise.
        Raises ConfigurationError for whatever cannot be served, before anything is consumed.
        """
        if concurrency < 1 or prefetch < 1 or drain_timeout < 0:
            raise ConfigurationError("concurrency and prefetch are at least 1, drain_timeout is not negative")
        plan = self.plan()
        async with self:
            services = self._services(self._open_session, on_stuck, on_message)
            async with Worker(
                plan,
                services,
                concurrency=concurrency,
                prefetch=prefetch,
                drain_timeout=drain_timeout,
                rate_share=rate_share,
            ) as worker:
                yield worker

    def _services(
        self, session: _Session, on_stuck: Callable[[str], None] | None, on_message: Callable[[], None] | None
    ) -> Services:
        return Services(
            bus=self,
            transport=session.transport,
            clock=self._clock,
            errors=self._errors,
            telemetry=self._telemetry,
            events=session.events,
            settings=self._settings,
            alarms=Wheel(self._clock, lambda alarm: alarm()),
            threads=CapacityLimiter(1),
            notify=lambda delivery: None,
            on_stuck=on_stuck or _warn_stuck,
            on_message=on_message,
        )

    # -- verbs --------------------------------------------------------------------------------------------------

    @overload
    async def call(
        self,
        topic: Topic[Req, Rep],
        payload: Req,
        *,
        timeout: float | None = None,
        returns: None = None,
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Rep: ...

    @overload
    async def call(
        self,
        topic: str,
        payload: object = None,
        *,
        timeout: float | None = None,
        returns: type[T],
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> T: ...

    @overload
    async def call(
        self,
        topic: str,
        payload: object = None,
        *,
        timeout: float | None = None,
        returns: None = None,
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any: ...

    async def call(
        self,
        topic: str | Topic[Any, Any],
        payload: object = None,
        *,
        timeout: float | None = None,
        returns: Any = None,
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Ask the topic's owner and wait for the answer, at most `timeout` seconds; never longer.

        Inside a handler the time is also bounded by what is left of the message's own deadline. The result is plain
        JSON data, or of the type `returns` (or the Topic's reply type), and is None only if the handler returned it.

        `idempotency_key` says that handling the call twice does no harm: if the way back is lost, it is asked again,
        with the same id and key, until its deadline. The handler finds the key in its context.

        Raises NoHandler at once for a topic that nobody ever declared; CallTimeout at the deadline, whose `state`
        tells whether a worker had started; RemoteError, or the registered class itself, as soon as the handler
        raised; MessageTooLarge, CodecError for a payload that cannot be sent or a result of another type;
        ConnectionLost, ReplyLost when the broker is away.
        """
        if isinstance(topic, Topic):
            returns = returns or topic.reply
            topic = topic.name
        session = self._open_session
        body = self._encode(payload)
        now = self._clock.time()
        timeout, deadline = self._deadline(topic, timeout, now)
        check_topic(topic)
        envelope = self._envelope(now)
        envelope.deadline, envelope.key = deadline, idempotency_key
        request = Message(topic, body, envelope.encode(), headers or {}, priority=priority or 0, ttl=deadline - now)
        session.events.emit("event.sent", topic, envelope)
        reply = await self._ask(request, queue, timeout, deadline, again=idempotency_key is not None)
        return result_of(reply, topic, returns, self._errors, session.transport.where)

    async def send(
        self,
        topic: str | Topic[Req, Any],
        payload: object = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        eta: datetime | None = None,
        ttl: float | None = None,
    ) -> Job:
        """Hand a job to the topic's owner; returns once the broker has it durably.

        It may be delivered after `delay` seconds, or at `eta` (with a time zone); it must start within `ttl` seconds
        from now or becomes a dead letter. Higher `priority` goes first. Raises NoHandler for a topic that nobody ever
        declared, QueueNotFound for a `queue` that does not exist, MessageTooLarge, CodecError, TransportError.
        """
        departure = self.prepare_send(
            topic,
            payload,
            queue=queue,
            priority=priority,
            headers=headers,
            delay=delay,
            eta=eta,
            ttl=ttl,
        )
        await departure.leave(self._open_session.transport)
        return departure.job

    def prepare_send(
        self,
        topic: str | Topic[Any, Any],
        payload: object = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        eta: datetime | None = None,
        ttl: float | None = None,
    ) -> Departure:
        """What `send` would send, validated and encoded, for an outbox. Raises MessageTooLarge, CodecError,
        ConfigurationError."""
        name = topic.name if isinstance(topic, Topic) else check_topic(topic)
        now = self._clock.time()
        envelope = self._envelope(now)
        wait = seconds_until(delay, eta, now)
        if wait:
            envelope.due_at = now + wait
        message = self._message(name, payload, envelope, headers, ttl, now)
        message.priority = priority or 0
        message.delay = wait
        self._open_session.events.emit("event.sent", name, envelope)
        return Departure(message, self._routes.to(name, queue), Job(envelope.id, name), self._routes.fallback)

    async def publish(
        self,
        topic: str,
        payload: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        ttl: float | None = None,
    ) -> None:
        """Give every subscriber whose pattern matches `topic` a copy; none is fine. Returns once the broker has them
        durably. `ttl` and errors as for `send`."""
        departure = self.prepare_publish(topic, payload, headers=headers, ttl=ttl)
        await departure.leave(self._open_session.transport)

    def prepare_publish(
        self,
        topic: str,
        payload: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        ttl: float | None = None,
    ) -> Departure:
        """What `publish` would publish, for an outbox. Raises as `prepare_send`."""
        now = self._clock.time()
        envelope = self._envelope(now)
        message = self._message(check_topic(topic), payload, envelope, headers, ttl, now)
        self._open_session.events.emit("event.sent", topic, envelope)
        return Departure(message, None, Job(envelope.id, topic))

    # -- behind the verbs ---------------------------------------------------------------------------------------

    def _encode(self, payload: object) -> bytes:
        body = encode(payload)
        if len(body) > self._settings.max_body_bytes:
            raise MessageTooLarge(len(body), self._settings.max_body_bytes)
        return body

    def _envelope(self, now: float) -> Envelope:
        """A new message's; within a handler it belongs to the conversation of the message that is handled."""
        cause = CURRENT.get()
        if cause is None:
            return Envelope(new_id(), now)
        return Envelope(new_id(), now, correlation_id=cause.correlation_id, causation_id=cause.id)

    def _message(
        self,
        topic: str,
        payload: object,
        envelope: Envelope,
        headers: Mapping[str, str] | None,
        ttl: float | None,
        now: float,
    ) -> Message:
        if ttl is not None:
            envelope.expires_at = now + check_seconds("ttl", ttl)
        return Message(topic, self._encode(payload), envelope.encode(), headers or {}, ttl=ttl)

    def _deadline(self, topic: str, timeout: float | None, now: float) -> tuple[float, float]:
        timeout = check_seconds("timeout", self._call_timeout if timeout is None else timeout)
        cause = CURRENT.get()
        if cause is not None and cause.deadline is not None:
            timeout = min(timeout, cause.deadline - now)
            if timeout <= 0:
                raise CallTimeout(topic, 0.0, "queued", self._open_session.transport.where)
        return timeout, now + timeout

    async def _ask(
        self, request: Message, queue: str | None, timeout: float, deadline: float, *, again: bool
    ) -> Message:
        calls = self._open_session.calls
        ask = calls.ask_again if again else calls.ask
        to = self._routes.to(request.topic, queue)
        fallback = self._routes.fallback
        try:
            return await ask(to, request, timeout=timeout, deadline=deadline)
        except NoHandler:
            if isinstance(to, ToQueue) or fallback is None:
                raise
        return await ask(ToQueue(fallback), request, timeout=timeout, deadline=deadline)


def _warn_stuck(what: str) -> None:
    log.critical("%s; this process should be replaced", what, extra={"event": "stuck"})
