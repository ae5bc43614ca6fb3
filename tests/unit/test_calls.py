"""The caller's side of `call`, over an inbox that does what a test says and a clock that a test turns."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import anyio
import pytest

from busline.calls import Calls
from busline.calls import _expire as expire
from busline.errors import CallTimeout, CodecError, ConnectionLost, ReplyLost, TransportClosed
from busline.message import Destination, Message, ToTopic
from busline.telemetry import Telemetry
from busline.testing.clock import VirtualClock
from busline.transports.base import Transport
from busline.wire import Envelope, reply_to

START = 1_000_000_000.0
TO = ToTopic("a.topic")


class Line:
    """A transport and its inbox: keeps what is sent, and lets a test answer, cut and clog the way."""

    where = "a test"

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.opened = 0
        self.closed = 0
        self.address = "inbox"
        self.sending: Callable[[Message], Awaitable[None]] | None = None
        self.opening: Callable[[], Awaitable[None]] | None = None
        self.on_reply: Callable[[Message], None] = lambda message: None
        self.on_lost: Callable[[], None] = lambda: None

    async def open_inbox(self, on_reply: Callable[[Message], None], on_lost: Callable[[], None]) -> Line:
        if self.opening is not None:
            await self.opening()
        self.opened += 1
        self.on_reply, self.on_lost = on_reply, on_lost
        return self

    async def send(self, to: Destination, message: Message) -> None:
        assert to is TO
        self.sent.append(message)
        if self.sending is not None:
            await self.sending(message)

    async def aclose(self) -> None:
        self.closed += 1

    def answer(self, body: bytes = b"1", status: Any = "ok", number: int = -1) -> None:
        self.on_reply(reply_to(self.sent[number], status, body))


class Caller:
    """Calls over a line."""

    def __init__(self) -> None:
        self.line, self.clock, telemetry = Line(), VirtualClock(START), Telemetry()
        self.stats = telemetry.stats
        self.calls = Calls(cast("Transport", self.line), self.clock, telemetry)

    async def ask(self, timeout: float = 10.0) -> Message:
        deadline = self.clock.time() + timeout
        return await self.calls.ask(TO, Message("a.topic", b"null"), timeout=timeout, deadline=deadline)

    async def start(self, timeout: float = 10.0) -> asyncio.Task[Message]:
        """A call that has got as far as it can."""
        task = asyncio.create_task(self.ask(timeout), name="caller")
        await settle()
        return task


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Whatever a test does to it, no call leaves a trace behind, and no error stays unseen by anybody."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    caller = Caller()
    yield caller
    assert len(caller.calls) == 0
    assert len(caller.calls._wheel) == 0
    gc.collect()
    assert not complaints


async def settle() -> None:
    """Let everything happen that needs no time to pass."""
    for _ in range(20):
        await asyncio.sleep(0)


async def outcome(task: asyncio.Task[Message]) -> object:
    """The body, or the exception, of a call that has to be over by now."""
    await settle()
    assert task.done(), "the call hangs"
    if task.cancelled():
        return "cancelled"
    return task.exception() or task.result().body


async def forever(_: object = None) -> None:
    await asyncio.Event().wait()


# -- who wins ---------------------------------------------------------------------------------------------------------


async def test_a_reply_ends_the_call(caller: Caller) -> None:
    task = await caller.start()
    assert len(caller.calls) == 1
    caller.line.answer(b'"yes"')
    assert await outcome(task) == b'"yes"'


async def test_an_error_reply_is_a_reply(caller: Caller) -> None:
    task = await caller.start()
    caller.line.answer(b'{"type":"T"}', "error")
    assert await outcome(task) == b'{"type":"T"}'


async def test_the_deadline_ends_the_call_and_not_a_moment_early(caller: Caller) -> None:
    task = await caller.start(timeout=10.0)
    await caller.clock.advance(9.999)
    assert not task.done()
    await caller.clock.advance(0.02)
    error = await outcome(task)
    assert isinstance(error, CallTimeout)
    assert isinstance(error, TimeoutError)
    assert (error.topic, error.timeout, error.state, error.where) == ("a.topic", 10.0, "queued", "a test")


async def test_each_call_has_its_own_reply_and_its_own_deadline(caller: Caller) -> None:
    first, second, third = await caller.start(1.0), await caller.start(5.0), await caller.start(9.0)
    caller.line.answer(b"3", number=2)
    await caller.clock.advance(2.0)
    caller.line.answer(b"2", number=1)
    assert isinstance(await outcome(first), CallTimeout)
    assert (await outcome(second), await outcome(third)) == (b"2", b"3")
    assert caller.line.opened == 1


async def test_calls_that_start_together_share_one_inbox(caller: Caller) -> None:
    opened = asyncio.Event()
    caller.line.opening = lambda: cast("Awaitable[None]", opened.wait())
    first, second = await caller.start(), await caller.start()
    opened.set()
    await settle()
    caller.line.answer(number=0)
    caller.line.answer(number=1)
    assert (await outcome(first), await outcome(second)) == (b"1", b"1")
    assert caller.line.opened == 1


async def test_every_attempt_has_an_id_that_nobody_can_guess(caller: Caller) -> None:
    message = Message("a.topic", b"null", correlation_id="guessed")
    caller.line.sending = lambda _: asyncio.sleep(0, caller.line.answer())
    for _ in range(2):
        await caller.calls.ask(TO, message, timeout=1.0, deadline=START + 1)
        assert len(message.correlation_id or "") == 32
    assert caller.line.sent[0].correlation_id != "guessed"


async def test_a_started_notice_changes_what_the_timeout_says(caller: Caller) -> None:
    task = await caller.start()
    caller.line.answer(b"null", "started")
    await settle()
    assert not task.done()
    await caller.clock.advance(11.0)
    error = await outcome(task)
    assert isinstance(error, CallTimeout)
    assert error.state == "started"
    assert "did not finish" in str(error)


async def test_a_reply_comes_after_any_number_of_started_notices(caller: Caller) -> None:
    task = await caller.start()
    for _ in range(3):
        caller.line.answer(b"null", "started")
    caller.line.answer()
    assert await outcome(task) == b"1"
    assert caller.stats.late_replies == 0


async def test_a_reply_that_overtakes_the_confirmation_is_the_result(caller: Caller) -> None:
    confirmed = asyncio.Event()
    caller.line.sending = lambda _: cast("Awaitable[None]", confirmed.wait())
    task = await caller.start()
    caller.line.answer()
    confirmed.set()
    assert await outcome(task) == b"1"


async def test_a_reply_is_the_result_even_if_the_confirmation_never_comes(caller: Caller) -> None:
    caller.line.sending = forever
    task = await caller.start()
    caller.line.answer()
    await caller.clock.advance(11.0)
    assert await outcome(task) == b"1"
    assert task.cancelling() == 0


# -- the deadline, while sending hangs --------------------------------------------------------------------------------


async def test_the_deadline_ends_a_call_that_hangs_in_sending(caller: Caller) -> None:
    caller.line.sending = forever
    task = await caller.start()
    await caller.clock.advance(11.0)
    assert isinstance(await outcome(task), CallTimeout)
    assert task.cancelling() == 0


async def test_the_deadline_ends_a_call_that_hangs_in_opening_the_inbox(caller: Caller) -> None:
    caller.line.opening = forever
    first, second = await caller.start(1.0), await caller.start(2.0)
    await caller.clock.advance(1.5)
    assert isinstance(await outcome(first), CallTimeout)
    assert not second.done()
    caller.line.opening = None
    await caller.clock.advance(1.0)
    assert isinstance(await outcome(second), CallTimeout)
    third = await caller.start()
    caller.line.answer()
    assert await outcome(third) == b"1"


async def test_a_started_notice_counts_while_sending_hangs_too(caller: Caller) -> None:
    caller.line.sending = forever
    task = await caller.start()
    caller.line.answer(b"null", "started")
    await caller.clock.advance(11.0)
    error = await outcome(task)
    assert isinstance(error, CallTimeout)
    assert error.state == "started"


async def test_a_driver_that_swallows_the_interruption_does_not_make_the_call_hang(caller: Caller) -> None:
    async def stubborn(_: Message) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            return

    caller.line.sending = stubborn
    task = await caller.start()
    await caller.clock.advance(11.0)
    assert isinstance(await outcome(task), CallTimeout)
    assert task.cancelling() == 0


async def test_a_driver_that_fails_when_interrupted_leaves_the_task_uncancelled(caller: Caller) -> None:
    async def fragile(_: Message) -> None:
        try:
            await forever()
        finally:
            raise ConnectionLost("in the middle")

    caller.line.sending = fragile
    task = await caller.start()
    await caller.clock.advance(11.0)
    assert isinstance(await outcome(task), ConnectionLost)
    assert task.cancelling() == 0


async def test_a_call_made_while_its_task_is_being_cancelled_still_has_a_deadline(caller: Caller) -> None:
    """Cleaning up after a cancellation may call, too, and its own interruption must not look like the caller's."""
    caller.line.sending = forever

    async def cleans_up() -> Message:
        try:
            await forever()
        finally:
            await caller.ask()
        raise AssertionError

    task = asyncio.create_task(cleans_up(), name="caller")
    await settle()
    task.cancel()
    await caller.clock.advance(11.0)
    assert isinstance(await outcome(task), CallTimeout)
    assert task.cancelling() == 1


