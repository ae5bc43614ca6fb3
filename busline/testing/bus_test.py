"""A bus under test: all that is real, on the memory transport and a clock that the test turns."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self

from busline.bus import Bus
from busline.errors import ConfigurationError
from busline.jobs import Job
from busline.message import Delivery
from busline.stores.memory import MemoryVault, share
from busline.storing import STORE_VARIABLE
from busline.telemetry import Telemetry
from busline.testing.clock import TURNS, VirtualClock
from busline.testing.recording import Recorder
from busline.testing.records import Failure, Record, Records
from busline.topics import matches
from busline.transports.memory import MemoryBroker, MemoryTransport
from busline.work import Work
from busline.worker import Worker

FOREVER = 1e9
"""Seconds of a lease that no test outlives: nobody dies in a test, so nothing needs to be renewed."""
FEW_TURNS = 6
"""Turns of the loop after a timer that set no message off: a check, a renewal. A day has many of them."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(duration: str | float | timedelta) -> float:
    """A number of seconds; or a text such as "90s", "1h30m" or "500ms". Raises ConfigurationError."""
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if not isinstance(duration, str):
        return float(duration)
    parts = _DURATION.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ConfigurationError(
            f"a duration is seconds, or a text such as '90s', '1h30m' or '500ms', not {duration!r}"
        )
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


