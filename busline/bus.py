"""The bus: where handlers are declared, and from where calls, jobs and events leave.

What only a worker, an operator or a program without await needs is imported when they first ask for it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from anyio import CapacityLimiter

from busline.calls import Calls
from busline.clock import Clock, SystemClock
from busline.errors import ConfigurationError
from busline.events import Events
from busline.jobs import Jobs
from busline.lifespan import lasting
from busline.observing import Observer
from busline.overrides import Overrides
from busline.registry import Declaration, Plan
from busline.replies import error_of
from busline.retry import Retry
from busline.routes import Routes, check_seconds
from busline.services import Services, Settings
from busline.stores.base import Store
from busline.storing import StoreDoor, door_to
from busline.telemetry import Stats, log
from busline.topics import check_topic
from busline.transports import from_url
from busline.transports.base import Transport
from busline.verbs import Session, Verbs
from busline.wheel import Wheel
from busline.wire import new_id

if TYPE_CHECKING:
    from busline.control import Control
    from busline.operated import Post
    from busline.sync import SyncBus
    from busline.work import Work
    from busline.worker import Worker

DEFAULT_URL = "sqlite:///busline.db"
URL_VARIABLE = "BUSLINE_URL"


class Bus(Verbs):
    """An asyncio RPC and event bus over one transport.

    `url` names the transport (`sqlite:///file.db`, `memory://name`, …) or is one; without it `$BUSLINE_URL` is used,
    else `sqlite:///busline.db` in the current folder. `service` names this service and its queue; a bus that only
    calls, sends and publishes needs none. The constructor only stores: `async with bus:` connects, and
    `async with bus.worker():` also consumes.

    * `store`: URL of the store for idempotency keys and jobs (`redis://localhost/0`, `postgresql://…`, `sqlite:///…`,
      …), or one. Without it `$BUSLINE_STORE` is used, else the transport's own, which sqlite and memory have. It is
      opened when it is first needed.
    * `routes`: pattern → queue; the first match overrides who owns a topic, `"#"` is a fallback for unowned topics.
    * `call_timeout`: seconds that a call waits by default.
    * `retry`: policy of jobs and events without one of their own (default: 3 retries after 2, 4 and 8 s).
    * `max_body_bytes`: larger payloads are refused when sent and dead-lettered when received.
    * `max_deliveries`: starts after which a message that is never settled is dead-lettered without running.
    * `unknown_grace`: seconds for which a worker leaves a message of a topic it doesn't know to its siblings.
    * `max_clock_skew`: seconds by which the clocks of two machines may differ; nothing where all share one machine.
    * `control`: can its workers be asked and directed with `bus.control()`? True: yes, or they don't start; False: no;
      None: those that `busline worker` starts, where the transport can, or there is a store; on SQS with `--control`.
    * `result_ttl`: seconds for which the result of a job is kept that has no idempotency key.
    """

    def __init__(
        self,
        url: str | Transport | None = None,
        *,
        service: str | None = None,
        store: str | Store | None = None,
        routes: Mapping[str, str] | None = None,
        call_timeout: float = 30.0,
        retry: Retry | None = None,
        max_body_bytes: int = 1_048_576,
        max_deliveries: int = 20,
        unknown_grace: float = 10.0,
        max_clock_skew: float = 5.0,
        control: bool | None = None,
        result_ttl: float = 3600.0,
        clock: Clock | None = None,
    ) -> None:
        check_seconds("result_ttl", result_ttl)
        settings = Settings(max_body_bytes, max_deliveries, unknown_grace, max_clock_skew, result_ttl)
        super().__init__(
            retry=retry, routes=routes, call_timeout=call_timeout, settings=settings, clock=clock or SystemClock()
        )
        self._url = url
        self._given_store: str | Store | Literal[False] | None = store
        self._door: StoreDoor | None = None  # kept while the bus is closed: what is in memory outlives its sessions
        self._service = check_topic(service) if service is not None else None
        self._workers: list[Worker] = []
        self._overrides = Overrides()
        self._before: Callable[[Work], None] | None = None
        self._instance = new_id()[:12]
        self._control = control

    @property
    def service(self) -> str | None:
        """The service's name, as given."""
        return self._service

    @property
    def stats(self) -> Stats:
        """Counters since this bus was made."""
        return self._telemetry.stats

    def instrument(self, *observers: Observer) -> None:
        """Tell these of each message from now on: metrics, traces (see `busline.integrations`), or your own. Each is
        added once; there is no way to take one away."""
        for observer in observers:
            if observer not in self._telemetry.observers:
                self._telemetry.add(observer)
                observer.instrumented(self)

    @property
    def observers(self) -> Sequence[Observer]:
        """Those that it was instrumented with."""
        return self._telemetry.observers

    @property
    def workers(self) -> Sequence[Worker]:
        """The workers of this bus that are entered now."""
        return self._workers

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
        calls, events = Calls(transport, self._clock, self._telemetry), Events(transport, self._clock)
        door = self._door = door_to(self._given_store, transport)
        jobs = Jobs(door, transport, partial(error_of, errors=self._errors, where=transport.where), self._clock)
        session = Session(transport, calls, events, door, jobs)
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
            if session.door is not None:
                await session.door.aclose()
            await session.transport.aclose()

    @contextmanager
    def override(self, replacements: Mapping[Callable[..., Any], Callable[..., Any]]) -> Iterator[None]:
        """For tests: while this is entered, handlers that depend on a factory get what its replacement makes. What is
        made once for a worker is replaced in workers that start within."""
        with self._overrides.replaced(replacements):
            yield

    def store_door(self) -> StoreDoor | None:
        """A door of its own to the store that the bus would use; None if it has none. Raises ConfigurationError."""
        given = self._url
        return door_to(self._given_store, from_url(self.url) if given is None or isinstance(given, str) else given)

    @property
    def declarations(self) -> Sequence[Declaration]:
        """Everything that was declared, that of included routers too."""
        return tuple(self._declarations)

    @property
    def routes(self) -> Routes:
        """What overrides who owns a topic."""
        return self._routes

    @property
    def settings(self) -> Settings:
        """Its limits, as given."""
        return self._settings

    @property
    def clock(self) -> Clock:
        """By which it goes."""
        return self._clock

    def plan(self) -> Plan:
        """The queues this bus would serve. Raises ConfigurationError for what cannot be served."""
        return self.plan_of(self._declarations)

    def plan_of(self, declarations: Iterable[Declaration]) -> Plan:
        """The same of some declarations only."""
        return Plan(declarations, service=self._service, retry=self._retry, instance=self._instance)

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Control]:
        """Ask and direct the worker processes of this bus, opening it if it is not open. Raises ConfigurationError
        where the transport cannot reach several processes with one message and there is no store."""
        from busline.control import Control

        async with self, Control(self.transport, self._clock, self._open_session.door) as control:
            yield control

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
        queues: Collection[str] | None = None,
        name: str | None = None,
        control: bool | Literal["offered", "heeding"] | None = None,
    ) -> AsyncIterator[Worker]:
        """Consume every queue of this bus, opening the bus if it is not open.

        `concurrency` messages at a time per queue. Leaving the block stops fetching, waits up to `drain_timeout`
        seconds for running handlers, cancels the rest and gives their messages back. `rate_share` is this process's
        share of every rate limit. `on_stuck` is told of a handler that cannot be ended; by default that is logged.
        `on_message` is called each time a message is taken, before it is handled; it must be quick and not raise.
        `queues` serves these alone, with `*` for anything. `name` is what operators call this worker, by default
        `{service}@{host}`. `control`, if the bus leaves it open: can they ask it? "heeding": it keeps to pauses only.
        Raises ConfigurationError for whatever cannot be served, before anything is consumed.
        """
        if concurrency < 1 or prefetch < 1 or drain_timeout < 0:
            raise ConfigurationError("concurrency and prefetch are at least 1, drain_timeout is not negative")
        from busline.worker import Worker

        plan = self.plan() if queues is None else self.plan().only(queues)
        async with self:
            services = await self._services_with_claims(plan, on_stuck, on_message)
            async with Worker(
                plan,
                services,
                concurrency=concurrency,
                prefetch=prefetch,
                drain_timeout=drain_timeout,
                rate_share=rate_share,
                scope=lasting(self._lifespans, plan, self._overrides),
                post=self._post(plan, services, name, control=control),
            ) as worker:
                self._workers.append(worker)
                try:
                    yield worker
                finally:
                    self._workers.remove(worker)

    async def recover(self) -> int:
        """End the orphans of this bus's handlers that there are now, as its workers do by themselves: messages that
        were acked early (`ack="early"`) and whose worker has died. Returns how many. Raises ConfigurationError where
        there is no store, StoreUnavailable."""
        from busline.recovering import recover

        services = self._services(self._open_session, None, None)
        return await recover(await self._open_session.jobs.store("recovering orphans"), self.plan(), services)

    def _post(
        self,
        plan: Plan,
        services: Services,
        name: str | None,
        *,
        control: bool | Literal["offered", "heeding"] | None,
    ) -> Post | None:
        if isinstance(control, bool) and self._control is not None and control != self._control:
            raise ConfigurationError(f"this worker is told control={control}, and its bus says control={self._control}")
        wanted = control if self._control is None else self._control
        if not wanted:
            return None
        from busline.operated import Post

        reach = "needed" if wanted is True else wanted
        return Post(plan, services, self._open_session.door, name=name, instance=self._instance, reach=reach)

    # -- within other programs ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[dict[str, Any]]:
        """`FastAPI(lifespan=bus.lifespan)`: open while the application runs, and in `request.state.bus`.

        For any ASGI application whose server runs lifespans; busline.integrations.fastapi has more.
        """
        async with self:
            yield {"bus": self}

    def setup(self, app: Any, **options: Any) -> None:
        """`bus.setup(app)`: open while the aiohttp application runs, its errors answered as 503 and 504.

        The options are those of busline.integrations.aiohttp.setup. Raises ConfigurationError without aiohttp.
        """
        import_module("busline.integrations.aiohttp").setup(self, app, **options)

    def sync(self) -> SyncBus:
        """The same verbs for code that does not await, by one event loop in a thread, which starts when first used.

        Raises ConfigurationError for a bus that was given a transport or a store instead of a URL, as one cannot serve
        two event loops.
        """
        from busline.sync import SyncBus

        if not isinstance(self._url, str | None) or not isinstance(self._given_store, str | None):
            raise ConfigurationError("bus.sync() needs a bus that was given URLs, to connect by itself")
        apart = copy(self)
        apart._session, apart._workers = None, []
        return SyncBus(apart)

    async def _services_with_claims(
        self, plan: Plan, on_stuck: Callable[[str], None] | None, on_message: Callable[[], None] | None
    ) -> Services:
        from busline.claims import claims_of

        services = self._services(self._open_session, on_stuck, on_message)
        services.claims = await claims_of(self._open_session.door, plan, services)
        return services

    def _services(
        self, session: Session, on_stuck: Callable[[str], None] | None, on_message: Callable[[], None] | None
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
            notices=Wheel(self._clock, lambda delivery: None),
            threads=CapacityLimiter(1),
            on_stuck=on_stuck or _warn_stuck,
            on_message=on_message,
            before=self._before,
        )


def _warn_stuck(what: str) -> None:
    log.critical("%s; this process should be replaced", what, extra={"event": "stuck"})
