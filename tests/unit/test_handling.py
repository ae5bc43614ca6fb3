"""Whatever a handler, its payload or its exception does: the message comes to an end and the worker works on."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from busline import Bus, Context, Reject, RemoteError, Retry, Router
from busline.errors import CodecError, NoHandler
from busline.message import Delivery, Message, ToQueue
from busline.transports.base import Inspectable
from busline.wire import decode_envelope

numbers = count()
NAME: ContextVar[str] = ContextVar("NAME", default="outside")


@pytest.fixture
def bus() -> Bus:
    return Bus(f"memory://handling-{next(numbers)}", service="svc", retry=Retry(max_retries=0), unknown_grace=0.05)


@asynccontextmanager
async def alive(bus: Bus) -> AsyncIterator[None]:
    """Serve with one slot, and have it answer at the end, however hard it was hit."""

    @bus.handler("alive")
    async def answer() -> str:
        return "alive"

    async with bus.worker(concurrency=1):
        yield
        assert await bus.call("alive", timeout=5) == "alive"


async def dead(bus: Bus) -> dict[str, Any]:
    """The story of the one dead letter, as soon as there is one."""
    assert isinstance(bus.transport, Inspectable)
    async with asyncio.timeout(10):
        while not (found := await bus.transport.peek("svc.dead", 10)):  # noqa: ASYNC110  # a broker has to be asked
            await asyncio.sleep(0.005)
    (message,) = found
    failure = decode_envelope(message, 0.0).failure
    assert failure is not None
    return failure


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Own(BaseException):
    pass


class SilentReject(Reject):
    def __init__(self) -> None:
        """Does not call its base."""


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> None:
    """One of the errors below has no UTF-8, and a parallel run of pytest could not pass on what was logged."""
    caplog.set_level(logging.CRITICAL + 1, "busline")


TROUBLE: dict[str, Callable[[], BaseException]] = {
    "Unprintable": Unprintable,
    "Own": Own,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("g", [Own()]),
    "ExceptionGroup": lambda: ExceptionGroup("g", [ValueError()]),
    "SystemExit": lambda: SystemExit(1),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "OSError": lambda: OSError("file-\udcff"),
    "ValueError": lambda: ValueError("x" * 3_000_000),
    "KeyError": lambda: KeyError(object()),
    "busline.rejected": SilentReject,
}


@pytest.mark.parametrize("kind", TROUBLE)
async def test_whatever_a_job_raises_it_becomes_a_dead_letter(bus: Bus, kind: str) -> None:
    @bus.handler("trouble")
    async def raises() -> None:
        raise TROUBLE[kind]()

    async with alive(bus):
        await bus.send("trouble")
        assert (await dead(bus))["type"] == kind


@pytest.mark.parametrize("kind", TROUBLE)
async def test_whatever_a_call_raises_its_caller_hears_of_it(bus: Bus, kind: str) -> None:
    @bus.handler("trouble")
    async def raises() -> None:
        raise TROUBLE[kind]()

    async with alive(bus):
        with pytest.raises(RemoteError) as caught:
            await bus.call("trouble", timeout=5)
        assert caught.value.type in (kind, "busline.too_large")


@pytest.mark.parametrize("kind", TROUBLE)
async def test_an_error_that_is_tried_again_is_tried_again_whatever_it_is(bus: Bus, kind: str) -> None:
    runs = []

    @bus.handler("trouble", retry=Retry(delays=[0]))
    async def raises() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise TROUBLE[kind]()
        return "well"

    async with alive(bus):
        if kind == "busline.rejected":
            with pytest.raises(RemoteError):
                await bus.call("trouble", timeout=5)
        else:
            assert await bus.call("trouble", timeout=5) == "well"


class Touchy(BaseModel):
    kind: str

    @field_validator("kind")
    @classmethod
    def _check(cls, kind: str) -> str:
        raise KeyError(kind)


class Illegible(CodecError):
    """An application's own."""


