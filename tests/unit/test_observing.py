"""What observers are told of, in which order, and that they harm nothing."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import pytest

from busline import Bus, Context, Reject, Retry, RetryLater
from busline.errors import CallTimeout, NoHandler, RemoteError
from busline.observing import PAIRS, STEPS, Observer
from busline.testing.scenes import eventually as until


class Diary(Observer):
    """Writes down the step, and what distinguishes it."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def note(self, *words: object) -> str:
        self.steps.append(" ".join(map(str, words)))
        return self.steps[-1]

    def sending(self, kind: Any, message: Any, envelope: Any, queue: Any) -> Any:
        message.headers = {**message.headers, "seen": "by the diary"}
        return self.note("sending", kind, message.topic)

    def sent(self, began: Any, error: Any) -> None:
        self.note("sent", began, type(error).__name__)

    def calling(self, message: Any, envelope: Any, queue: Any) -> Any:
        return self.note("calling", message.topic)

    def called(self, began: Any, reply: Any, error: Any) -> None:
        self.note("called", began, reply is not None, type(error).__name__)

    def late_reply(self) -> None:
        self.note("late")

    def received(self, delivery: Any, envelope: Any) -> None:
        self.note("received", envelope.attempt)

    def starting(self, delivery: Any, envelope: Any, handler: Any) -> Any:
        return self.note("starting", handler.declaration.topic)

    def ended(self, began: Any, outcome: Any, error: Any) -> None:
        self.note("ended", began, outcome, type(error).__name__)

    def retried(self, delivery: Any, envelope: Any, error: Any, delay: float) -> None:
        self.note("retried", round(delay, 2))

    def dead_lettered(self, delivery: Any, envelope: Any, reason: str, queue: str) -> None:
        self.note("dead_lettered", reason, queue)

    def dropped(self, delivery: Any, envelope: Any) -> None:
        self.note("dropped")

    def released(self, delivery: Any) -> None:
        self.note("released")

    def replying(self, delivery: Any, reply: Any) -> Any:
        return self.note("replying")

    def replied(self, began: Any, *, delivered: bool) -> None:
        self.note("replied", began, delivered)

    def settled(self, delivery: Any) -> None:
        self.note("settled")


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def bus(diary: Diary, request: pytest.FixtureRequest) -> Bus:
    bus = Bus(f"memory://{request.node.name}", service="w")
    bus.instrument(diary)

    @bus.handler("add")
    async def add(number: int) -> int:
        return number + 1

    @bus.handler("fail")
    async def fail() -> None:
        raise ValueError("out of paper")

    @bus.handler("again", retry=Retry(delays=[0.01], jitter=False))
    async def again(ctx: Context) -> str:
        if ctx.attempt == 1:
            raise OSError("not yet")
        return ctx.headers["seen"]

    @bus.handler("reject")
    async def reject() -> None:
        raise Reject("never")

    @bus.handler("pass on")
    async def pass_on(ctx: Context) -> None:
        await ctx.send("add", 1)

    @bus.handler("slow", soft_time_limit=None)
    async def slow() -> None:
        await asyncio.sleep(60)

    @bus.subscriber("user.*")
    async def on_user() -> None: ...

    return bus


async def test_a_call_is_told_from_its_departure_to_its_reply(bus: Bus, diary: Diary) -> None:
    async with bus.worker():
        assert await bus.call("add", 1) == 2
        await until(lambda: "settled" in diary.steps)
    steps = [step for step in diary.steps if not step.startswith("called")]
    assert steps == [
        "calling add",
        "received 1",
        "starting add",
        "ended starting add succeeded NoneType",
        "replying",
        "replied replying True",
        "settled",
    ]
    assert "called calling add True NoneType" in diary.steps