async def test_a_deadline_that_has_passed_ends_the_call_at_once(caller: Caller) -> None:
    caller.line.sending = forever
    task = await caller.start(timeout=-1.0)
    assert isinstance(await outcome(task), CallTimeout)


async def test_a_deadline_that_never_comes_is_refused_and_leaves_nothing(caller: Caller) -> None:
    task = await caller.start(timeout=float("inf"))
    assert isinstance(await outcome(task), OverflowError)
    assert not caller.line.sent


# -- the caller is cancelled ------------------------------------------------------------------------------------------


def clogged_open(caller: Caller) -> None:
    caller.line.opening = forever


def clogged_send(caller: Caller) -> None:
    caller.line.sending = forever


def clear(caller: Caller) -> None:
    """The call waits for its reply."""


each_stage = pytest.mark.parametrize("stage", [clogged_open, clogged_send, clear])


@each_stage
async def test_a_cancelled_caller_is_cancelled_and_leaves_no_entry(
    caller: Caller, stage: Callable[[Caller], None]
) -> None:
    stage(caller)
    task = await caller.start()
    assert len(caller.calls) == 1
    task.cancel("by its owner")
    assert await outcome(task) == "cancelled"
    assert len(caller.calls) == 0


async def test_a_caller_that_waits_for_another_to_open_the_inbox_can_be_cancelled(caller: Caller) -> None:
    clogged_open(caller)
    first, second = await caller.start(), await caller.start()
    second.cancel()
    assert await outcome(second) == "cancelled"
    assert len(caller.calls) == 1
    first.cancel()
    assert await outcome(first) == "cancelled"