class BusTest:
    """`async with BusTest(bus) as t:` runs the bus with its handlers on a memory broker of its own and a clock that
    stands still until `advance` turns it.

    What is sent, retried, delayed, expired and dead-lettered is so for the reasons that hold in production; nothing is
    faked but the broker, the store and the time. A bus that has a store gets one in memory, and one that has none gets
    none. Several buses, one for each service, share everything. The bus must not be open; afterwards it is what it was.
    Code under test may enter the bus again, as an application does.

    * `concurrency`: messages at a time per queue.
    * `propagate`: `settle` and what ends with it raise what a handler raised, when it was its last attempt.
    * `timeout`: seconds of the machine's time that `settle` and `call` wait for a handler before they complain.
    * `patience`: seconds of the machine's time that `advance` waits for a handler before it takes it to be waiting for
      time to pass. A handler's own `asyncio.sleep` takes the machine's time, too.
    * `seed`: of the order in which messages that wait together are delivered; none is promised, and none is kept.
    * `overrides`: factories of dependencies, and what stands for them here.
    * `start`: seconds since the epoch at which the clock stands; by default now.
    """

    __test__ = False  # pytest would collect it, by its name

    def __init__(
        self,
        *buses: Bus,
        concurrency: int = 10,
        propagate: bool = False,
        timeout: float = 10.0,
        patience: float = 1.0,
        start: float | None = None,
        seed: int = 0,
        overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> None:
        if not buses:
            raise ConfigurationError("give it the bus to be tested: BusTest(bus)")
        self.buses = buses
        self.clock = VirtualClock(time.time() if start is None else start)
        self._broker = MemoryBroker(self.clock, lease=FOREVER, seed=seed)
        self._vault = MemoryVault(self.clock)
        self._store_url = share(self._vault, self._broker.store_url.removeprefix("memory://"))
        self._concurrency = concurrency
        self._propagate = propagate
        self._overrides = overrides or {}
        self._timeout = timeout
        self._patience = patience
        self._recorder = Recorder()
        self._workers: list[Worker] = []
        self._planned: list[tuple[str, BaseException | type[BaseException], list[int]]] = []
        self._waiting: set[Any] = set()
        self._raised = 0
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise ConfigurationError("this BusTest is entered already")
        async with AsyncExitStack() as stack:
            for bus in self.buses:
                stack.enter_context(self._swapped(bus))
                stack.enter_context(bus.override(self._overrides))
            for bus in self.buses:
                await stack.enter_async_context(self._running(bus))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        assert stack is not None, "it was entered"
        for worker in self._workers:
            if worker.running:  # whatever it waits for, nobody waits for it
                worker.abort()
        await stack.aclose()
        left = [pattern for pattern, _, times in self._planned if times[0] > 0]
        if left and error is None:
            raise AssertionError(f"fail_next({left[0]!r}) was never reached by a message")

    @contextmanager
    def _swapped(self, bus: Bus) -> Iterator[None]:
        if bus._session is not None:
            raise ConfigurationError("the bus is open already; BusTest opens it itself")
        before = bus._url, bus._given_store, bus._clock, bus._telemetry, bus._before
        telemetry = Telemetry()
        telemetry.stats = bus.stats
        for observer in (*bus.observers, self._recorder):
            telemetry.add(observer)
        bus._url, bus._given_store = self._transport_and_store(bus)
        bus._clock, bus._telemetry, bus._before = self.clock, telemetry, self._perhaps_fail
        try:
            yield
        finally:
            bus._url, bus._given_store, bus._clock, bus._telemetry, bus._before = before

    def _transport_and_store(self, bus: Bus) -> tuple[MemoryTransport, str | Literal[False] | None]:
        """A store where the bus has one, and none where it has none, so that no test shows what will not work."""
        if bus._given_store is not None or os.environ.get(STORE_VARIABLE):
            return MemoryTransport(self._broker), self._store_url
        own = hasattr(bus._url, "store_url") or bus.url.partition("://")[0] in ("memory", "sqlite")
        return MemoryTransport(self._broker), None if own else False

    @asynccontextmanager
    async def _running(self, bus: Bus) -> AsyncIterator[None]:
        if not bus.declarations:
            async with bus:
                yield
            return
        async with bus.worker(concurrency=self._concurrency) as worker:
            self._workers.append(worker)
            yield

    # -- what happened ------------------------------------------------------------------------------------------

    @property
    def sent(self) -> Records[Record]:
        """Jobs that left, by `send` and by `ctx.send`; retries are in `retried`."""
        return self._recorder.jobs

    @property
    def published(self) -> Records[Record]:
        """Events that left, whether or not anybody subscribes to them."""
        return self._recorder.events

    @property
    def called(self) -> Records[Record]:
        """Calls that left."""
        return self._recorder.calls

    @property
    def handled(self) -> Records[Record]:
        """Messages whose handler returned; an event once for each subscriber."""
        return self._recorder.handled

    @property
    def retried(self) -> Records[Failure]:
        """Attempts that failed and are tried again, with what was raised."""
        return self._recorder.retries

    @property
    def failed(self) -> Records[Failure]:
        """Last attempts that failed, with what was raised; those of calls, too, which become no dead letters."""
        return self._recorder.failures

    @property
    def dead_lettered(self) -> Records[Failure]:
        """Messages that became dead letters, with their reason."""
        return self._recorder.dead_letters

    # -- making things happen -----------------------------------------------------------------------------------

    async def call(self, topic: Any, payload: object = None, **options: Any) -> Any:
        """`bus.call`, which passes whatever time it needs: delays of retries, or its timeout."""
        call = asyncio.ensure_future(self.buses[0].call(topic, payload, **options))
        try:
            while not call.done():
                if not await self._quiet(self._timeout, call.done):
                    self._complain()
                if not call.done() and (due := self.clock.next_due) is not None:
                    self.clock.turn_to(due)
        finally:
            call.cancel()
            await asyncio.wait([call])
        return call.result()

    async def send(self, topic: Any, payload: object = None, **options: Any) -> Job:
        """`bus.send`; what it sets off has not happened yet."""
        return await self.buses[0].send(topic, payload, **options)

    async def publish(self, topic: str, payload: object = None, **options: Any) -> None:
        """`bus.publish`; what it sets off has not happened yet."""
        await self.buses[0].publish(topic, payload, **options)

    async def send_and_settle(self, topic: Any, payload: object = None, **options: Any) -> Job:
        """`send`, then `settle`."""
        job = await self.send(topic, payload, **options)
        await self.settle()
        return job

    async def publish_and_settle(self, topic: str, payload: object = None, **options: Any) -> None:
        """`publish`, then `settle`."""
        await self.publish(topic, payload, **options)
        await self.settle()

    async def settle(self) -> None:
        """Until everything that can be handled now has been: what was sent, and what that sent in turn. No time
        passes, so what is delayed waits. AssertionError if a handler does not end."""
        if not await self._quiet(self._timeout):
            self._complain()
        self._propagate_failures()

    async def advance(self, duration: str | float | timedelta) -> None:
        """Let time pass (seconds, or a text such as "1h30m"): what falls due happens in order, each at its own instant,
        and everything that it sets off happens before the next."""
        target = self.clock.time() + seconds_of(duration)
        await self._quiet_or_waiting()
        while (due := self.clock.next_due) is not None and due <= target:
            self.clock.turn_to(due)
            await self._quiet_or_waiting(needed=FEW_TURNS)
        self.clock.turn_to(target)
        self._waiting.clear()
        await self._quiet_or_waiting()
        self._waiting.clear()
        self._propagate_failures()

    def fail_next(
        self, topic: str, error: BaseException | type[BaseException] = RuntimeError, *, times: int = 1
    ) -> None:
        """The handlers of the next `times` messages of this topic, or pattern, raise `error` instead of running. It is
        an error of the test if no message comes."""
        self._planned.append((topic, error, [times]))

    # -- behind it ----------------------------------------------------------------------------------------------

    def _perhaps_fail(self, work: Work) -> None:
        for pattern, error, times in self._planned:
            if times[0] > 0 and matches(pattern, work.delivery.message.topic):
                times[0] -= 1
                raise error

    def _held(self) -> list[Delivery]:
        """What was handed out and is not settled."""
        return [delivery for queue in self._broker.queues.values() for delivery in queue.held()]

    async def _quiet(self, patience: float, enough: Callable[[], bool] = lambda: False, *, needed: int = TURNS) -> bool:
        """Until nothing is handed out for some turns of the loop; False if something still is after `patience`.
        `needed` turns are enough if nothing was handed out at all."""
        end, calm, turns = time.monotonic() + patience, 0, 0
        while calm < needed and not enough():
            calm += 1
            if any(delivery not in self._waiting for delivery in self._held()):
                calm, needed = 0, TURNS
                if time.monotonic() > end:
                    return False
            turns += 1
            await asyncio.sleep(0 if turns < 10 * TURNS else 0.001)
        return True

    async def _quiet_or_waiting(self, needed: int = TURNS) -> None:
        if not await self._quiet(self._patience, needed=needed):
            self._waiting.update(self._held())

    def _complain(self) -> None:
        topics = ", ".join(sorted({delivery.message.topic for delivery in self._held()}))
        raise AssertionError(
            f"{topics}: still running after {self._timeout:g} s. If it waits for time to pass, await t.advance(…); "
            "if it needs longer, BusTest(bus, timeout=…)"
        )

    def _propagate_failures(self) -> None:
        """Raise the first that is new."""
        new = self.failed[self._raised :]
        self._raised = len(self.failed)
        for failure in new:
            if self._propagate and failure.error is not None:
                raise failure.error