class Encrypted(Touchy):
    @field_validator("kind")
    @classmethod
    def _check(cls, kind: str) -> str:
        raise Illegible("no key opens it")


@pytest.mark.parametrize(
    ("model", "found"),
    [(Touchy, ("invalid", "KeyError: 'x'")), (Encrypted, ("undecodable", "no key opens it"))],
)
async def test_a_payload_whose_validator_breaks_is_a_dead_letter(
    bus: Bus, model: type[Touchy], found: tuple[str, str]
) -> None:
    async def takes(payload: Touchy) -> None: ...

    takes.__annotations__["payload"] = model
    bus.handler("touchy")(takes)
    async with alive(bus):
        await bus.send("touchy", {"kind": "x"})
        failure = await dead(bus)
        assert (failure["reason"], failure["message"]) == found


async def test_a_plain_function_that_returns_a_coroutine_has_it_awaited(bus: Bus) -> None:
    done = asyncio.Event()

    async def work() -> str:
        done.set()
        return "done"

    bus.handler("plain")(lambda: work())

    async with alive(bus):
        await bus.send("plain")
        await asyncio.wait_for(done.wait(), 5)
        assert await bus.call("plain", timeout=5) == "done"


def in_a_task(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    def wrapper(**arguments: Any) -> Awaitable[Any]:
        return asyncio.create_task(function(**arguments), name="of a decorator")

    return wrapper


def made_async(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(**arguments: Any) -> Any:
        return function(**arguments)

    return wrapper


async def test_decorators_may_return_tasks_and_make_coroutine_functions_of_plain_ones(bus: Bus) -> None:
    async def work(number: int) -> int:
        return number

    def plain(number: int) -> int:
        return number

    bus.handler("task")(in_a_task(work))
    bus.handler("async")(made_async(plain))
    async with alive(bus):
        assert await bus.call("task", 5, timeout=5) == 5
        assert await bus.call("async", 5, timeout=5) == 5


async def test_what_a_decorator_sets_the_next_message_does_not_see(bus: Bus) -> None:
    async def looks() -> str:
        return NAME.get()

    @functools.wraps(looks)
    def setting() -> Awaitable[str]:
        found = NAME.get()
        NAME.set("left behind")
        return asyncio.sleep(0, found)

    bus.handler("looks")(setting)
    async with alive(bus):
        for _ in range(2):
            assert await bus.call("looks", timeout=5) == "outside"


async def test_a_generator_is_refused_at_startup(bus: Bus) -> None:
    @bus.handler("rows")
    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(Exception, match="generator"):
        async with bus.worker():
            pass


async def test_a_result_without_a_json_form_is_a_failure_that_the_caller_hears_of(bus: Bus) -> None:
    @bus.handler("odd")
    async def odd() -> object:
        return object()

    async with alive(bus):
        with pytest.raises(RemoteError, match="cannot be sent as JSON"):
            await bus.call("odd", timeout=5)


# -- messages from elsewhere ------------------------------------------------------------------------------------------

FOREIGN = {
    "garbage": Message("alive", b"null", "garbage"),
    "a version to come": Message("alive", b"null", '{"v":9,"id":"i"}'),
    "too deep to be sent on": Message("alive", b"null", '{"v":1,"id":"i","x":%s}' % ("[" * 300 + "]" * 300)),
    "an attempt beyond counting": Message("alive", b"null", '{"v":1,"id":"i","attempt":18446744073709551615}'),
}


@pytest.mark.parametrize("message", FOREIGN.values(), ids=FOREIGN)
async def test_a_message_whose_header_cannot_be_read_is_kept(bus: Bus, message: Message) -> None:
    async with alive(bus):
        await bus.transport.send(ToQueue("svc"), message)
        assert (await dead(bus))["reason"] == "undecodable"


@pytest.mark.parametrize("correlation", [None, "theirs"])
async def test_a_message_from_elsewhere_that_nobody_knows_is_kept_after_the_grace(
    bus: Bus, correlation: str | None
) -> None:
    async with alive(bus):
        await bus.transport.send(ToQueue("svc"), Message("nobody.knows", b"1", correlation_id=correlation))
        failure = await dead(bus)
        assert (failure["reason"], failure["topic"]) == ("unknown_topic", "nobody.knows")


async def test_a_call_that_nobody_knows_is_told_so_within_half_its_deadline(bus: Bus) -> None:
    async with alive(bus):
        with pytest.raises(NoHandler):
            await bus.call("nobody.knows", queue="svc", timeout=5)


# -- leases, ends and policies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["late", "early", "own"])
async def test_a_handler_may_take_longer_than_its_lease_however_it_is_acked(how: str) -> None:
    """What was acked has no lease to lose, so that nobody may be cancelled for losing it."""
    bus = Bus(f"memory://leased-{next(numbers)}?lease=0.06", service="svc")

    @bus.handler("work", ack="early" if how == "early" else "late")
    async def work(ctx: Context) -> str:
        if how == "own":
            await ctx.ack()
        await asyncio.sleep(0.3)
        return "done"

    async with bus.worker(concurrency=1):
        assert await bus.call("work", timeout=5) == "done"
    assert bus.stats.leases_lost == 0


async def test_a_lease_that_is_lost_ends_the_handler() -> None:
    bus = Bus(f"memory://leased-{next(numbers)}?lease=0.06", service="svc")
    cancelled, started = asyncio.Event(), asyncio.Event()

    @bus.handler("work")
    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    async with bus.worker(concurrency=1, drain_timeout=0) as worker:
        await bus.send("work")
        await asyncio.wait_for(started.wait(), 5)
        (slot,) = worker._queues[0]._slots
        assert slot.consumer is not None
        assert slot.delivery is not None
        await slot.consumer.ack(slot.delivery)  # the broker knows nothing of it any more
        await asyncio.wait_for(cancelled.wait(), 5)
    assert (bus.stats.leases_lost, bus.stats.failed) == (1, 0)


async def test_a_slot_that_is_closed_with_its_loop_is_no_failure_of_the_handler(bus: Bus) -> None:
    started = asyncio.Event()
    waiting: list[asyncio.Future[None]] = []

    @bus.handler("work")
    async def work() -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        started.set()
        await waiting[0]

    async with bus.worker(concurrency=1) as worker:
        queue = worker._queues[0]
        delivery = Delivery(Message("work", b"null"), "svc", None)
        handle = queue._handling.handle(delivery, None, queue._slots[0])  # type: ignore[arg-type]  # it never settles
        task = asyncio.create_task(handle, name="slot")
        await started.wait()
        await asyncio.sleep(0)  # the slot waits for the handler now
        handle.close()
        waiting[0].cancel()
        await asyncio.wait([task])
        queue._slots[0].work = None
    assert (bus.stats.failed, bus.stats.dead_lettered) == (0, 0)


@pytest.mark.parametrize("own", [True, False])
async def test_the_policy_of_a_router_is_for_jobs_and_that_of_a_handler_for_calls_too(bus: Bus, own: bool) -> None:
    router, attempts = Router(retry=Retry(delays=[0.001], jitter=False)), list[tuple[str, int]]()

    async def work(kind: str, ctx: Context) -> None:
        attempts.append((kind, ctx.attempt))
        raise KeyError(kind)

    if own:
        router.handler("work", retry=Retry(delays=[0.001], jitter=False))(work)
    else:
        router.handler("work")(work)
    bus.include(router)
    async with alive(bus):
        with pytest.raises(RemoteError):
            await bus.call("work", "call", timeout=5)
        await bus.send("work", "job")
        await dead(bus)
    calls = [("call", 1), ("call", 2)] if own else [("call", 1)]
    assert attempts == [*calls, ("job", 1), ("job", 2)]