@each_stage
@pytest.mark.parametrize("first", ["deadline", "owner"])
async def test_a_caller_cancelled_at_the_very_deadline_is_cancelled(
    caller: Caller, stage: Callable[[Caller], None], first: str
) -> None:
    """While a call is being sent both arrive as one CancelledError; the owner's must not get lost in it."""
    stage(caller)
    task = await caller.start()
    (pending,) = caller.calls._pending.values()
    for cancel in [lambda: expire(pending), task.cancel][:: 1 if first == "deadline" else -1]:
        cancel()
    result = await outcome(task)
    assert result == "cancelled"
    assert task.cancelling() == 1


@each_stage
async def test_a_callers_own_timeout_is_not_a_call_timeout(caller: Caller, stage: Callable[[Caller], None]) -> None:
    stage(caller)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await caller.ask()
    assert not isinstance(caught.value, CallTimeout)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@each_stage
async def test_within_a_longer_timeout_it_is_a_call_timeout(caller: Caller, stage: Callable[[Caller], None]) -> None:
    stage(caller)

    async def patient() -> Message:
        async with asyncio.timeout(3600):
            return await caller.ask()

    task = asyncio.create_task(patient(), name="caller")
    await caller.clock.advance(11.0)
    assert isinstance(await outcome(task), CallTimeout)


@each_stage
async def test_a_task_group_that_fails_cancels_its_calls(caller: Caller, stage: Callable[[Caller], None]) -> None:
    stage(caller)
    calls = []

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            calls.append(tasks.create_task(caller.ask(), name="call"))
            await settle()
            raise KeyError("the body")

    with pytest.raises(ExceptionGroup) as caught:
        await group()
    assert [type(error) for error in caught.value.exceptions] == [KeyError]
    assert calls[0].cancelled()


@each_stage
async def test_a_call_timeout_fails_its_task_group(caller: Caller, stage: Callable[[Caller], None]) -> None:
    stage(caller)

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(caller.ask(), name="call")
            tasks.create_task(forever(), name="sibling")

    task = asyncio.create_task(group(), name="group")
    await caller.clock.advance(11.0)
    with pytest.raises(ExceptionGroup) as caught:
        await task
    assert [type(error) for error in caught.value.exceptions] == [CallTimeout]


@each_stage
async def test_a_cancelled_anyio_scope_ends_the_call_and_nothing_else(
    caller: Caller, stage: Callable[[Caller], None]
) -> None:
    stage(caller)
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_later(0.01, scope.cancel)
        await caller.ask()
    assert scope.cancelled_caught
    await asyncio.sleep(0)  # and what comes after is not cancelled


