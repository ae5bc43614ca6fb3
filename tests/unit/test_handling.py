"""Whatever a handler, its payload or its exception does: the message comes to an end and the worker works on."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from busline import Bus, Reject, RemoteError, Retry
from busline.errors import NoHandler
from busline.message import Message, ToQueue
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


async def test_a_payload_whose_validator_breaks_is_invalid(bus: Bus) -> None:
    @bus.handler("touchy")
    async def takes(payload: Touchy) -> None: ...

    async with alive(bus):
        await bus.send("touchy", {"kind": "x"})
        failure = await dead(bus)
        assert (failure["reason"], failure["message"]) == ("invalid", "KeyError: 'x'")


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
