"""The verbs of a bus: `call`, `send`, `publish`, from payload to departure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from busline.calls import Calls
from busline.clock import Clock
from busline.codec import encode
from busline.context import CURRENT
from busline.errors import CallTimeout, MessageTooLarge, NoHandler, TransportClosed
from busline.events import Events
from busline.jobs import Job, JobInfo, Jobs, tracking_of
from busline.message import Destination, Message, ToQueue
from busline.observing import Kind
from busline.outbox import Departure
from busline.references import References
from busline.replies import result_of
from busline.retry import Retry
from busline.router import Router
from busline.routes import Routes, check_seconds, seconds_until
from busline.services import Settings
from busline.signatures import (
    AsyncContextFirst,
    AsyncHandler,
    AsyncNothing,
    AsyncPayload,
    CallOptions,
    Handler,
    PlainContextFirst,
    PlainHandler,
    PlainNothing,
    PlainPayload,
    Rep,
    Req,
    SendOptions,
)
from busline.storing import StoreDoor
from busline.structs import struct
from busline.telemetry import Telemetry
from busline.topics import Topic, check_topic
from busline.transports.base import Transport
from busline.wire import Envelope, new_id
from busline.within import BOUND, Bound, bounded

if TYPE_CHECKING:
    from busline.clients import Client

T = TypeVar("T")
S = TypeVar("S")


Asking = Callable[..., Awaitable[Message]]
"""`Calls.ask`, or something around it."""


@struct
class Session:
    """What exists while the bus is open."""

    transport: Transport
    calls: Calls
    events: Events
    door: StoreDoor | None
    jobs: Jobs
    users: int = 1
    """How often the bus has been entered; the last one to leave closes it."""


class Verbs(Router):
    """What a bus can say, once it is open."""

    def __init__(
        self,
        *,
        retry: Retry | None,
        routes: Mapping[str, str] | None,
        call_timeout: float,
        settings: Settings,
        clock: Clock,
    ) -> None:
        super().__init__(retry=retry)
        self._routes = Routes(routes)
        self._call_timeout = check_seconds("call_timeout", call_timeout)
        self._settings = settings
        self._clock = clock
        self._session: Session | None = None
        self._telemetry = Telemetry()
        self._references = References(self._declarations)

    @property
    def _open_session(self) -> Session:
        if self._session is None:
            raise TransportClosed("the bus is not open: use it inside `async with bus:` or `async with bus.worker():`")
        return self._session

    @overload
    async def call(self, topic: Topic[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    async def call(self, topic: AsyncNothing[Rep], payload: None = None, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    async def call(self, topic: AsyncContextFirst[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    async def call(self, topic: AsyncPayload[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    async def call(
        self, topic: AsyncHandler[Rep], payload: Mapping[str, object], **options: Unpack[CallOptions]
    ) -> Rep: ...
    @overload
    async def call(self, topic: PlainNothing[Rep], payload: None = None, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    async def call(self, topic: PlainContextFirst[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    async def call(self, topic: PlainPayload[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    async def call(
        self, topic: PlainHandler[Rep], payload: Mapping[str, object], **options: Unpack[CallOptions]
    ) -> Rep: ...
    @overload
    async def call(
        self, topic: str, payload: object = None, *, returns: type[T], **options: Unpack[CallOptions]
    ) -> T: ...
    @overload
    async def call(self, topic: str, payload: object = None, **options: Unpack[CallOptions]) -> Any: ...
    async def call(
        self,
        topic: str | Topic[Any, Any] | Handler,
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

        `topic` is its name, a Topic, or the function that handles it on this bus, whose annotations then say what it
        takes and returns.

        Inside a handler the time is also bounded by what is left of the message's own deadline, and inside
        `bus.within(...)` by what is left of that. The result is plain JSON data, or of the type `returns` (or the
        Topic's or the function's), and is None only if the handler returned it.

        `idempotency_key` says that handling the call twice does no harm: if the way back is lost, it is asked again,
        with the same id and key, until its deadline. The handler finds the key in its context.

        Raises NoHandler at once for a topic that nobody ever declared; CallTimeout at the deadline, whose `state`
        tells whether a worker had started; RemoteError, or the registered class itself, as soon as the handler
        raised; MessageTooLarge, CodecError for a payload that cannot be sent or a result of another type;
        ConnectionLost, ReplyLost when the broker is away.
        """
        if not isinstance(topic, str):
            topic, declared = self._refer(topic, payload)
            returns = declared if returns is None else returns
        session = self._session or self._open_session
        body = self._encode(payload)
        now = self._clock.time()
        timeout, deadline = self._deadline(topic, timeout, now)
        check_topic(topic)
        envelope = self._envelope(now, None, deadline)
        envelope.key = idempotency_key
        request = Message(topic, body, envelope.encode(), headers or {}, None, None, priority or 0, 0.0, timeout)
        if session.events.sent_heard(topic, now):
            session.events.emit("event.sent", topic, envelope)
        reply = await self._ask(session.calls, request, envelope, queue, timeout, deadline)
        return result_of(reply, topic, returns, self._errors, session.transport)

    @overload
    async def send(self, topic: Topic[Req, Any], payload: Req, **options: Unpack[SendOptions]) -> Job: ...
    @overload
    async def send(self, topic: PlainNothing[object], payload: None = None, **options: Unpack[SendOptions]) -> Job: ...
    @overload
    async def send(
        self, topic: PlainContextFirst[Req, object], payload: Req, **options: Unpack[SendOptions]
    ) -> Job: ...
    @overload
    async def send(self, topic: PlainPayload[Req, object], payload: Req, **options: Unpack[SendOptions]) -> Job: ...
    @overload
    async def send(
        self, topic: PlainHandler[object], payload: Mapping[str, object], **options: Unpack[SendOptions]
    ) -> Job: ...
    @overload
    async def send(self, topic: str, payload: object = None, **options: Unpack[SendOptions]) -> Job: ...
    async def send(
        self,
        topic: str | Topic[Any, Any] | Handler,
        payload: object = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        eta: datetime | None = None,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        track: bool = False,
        unique_for: float | None = None,
        unique_key: str | None = None,
    ) -> Job:
        """Hand a job to the topic's owner; returns once the broker has it durably. `topic` as for `call`.

        It may be delivered after `delay` seconds, or at `eta` (with a time zone); it must start within `ttl` seconds
        from now or becomes a dead letter. Higher `priority` goes first. Raises NoHandler for a topic that nobody ever
        declared, QueueNotFound for a `queue` that does not exist, MessageTooLarge, CodecError, TransportError.

        With `track=True` the store knows the job, so that its status, progress and result can be asked for. With an
        `idempotency_key` it does, too, and its effect happens once for all messages to the topic with this key. With
        `unique_for` seconds, a job of the same topic and `unique_key` (by default: the same payload) that was sent
        within that time is returned instead, and nothing is sent. Raises ConfigurationError where there is no store,
        StoreUnavailable.
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
            idempotency_key=idempotency_key,
            track=track,
            unique_for=unique_for,
            unique_key=unique_key,
        )
        await departure.leave(self._open_session.transport)
        return departure.job

    def job(self, id: str) -> Job:
        """The job of this id, as `send` returned it, here or elsewhere; whether it is known, its methods tell."""
        return Job(id, "", self._open_session.jobs)

    async def jobs(self, limit: int = 50, *, topic: str = "") -> list[JobInfo]:
        """Up to `limit` jobs that the store knows, the latest sent first. Raises ConfigurationError where there is no
        store, StoreUnavailable."""
        return await self._open_session.jobs.list(limit, topic=topic)

    def prepare_send(
        self,
        topic: str | Topic[Any, Any] | Handler,
        payload: object = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        eta: datetime | None = None,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        track: bool = False,
        unique_for: float | None = None,
        unique_key: str | None = None,
        id: str | None = None,
    ) -> Departure:
        """What `send` would send, validated and encoded, for an outbox; `id` is the message's, by default a new one.
        Raises MessageTooLarge, CodecError, ConfigurationError."""
        name = check_topic(topic if isinstance(topic, str) else self._refer(topic, payload)[0])
        now = self._clock.time()
        envelope = self._envelope(now, id)
        tracks = track or unique_for is not None
        envelope.key = idempotency_key if idempotency_key is not None else "" if tracks else None
        jobs = self._open_session.jobs
        wait = seconds_until(delay, eta, now)
        if wait:
            envelope.due_at = now + wait
        message = self._message(name, payload, envelope, headers, ttl, now)
        message.priority = priority or 0
        message.delay = wait
        self._open_session.events.emit("event.sent", name, envelope)
        departure = Departure(
            message, self._routes.to(name, queue), self._job_of(envelope, name), self._routes.fallback
        )
        if envelope.key is not None and jobs.tracks(tracks):
            departure.tracking = tracking_of(message, unique_for, unique_key)
        return self._observed("job", departure, envelope, queue)

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
        id: str | None = None,
    ) -> Departure:
        """What `publish` would publish, for an outbox. Raises as `prepare_send`."""
        now = self._clock.time()
        envelope = self._envelope(now, id)
        message = self._message(check_topic(topic), payload, envelope, headers, ttl, now)
        self._open_session.events.emit("event.sent", topic, envelope)
        return self._observed("event", Departure(message, None, self._job_of(envelope, topic)), envelope)

    @overload
    def client(self, service: Router | ModuleType, **options: Unpack[CallOptions]) -> Client: ...
    @overload
    def client(self, service: Callable[..., S], *, prefix: str | None = None, **options: Unpack[CallOptions]) -> S: ...
    def client(self, service: object, *, prefix: str | None = None, **options: Unpack[CallOptions]) -> Any:
        """A client of a whole service, described by a class, best a Protocol: `await client.create(order)` calls
        `{prefix}create` and returns what the method says.

        `prefix` is by default the class's name in small letters without "Service" at its end: `orders.` for
        OrdersService. One parameter is the payload; several are a JSON object by name. A method that returns a Job
        sends instead of calling.

        Or a client of handlers of this bus that stand in a class as `create = remote(create)`, in a router or in a
        module: a method calls the function of its name, whose Context and dependencies are not the caller's to give.

        The options are those of `call`, for all calls. Everything is checked here: raises ConfigurationError for a
        method that is not async, or whose annotations are missing or no JSON, and for a function that handles none or
        several topics of this bus.
        """
        from busline.clients import client_of

        return client_of(self, self._references, service, prefix, options)

    def within(self, timeout: float) -> AbstractContextManager[Bound]:
        """`with bus.within(2.0):` bounds all calls of the block together: each waits at most for what is left of
        `timeout` seconds. Blocks may be nested; the earliest end counts. Tasks that are started in the block are
        bounded until it has ended. Raises ConfigurationError for what is not a positive number of seconds."""
        return bounded(self._clock.time() + check_seconds("timeout", timeout))

    # -- behind the verbs ---------------------------------------------------------------------------------------

    def _refer(self, topic: Topic[Any, Any] | Handler, payload: object) -> tuple[str, Any]:
        """The name of a topic, and what its handler returns."""
        if isinstance(topic, Topic):
            return topic.name, topic.reply
        reference = self._references.find(topic)
        reference.check(payload)
        return reference.topic, reference.returns

    def _encode(self, payload: object) -> bytes:
        body = encode(payload)
        if len(body) > self._settings.max_body_bytes:
            raise MessageTooLarge(len(body), self._settings.max_body_bytes)
        return body

    def _job_of(self, envelope: Envelope, topic: str) -> Job:
        return Job(envelope.id, topic, self._open_session.jobs)

    def _envelope(self, now: float, id: str | None = None, deadline: float | None = None) -> Envelope:
        """A new message's; within a handler it belongs to the conversation of the message that is handled."""
        envelope, cause = Envelope(id or new_id(), now, 1, deadline), CURRENT.get()
        if cause is not None:
            envelope.correlation_id, envelope.causation_id = cause.correlation_id, cause.id
        return envelope

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
        timeout = self._call_timeout if timeout is None else check_seconds("timeout", timeout)
        cause, bound = CURRENT.get(), BOUND.get()
        if cause is not None and cause.deadline is not None:
            timeout = min(timeout, cause.deadline - now)
        if bound is not None:
            timeout = min(timeout, bound.until - now)
        if timeout <= 0:
            raise CallTimeout(topic, 0.0, "queued", self._open_session.transport.where)
        return timeout, now + timeout

    def _observed(self, kind: Kind, departure: Departure, envelope: Envelope, queue: str | None = None) -> Departure:
        observer = self._telemetry.observer
        if observer is not None:
            departure.on_left = partial(observer.sent, observer.sending(kind, departure.message, envelope, queue))
        return departure

    def _ask(
        self,
        calls: Calls,
        request: Message,
        envelope: Envelope,
        queue: str | None,
        timeout: float,
        deadline: float,
    ) -> Awaitable[Message]:
        ask: Asking = calls.ask if envelope.key is None else calls.ask_again
        to, fallback = self._routes.to(request.topic, queue), self._routes.fallback
        if fallback is not None and type(to) is not ToQueue:
            ask = partial(self._ask_owner, ask, fallback)
        if self._telemetry.observer is not None:
            ask = partial(self._ask_observed, ask, envelope, queue)
        return ask(to, request, timeout, deadline)

    async def _ask_observed(
        self,
        ask: Asking,
        envelope: Envelope,
        queue: str | None,
        to: Destination,
        request: Message,
        timeout: float,
        deadline: float,
    ) -> Message:
        observer = self._telemetry.observer
        assert observer is not None, "the caller has looked"
        began = observer.calling(request, envelope, queue)
        try:
            reply = await ask(to, request, timeout, deadline)
        except BaseException as error:
            observer.called(began, None, error)
            raise
        observer.called(began, reply, None)
        return reply

    async def _ask_owner(
        self,
        ask: Asking,
        fallback: str,
        to: Destination,
        request: Message,
        timeout: float,
        deadline: float,
    ) -> Message:
        """As `ask`, or where nobody owns the topic, of the queue of the fallback."""
        try:
            return await ask(to, request, timeout, deadline)
        except NoHandler:
            return await ask(ToQueue(fallback), request, timeout, deadline)