@each_stage
async def test_within_an_anyio_scope_it_is_a_call_timeout(caller: Caller, stage: Callable[[Caller], None]) -> None:
    stage(caller)
    errors = []

    async def scoped() -> None:
        with anyio.fail_after(3600) as scope:
            try:
                await caller.ask()
            except CallTimeout as error:
                errors.append(error)
            await asyncio.sleep(0)
        assert not scope.cancelled_caught

    task = asyncio.create_task(scoped(), name="caller")
    await caller.clock.advance(11.0)
    await task
    assert len(errors) == 1


@pytest.mark.parametrize("first", ["deadline", "scope"])
async def test_a_scope_cancelled_at_the_very_deadline_leaves_a_healthy_task(caller: Caller, first: str) -> None:
    clogged_send(caller)
    seen: list[object] = []

    async def scoped() -> None:
        try:
            with anyio.CancelScope() as scope:
                seen.append(scope)
                await caller.ask()
            seen.append("scope")
        except CallTimeout:
            seen.append("deadline")
        await asyncio.sleep(0)
        seen.append("went on")

    task = asyncio.create_task(scoped(), name="caller")
    await settle()
    (pending,) = caller.calls._pending.values()
    cancels: list[Callable[[], None]] = [
        lambda: expire(pending),
        cast("anyio.CancelScope", seen[0]).cancel,
    ]
    for cancel in cancels[:: 1 if first == "deadline" else -1]:
        cancel()
    await task
    assert seen[1] in ("scope", "deadline")
    assert seen[2] == "went on"
    assert task.cancelling() == 0


# -- replies that nobody asked for ------------------------------------------------------------------------------------


async def test_late_unknown_and_second_replies_are_counted_and_dropped(caller: Caller) -> None:
    timed_out = await caller.start(1.0)
    await caller.clock.advance(2.0)
    caller.line.answer(b"late")
    assert isinstance(await outcome(timed_out), CallTimeout)
    assert caller.stats.late_replies == 1
    task = await caller.start()
    caller.line.answer(b"1")
    caller.line.answer(b"2")
    assert caller.stats.late_replies == 2
    assert await outcome(task) == b"1"
    caller.line.answer(b"3")
    assert caller.stats.late_replies == 3


@pytest.mark.parametrize("correlation", [None, "", "0" * 32, "\ud800", "x" * 100_000])
@pytest.mark.parametrize("header", ["", "garbage", '{"v":1,"status":"started"}', Envelope("i", START).encode()])
async def test_forged_replies_are_counted_and_touch_nobody(
    caller: Caller, correlation: str | None, header: str
) -> None:
    task = await caller.start()
    caller.line.on_reply(Message("a.topic", b"forged", header, correlation_id=correlation))
    assert caller.stats.late_replies == 1
    caller.line.answer()
    assert await outcome(task) == b"1"


@pytest.mark.parametrize("header", ["garbage", "[]", '{"v":2,"status":"ok"}', '{"v":1,"status":"chunk"}'])
async def test_a_reply_that_cannot_be_read_ends_its_call_with_an_error(caller: Caller, header: str) -> None:
    task = await caller.start()
    caller.line.on_reply(Message("a.topic", b"", header, correlation_id=caller.line.sent[0].correlation_id))
    assert isinstance(await outcome(task), CodecError)
    caller.line.answer()
    assert caller.stats.late_replies == 1


# -- the way is cut ---------------------------------------------------------------------------------------------------


async def test_what_sending_raises_reaches_the_caller(caller: Caller) -> None:
    async def broken(_: Message) -> None:
        raise ConnectionLost("gone")

    caller.line.sending = broken
    assert isinstance(await outcome(await caller.start()), ConnectionLost)


async def test_an_inbox_that_could_not_be_opened_is_opened_by_the_next_call(caller: Caller) -> None:
    async def broken() -> None:
        raise ConnectionLost("gone")

    caller.line.opening = broken
    assert isinstance(await outcome(await caller.start()), ConnectionLost)
    caller.line.opening = None
    task = await caller.start()
    caller.line.answer()
    assert await outcome(task) == b"1"


async def test_the_loss_of_the_way_back_ends_all_calls_in_flight_and_no_later_one(caller: Caller) -> None:
    lost = [await caller.start(), await caller.start()]
    caller.line.on_lost()
    caller.line.on_lost()
    for task in lost:
        assert isinstance(await outcome(task), ReplyLost)
    later = await caller.start()
    caller.line.answer()
    assert await outcome(later) == b"1"


async def test_a_reply_that_was_there_before_the_loss_is_the_result(caller: Caller) -> None:
    task = await caller.start()
    caller.line.answer()
    caller.line.on_lost()
    assert await outcome(task) == b"1"


