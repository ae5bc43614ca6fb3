"""The worker: serves all queues of a bus inside `async with bus.worker(...)`, and leaves in good order.

The order of leaving, so that no message is lost, delayed or counted as failed by it:

    1. stop fetching: consumers are resized to nothing, idle slots end
    2. give back what was delivered and had not begun, without counting an attempt
    3. wait for the handlers that run, up to `drain_timeout`; their leases are still kept
    4. cancel those that are left, and give their messages back
    5. close the consumers
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType
from typing import Self

import anyio
from anyio import create_task_group
from anyio.abc import TaskGroup

from busline.claims import Claims
from busline.errors import BuslineError, ConfigurationError
from busline.message import Delivery, Health
from busline.operated import Post, State
from busline.options import CANCEL_TIMEOUT
from busline.registry import Plan, QueuePlan
from busline.services import Alarm, Services
from busline.slots import QueueSlots, QueueState, side_by_side
from busline.telemetry import log
from busline.wheel import Wheel
from busline.wire import reply_to

HEALTH_PERIOD = 1.0
"""Seconds between looks at the transport's health."""


class Worker:
    """Consumes while it is entered. Made by `Bus.worker`; may be entered once."""

    def __init__(
        self,
        plan: Plan,
        services: Services,
        *,
        concurrency: int,
        prefetch: int,
        drain_timeout: float,
        rate_share: float = 1.0,
        post: Post | None = None,
        scope: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        services.notices = Wheel(services.clock, self._announce)
        services.alarms = Wheel(services.clock, _ring)
        self._queues = [
            QueueSlots(
                queue,
                services,
                count=concurrency,
                prefetch=prefetch,
                rate_share=rate_share,
                on_closed=self.stop,
            )
            for queue in plan.queues.values()
        ]
        self._services = services
        self._post = post
        self._scope = nullcontext() if scope is None else scope
        services.threads.total_tokens = max(1, sum(queue.count for queue in self._queues))
        self._drain_timeout = drain_timeout
        self._started: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks: TaskGroup | None = None
        self._retire = anyio.Event()
        self._stop = anyio.Event()

    @property
    def queues(self) -> Sequence[QueuePlan]:
        """What it serves."""
        return [queue.plan for queue in self._queues]

    @property
    def health(self) -> Health:
        """What the transport says of itself and its consumers."""
        return self._services.transport.health()

    def states(self) -> list[QueueState]:
        """Its queues as they are now."""
        return [queue.state() for queue in self._queues]

    @property
    def troubles(self) -> list[str]:
        """Why it does not take messages as it should, in words; empty while all is well."""
        health = self.health
        troubles = [f"queue {state.name}: {trouble}" for state in self.states() for trouble in state.troubles]
        if not health.serves:
            troubles.insert(0, f"{self._services.transport.where}: {health.detail or health.status}")
        if self._retire.is_set():
            troubles.insert(0, "it takes no further message")
        return troubles

    @property
    def paused(self) -> dict[str, list[str]]:
        """Queues that are not consumed at the moment, and why."""
        return {queue.plan.spec.name: list(queue.gate.reasons.values()) for queue in self._queues if queue.gate.reasons}

    @property
    def shortest_lease(self) -> float | None:
        """Seconds that the messages of this worker stay ours without a sign of life; None = no limit."""
        return min((queue.lease for queue in self._queues if queue.lease is not None), default=None)

    @property
    def running(self) -> int:
        """Messages being handled now."""
        return sum(queue.running for queue in self._queues)

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise ConfigurationError("a worker is entered once; make another with bus.worker()")
        if not self._queues:
            raise ConfigurationError(
                "this bus has no handlers and no subscribers: has the module that declares them been imported?"
            )
        self._started = asyncio.get_running_loop().create_future()
        # A task of its own, so that the worker may be entered and left by different tasks, as test fixtures do.
        self._task = asyncio.create_task(self._run(self._started), name="busline worker")
        try:
            await self._started
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        await self.wait()

    def retire(self) -> None:
        """Take no further message, and leave when all that runs has ended, however long that takes; `stop` and
        `abort` end the patience."""
        self._retire.set()

    def stop(self) -> None:
        """Begin to leave; `wait` returns when that is done. May be called again, and from a signal handler."""
        self._retire.set()
        self._stop.set()

    def abort(self) -> None:
        """Leave now: cancel the handlers instead of waiting for them; their messages are given back."""
        self._drain_timeout = 0.0
        self.stop()
        for queue in self._queues:
            queue.cancel()

    async def wait(self) -> None:
        """Until the worker has left. Raises what made it leave unasked, for example TransportClosed."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self, started: asyncio.Future[None]) -> None:
        try:
            async with self._scope:
                await self._serve(started)
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: asyncio.Future[None]) -> None:
        try:
            await side_by_side(queue.attach() for queue in self._queues)
            if self._post is not None:
                await self._post.prepare(self._queues, self._state)
        except BaseException as error:
            await self._close()
            if started.done() or not isinstance(error, Exception):
                raise
            started.set_exception(error)
            return
        try:
            async with create_task_group() as tasks:
                self._tasks = tasks
                for queue in self._queues:
                    tasks.start_soon(queue.run, name=f"busline queue {queue.plan.spec.name}")
                if self._services.claims is not None:
                    tasks.start_soon(self._keep_claims, self._services.claims, name="busline claims")
                tasks.start_soon(self._leave, tasks, name="busline drain")
                tasks.start_soon(self._watch, name="busline health")
                if self._post is not None:
                    self._post.start()
                if not started.done():
                    started.set_result(None)
        except BaseExceptionGroup as group:
            raise _single(group) from None
        finally:
            await self._close()

    async def _keep_claims(self, claims: Claims) -> None:
        """Until all queues have ended."""
        async with create_task_group() as side:
            side.start_soon(claims.run, name="busline claim keeper")
            for queue in self._queues:
                await queue.ended.wait()
            side.cancel_scope.cancel()

    async def _watch(self) -> None:
        """Log that the broker was lost, and that it is back, until the worker leaves; drivers are silent."""
        transport, status = self._services.transport, "healthy"
        while not self._retire.is_set():
            health = transport.health()
            if health.status in ("degraded", "down") and status == "healthy":
                log.warning("%s: %s", transport.where, health.detail or health.status, extra={"event": health.status})
            if health.status == "healthy" and status != "healthy":
                log.info("%s: healthy again", transport.where, extra={"event": "healthy"})
            status = health.status
            with anyio.move_on_after(HEALTH_PERIOD):
                await self._retire.wait()

    async def _leave(self, tasks: TaskGroup) -> None:
        await self._retire.wait()
        for queue in self._queues:
            await queue.stop_fetching()
        if await self._ended_before_stop() or await self._settled(self._drain_timeout):
            return
        log.warning(
            "%d handlers still run after %.0f s and are cancelled",
            *(self.running, self._drain_timeout),
            extra={"event": "drain_timeout", "running": self.running},
        )
        for queue in self._queues:
            queue.cancel()
        if not await self._settled(CANCEL_TIMEOUT):
            tasks.cancel_scope.cancel()

    async def _ended_before_stop(self) -> bool:
        """Wait for everything to end; False as soon as the worker is told to stop."""
        async with create_task_group() as race:
            race.start_soon(self._stopped, race.cancel_scope, name="busline stop")
            for queue in self._queues:
                await queue.ended.wait()
            race.cancel_scope.cancel()
            return True
        return False

    async def _stopped(self, patience: anyio.CancelScope) -> None:
        await self._stop.wait()
        patience.cancel()

    async def _settled(self, timeout: float) -> bool:
        with anyio.move_on_after(timeout):
            for queue in self._queues:
                await queue.ended.wait()
            return True
        return False

    def _state(self) -> State:
        if self._retire.is_set():
            return "draining"
        return "serving" if self._tasks is not None else "starting"

    async def _close(self) -> None:
        self._services.alarms.close()
        self._services.notices.close()
        if self._post is not None:
            await _close_one(self._post.aclose)
        await side_by_side(_close_one(queue.aclose) for queue in self._queues)

    def _announce(self, delivery: Delivery) -> None:
        """Tell the caller of a long call that it has been started, so that its timeout can say so."""
        if self._tasks is not None:
            self._tasks.start_soon(self._send_notice, delivery, name="busline notice")

    async def _send_notice(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            await self._services.transport.reply(message.reply_to or "", reply_to(message, "started", b"null"))
        except BuslineError as error:
            log.info("a start could not be reported: %s", error, extra={"event": "notice_failed"})


def _ring(alarm: Alarm) -> None:
    alarm()


async def _close_one(close: Callable[[], Awaitable[None]]) -> None:
    try:
        await close()
    except BuslineError as error:
        log.warning("closing a consumer failed: %s", error, extra={"event": "close_failed"})


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error, if all leaves of the nested groups are of one kind; else the group."""
    leaves = list(_leaves(group))
    return leaves[0] if len({type(leaf) for leaf in leaves}) == 1 else group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
