"""The verbs for programs that do not await: views, scripts, notebooks. One thread with an event loop serves them all.

    unused ──first verb, or `with`──> open ──`close`, end of the `with`, end of the program──> closed

A fork keeps neither thread nor connections, so what was opened before it refuses to work in the child.
"""

# It takes the overloads for several parameters for unreachable; tests/typing shows that they are reached.
# pyright: reportOverlappingOverload=false
from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import anyio
from anyio.from_thread import BlockingPortal

from busline.errors import ConfigurationError, TransportClosed
from busline.jobs import Job, JobInfo
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
from busline.sync_jobs import SyncJob
from busline.telemetry import log
from busline.topics import Topic
from busline.wire import text_of

if TYPE_CHECKING:
    from busline.bus import Bus

T = TypeVar("T")

EXIT_TIMEOUT = 10.0
"""Seconds that closing may take when the program ends."""


class SyncBus:
    """`call`, `send` and `publish` of a bus, for any number of threads. Made by `Bus.sync`.

    It connects when it is first used, or by `with`, and closes at the end of the `with`, by `close`, or when the
    program ends. Its connections are its own, also where its bus is open at the same time. Context variables go along,
    so a call from a handler that runs in a thread inherits its conversation and deadline, and `bus.within(...)` counts.
    A verb blocks its thread, hence it is not for async code.

    Every verb raises what it raises on the bus, TransportClosed once this is closed, and ConfigurationError in a
    process that was forked after this had been opened.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._changing = threading.Condition()
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()
        self._starting = 0
        """Verbs that are being handed to the loop, which must not end meanwhile."""
        self._pid = 0
        """Of the process that opened it; 0 before."""
        self._closed = False

    # -- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with self._changing:
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what is pending, close the connections, end the thread. Idempotent; without effect in a forked child,
        which has none of these. Raises what closing the bus raises."""
        if self._stop():
            self._ended.result()

    def _open(self) -> BlockingPortal:
        """The portal, opened if need be; the caller holds `_changing`."""
        if self._closed:
            raise TransportClosed("this was closed; make another with bus.sync()")
        if self._portal is None:
            self._pid = os.getpid()
            try:
                self._portal = self._start()
            except BaseException:
                self._pid = 0
                raise
            atexit.register(self._at_exit)
        return self._portal

    def _start(self) -> BlockingPortal:
        ready: Future[BlockingPortal] = Future()
        thread = threading.Thread(target=self._serve, args=(ready,), name="busline sync", daemon=True)
        thread.start()
        try:
            portal = ready.result()
        except BaseException:
            # It failed; or a Ctrl-C came, and if it cannot be called off any more, it is about to be open.
            if not ready.cancel() and ready.exception() is None:
                portal = ready.result()
                portal.call(portal.stop)
            raise
        self._thread = thread
        return portal

    def _check_process(self) -> None:
        """Before the lock is taken: another thread may have held it when this process was forked."""
        if self._pid and self._pid != os.getpid():
            raise ConfigurationError(
                f"this bus was opened by process {self._pid}, of which this one is a fork: its thread and connections "
                "are not here. Use it for the first time after the fork, or make another with bus.sync()"
            )

    def _serve(self, ready: Future[BlockingPortal]) -> None:
        try:
            anyio.run(self._until_stopped, ready)
        except BaseException as error:
            if ready.done():
                self._ended.set_exception(error)  # raised by close()
            else:
                ready.set_exception(error)  # raised by who uses it first
        else:
            self._ended.set_result(None)

    async def _until_stopped(self, ready: Future[BlockingPortal]) -> None:
        failure: Exception | None = None
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self._bus)
            # The bus is closed before the portal, which would wait for calls that nobody can answer any more.
            async with BlockingPortal() as portal:
                try:
                    async with opened.pop_all():
                        if ready.set_running_or_notify_cancel():
                            ready.set_result(portal)
                            await portal.sleep_until_stopped()
                except Exception as error:  # the portal would make a group of it
                    failure = error
        if failure is not None:
            raise failure

    def _stop(self) -> bool:
        """Begin to close; False if there is nothing to wait for."""
        if self._pid and self._pid != os.getpid():
            return False
        with self._changing:
            self._closed = True
            portal, self._portal = self._portal, None
            self._changing.wait_for(lambda: not self._starting)
        if portal is not None:
            atexit.unregister(self._at_exit)
            portal.call(portal.stop)
        return self._thread is not None

    def _at_exit(self) -> None:
        if not self._stop() or self._thread is None:
            return
        self._thread.join(EXIT_TIMEOUT)
        if self._ended.done() and (error := self._ended.exception()) is not None:
            text = "a bus could not be closed at the end of the program: %s"
            log.warning(text, text_of(error), extra={"event": "sync_close_failed"})

    # -- verbs --------------------------------------------------------------------------------------------------

    @overload
    def call(self, topic: Topic[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: AsyncNothing[Rep], payload: None = None, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: AsyncContextFirst[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: AsyncPayload[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: AsyncHandler[Rep], payload: Mapping[str, object], **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: PlainNothing[Rep], payload: None = None, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: PlainContextFirst[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: PlainPayload[Req, Rep], payload: Req, **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: PlainHandler[Rep], payload: Mapping[str, object], **options: Unpack[CallOptions]) -> Rep: ...
    @overload
    def call(self, topic: str, payload: object = None, *, returns: type[T], **options: Unpack[CallOptions]) -> T: ...
    @overload
    def call(self, topic: str, payload: object = None, **options: Unpack[CallOptions]) -> Any: ...
    def call(self, topic: str | Topic[Any, Any] | Handler, payload: object = None, **options: Any) -> Any:
        """`Bus.call`, blocking this thread until the answer or the deadline."""
        return self._do(partial(self._bus.call, topic, payload, **options))

    @overload
    def send(self, topic: Topic[Req, Any], payload: Req, **options: Unpack[SendOptions]) -> SyncJob: ...
    @overload
    def send(self, topic: PlainNothing[object], payload: None = None, **options: Unpack[SendOptions]) -> SyncJob: ...
    @overload
    def send(self, topic: PlainContextFirst[Req, object], payload: Req, **options: Unpack[SendOptions]) -> SyncJob: ...
    @overload
    def send(self, topic: PlainPayload[Req, object], payload: Req, **options: Unpack[SendOptions]) -> SyncJob: ...
    @overload
    def send(
        self, topic: PlainHandler[object], payload: Mapping[str, object], **options: Unpack[SendOptions]
    ) -> SyncJob: ...
    @overload
    def send(self, topic: str, payload: object = None, **options: Unpack[SendOptions]) -> SyncJob: ...
    def send(self, topic: str | Topic[Any, Any] | Handler, payload: object = None, **options: Any) -> SyncJob:
        """`Bus.send`, blocking this thread until the broker has the job."""
        return SyncJob(self._do(partial(self._bus.send, topic, payload, **options)), self._do)

    def job(self, id: str) -> SyncJob:
        """`Bus.job`."""

        async def find() -> Job:
            return self._bus.job(id)

        return SyncJob(self._do(find), self._do)

    def jobs(self, limit: int = 50, *, topic: str = "") -> list[JobInfo]:
        """`Bus.jobs`."""
        return self._do(partial(self._bus.jobs, limit, topic=topic))

    def publish(
        self,
        topic: str,
        payload: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        ttl: float | None = None,
    ) -> None:
        """`Bus.publish`, blocking this thread until the broker has the event."""
        self._do(partial(self._bus.publish, topic, payload, headers=headers, ttl=ttl))

    def _do(self, verb: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._check_process()
        with self._changing:
            portal = self._open()
            self._starting += 1
        try:
            future = portal.start_task_soon(verb)
        finally:
            with self._changing:
                self._starting -= 1
                self._changing.notify_all()
        try:
            result: T = future.result()
        except CancelledError:
            raise TransportClosed("the bus was closed meanwhile") from None
        except BaseException:
            future.cancel()  # for a Ctrl-C: nobody waits any more
            raise
        return result