async def test_a_call_that_is_cancelled_or_fails_after_the_loss_leaves_no_unseen_error(caller: Caller) -> None:
    caller.line.sending = forever
    cancelled = await caller.start()
    caller.line.on_lost()
    cancelled.cancel()
    assert await outcome(cancelled) == "cancelled"
    del cancelled


async def test_a_loss_while_sending_hangs_ends_the_call_by_its_deadline(caller: Caller) -> None:
    caller.line.sending = forever
    task = await caller.start()
    caller.line.on_lost()
    await caller.clock.advance(11.0)
    assert isinstance(await outcome(task), ReplyLost)
    assert task.cancelling() == 0


# -- closing ----------------------------------------------------------------------------------------------------------


@each_stage
async def test_closing_ends_every_call_wherever_it_is(caller: Caller, stage: Callable[[Caller], None]) -> None:
    stage(caller)
    tasks = [await caller.start(), await caller.start()]
    await caller.calls.close()
    for task in tasks:
        assert isinstance(await outcome(task), ReplyLost)
        assert task.cancelling() == 0


async def test_closing_at_the_very_deadline_interrupts_only_once(caller: Caller) -> None:
    clogged_send(caller)
    task = await caller.start()
    (pending,) = caller.calls._pending.values()
    expire(pending)
    await caller.calls.close()
    assert isinstance(await outcome(task), CallTimeout)
    assert task.cancelling() == 0


async def test_closing_twice_closes_once_and_nothing_can_be_called_after(caller: Caller) -> None:
    task = await caller.start()
    caller.line.answer()
    assert await outcome(task) == b"1"
    await caller.calls.close()
    await caller.calls.close()
    assert caller.line.closed == 1
    assert isinstance(await outcome(await caller.start()), TransportClosed)
    assert len(caller.line.sent) == 1


async def test_what_was_never_used_can_be_closed(caller: Caller) -> None:
    await caller.calls.close()
    assert caller.line.opened == caller.line.closed == 0


async def test_a_deadline_that_strikes_after_the_end_of_its_call_is_nothing(caller: Caller) -> None:
    task = await caller.start()
    (pending,) = caller.calls._pending.values()
    caller.line.answer(b"1")
    expire(pending)
    assert await outcome(task) == b"1"
    assert len(caller.calls) == 0


# -- asked again ------------------------------------------------------------------------------------------------------


async def ask_again(caller: Caller, timeout: float = 10.0) -> asyncio.Task[Message]:
    """A call that may be handled twice."""
    message, deadline = Message("a.topic", b"null"), caller.clock.time() + timeout
    return asyncio.create_task(caller.calls.ask_again(TO, message, timeout=timeout, deadline=deadline))


async def sent(caller: Caller, count: int) -> None:
    """Wait until so many messages were sent; the pause before asking again is short, and real."""
    with anyio.fail_after(5):
        while len(caller.line.sent) < count:  # noqa: ASYNC110 - the line has no event, and a turn is all it takes
            await asyncio.sleep(0.005)


async def test_a_call_that_may_be_handled_twice_is_asked_again_when_the_way_back_is_lost(caller: Caller) -> None:
    call = await ask_again(caller)
    await sent(caller, 1)
    first = caller.line.sent[0].correlation_id
    caller.line.on_lost()
    await sent(caller, 2)
    assert caller.line.sent[1].correlation_id != first
    caller.line.answer(b'"second"')
    assert await outcome(call) == b'"second"'


async def test_a_broker_that_is_away_is_asked_again_until_the_deadline(caller: Caller) -> None:
    async def away(_: Message) -> None:
        caller.clock._now += 4.0
        raise ConnectionLost("the broker is away")

    caller.line.sending = away
    call = await ask_again(caller, timeout=10.0)
    with pytest.raises(ConnectionLost):
        await call
    assert len(caller.line.sent) == 3


async def test_a_timeout_of_a_call_that_was_asked_again_names_what_went_wrong_before(caller: Caller) -> None:
    call = await ask_again(caller, timeout=10.0)
    await sent(caller, 1)
    caller.line.on_lost()
    await sent(caller, 2)
    await caller.clock.advance(11.0)
    error = await outcome(call)
    assert isinstance(error, CallTimeout)
    assert isinstance(error.__cause__, ReplyLost)


async def test_a_bus_that_is_closed_asks_nobody_again(caller: Caller) -> None:
    call = await ask_again(caller)
    await sent(caller, 1)
    await caller.calls.close()
    assert isinstance(await outcome(call), ReplyLost)
    assert len(caller.line.sent) == 1