async def test_a_call_that_ends_without_its_handlers_success_says_how(bus: Bus, diary: Diary) -> None:
    async with bus.worker():
        with pytest.raises(RemoteError):
            await bus.call("fail")
        with pytest.raises(NoHandler):
            await bus.call("nobody")
        with pytest.raises(CallTimeout):
            await bus.call("slow", timeout=0.05)
        asked = asyncio.create_task(bus.call("slow"))
        await until(lambda: diary.steps.count("starting slow") == 2)
        asked.cancel()
        await asyncio.wait([asked])
        assert "called calling fail True NoneType" in diary.steps
        assert "called calling nobody False NoHandler" in diary.steps
        assert "called calling slow False CallTimeout" in diary.steps
        assert "called calling slow False CancelledError" in diary.steps
        bus.workers[0].abort()
    assert diary.steps.count("ended starting slow abandoned NoneType") == 2
    assert diary.steps.count("released") == 2


async def test_a_job_is_told_with_its_retry_and_its_headers_may_be_replaced(bus: Bus, diary: Diary) -> None:
    async with bus.worker():
        await bus.send("again")
        await until(lambda: diary.steps.count("settled") == 2)
    assert diary.steps == [
        "sending job again",
        "sent sending job again NoneType",
        "received 1",
        "starting again",
        "retried 0.01",
        "ended starting again retried OSError",
        "settled",
        "received 2",
        "starting again",
        "ended starting again succeeded NoneType",
        "settled",
    ]


async def test_a_dead_letter_is_told_with_its_reason(bus: Bus, diary: Diary) -> None:
    async with bus.worker():
        await bus.send("reject")
        await until(lambda: "settled" in diary.steps)
    assert diary.steps[-3:] == ["ended starting reject failed Reject", "dead_lettered rejected w.dead", "settled"]


async def test_what_a_handler_sends_leaves_after_it_and_an_event_is_told_as_such(bus: Bus, diary: Diary) -> None:
    async with bus.worker():
        await bus.send("pass on")
        await bus.publish("user.created")
        await until(lambda: diary.steps.count("settled") == 3)
    assert diary.steps.index("sending job add") < diary.steps.index("sent sending job add NoneType")
    assert "sent sending event user.created NoneType" in diary.steps
    with pytest.raises(NoHandler):
        async with bus:
            await bus.send("nobody")
    assert "sent sending job nobody NoHandler" in diary.steps


async def test_an_observer_that_fails_harms_neither_the_message_nor_the_others(
    bus: Bus, diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Observer):
        def received(self, delivery: Any, envelope: Any) -> None:
            raise OSError("the disk is full")

        def starting(self, delivery: Any, envelope: Any, handler: Any) -> Any:
            raise OSError("the disk is full")

        def ended(self, began: Any, outcome: Any, error: Any) -> None:
            raise AssertionError("what did not begin does not end")

        def called(self, began: Any, reply: Any, error: Any) -> None:
            raise OSError("the disk is full")

    bus.instrument(Broken(), diary, diary)
    second = Diary()
    bus.instrument(second)
    async with bus.worker():
        assert await bus.call("add", 1) == 2
        await until(lambda: "settled" in second.steps)
    assert diary.steps == second.steps
    failures = [record for record in caplog.records if getattr(record, "event", "") == "observer_failed"]
    assert sorted(record.getMessage().split()[2].rpartition(".")[2] for record in failures) == [
        *("called", "received", "starting")
    ]
    assert all(record.levelno == logging.ERROR and record.exc_info for record in failures)


async def test_an_attempt_that_asks_for_a_later_one_is_a_retry(diary: Diary) -> None:
    bus = Bus("memory://retry-later", service="w")
    bus.instrument(diary)

    @bus.handler("wait")
    async def wait(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise RetryLater(0.01)

    async with bus.worker():
        await bus.send("wait")
        await until(lambda: diary.steps.count("settled") == 2)
    assert "ended starting wait retried RetryLater" in diary.steps


def test_every_step_of_an_observer_is_passed_on() -> None:
    steps = {name for name, _ in inspect.getmembers(Observer, inspect.isfunction) if not name.startswith("_")}
    assert steps == {*STEPS, *PAIRS, *PAIRS.values(), "instrumented"}
