"""Gates: what keeps a queue from being consumed, for how long, and how it resumes by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from busline.clock import SystemClock
from busline.gates import Gate, HealthGate
from busline.options import Check, OnDown
from busline.testing.clock import VirtualClock


class Scene:
    """A gate on a virtual clock, and how often it told of a change."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.changes = 0
        self.gate = Gate("q", self.clock, self._changed)
        self.answers: dict[str, str] = {}

    def _changed(self) -> None:
        self.changes += 1

    @property
    def open(self) -> bool:
        assert self.gate.opened.is_set() is not bool(self.gate.reasons)
        return self.gate.opened.is_set()

    def health(
        self, function: Callable[[], Awaitable[object]], on_down: OnDown = "pause", name: str = "check 1"
    ) -> HealthGate:
        if not isinstance(self.gate.clock, SystemClock):
            self.gate = Gate("q", SystemClock(), self._changed)  # so that a check comes round by itself
        return HealthGate(name, Check(function, period=0.01, timeout=0.05), on_down, self.gate, self.answers)


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_gate_is_open_while_nobody_has_a_reason(scene: Scene) -> None:
    assert scene.open
    scene.gate.close("a", "of a")
    scene.gate.close("b", "of b")
    assert not scene.open
    assert scene.gate.reasons == {"a": "of a", "b": "of b"}
    scene.gate.open("a")
    assert not scene.open
    scene.gate.open("b")
    assert scene.open
    assert scene.changes == 2


async def test_one_reason_given_twice_is_one(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.gate.close("a", "first")
    scene.gate.close("a", "again")
    assert scene.gate.reasons == {"a": "first"}
    assert len(caplog.records) == 1
    scene.gate.open("a")
    scene.gate.open("a")
    scene.gate.open("never given")
    assert scene.open
    assert scene.changes == 2


async def test_what_waits_goes_on_when_it_opens(scene: Scene) -> None:
    scene.gate.close("a", "of a")
    waiting = asyncio.create_task(scene.gate.opened.wait(), name="slot")
    await asyncio.sleep(0)
    assert not waiting.done()
    scene.gate.open("a")
    await asyncio.wait_for(waiting, 5)


async def test_a_pause_ends_by_itself_and_to_the_second(scene: Scene) -> None:
    scene.gate.close_for("rule", "asked for", 600)
    assert scene.gate.reasons == {"rule": "asked for, for 600 s"}
    await scene.clock.advance(599.9)
    assert not scene.open
    await scene.clock.advance(0.1)
    assert scene.open


async def test_a_longer_pause_prolongs_and_a_shorter_one_does_not_shorten(scene: Scene) -> None:
    scene.gate.close_for("rule", "first", 10)
    await scene.clock.advance(5)
    scene.gate.close_for("rule", "longer", 10)
    scene.gate.close_for("rule", "shorter", 1)
    await scene.clock.advance(5)
    assert not scene.open
    await scene.clock.advance(4.9)
    assert not scene.open
    await scene.clock.advance(0.1)
    assert scene.open
    await scene.clock.advance(100)
    assert scene.changes == 2


async def test_pauses_of_two_reasons_are_independent(scene: Scene) -> None:
    scene.gate.close_for("rule", "x", 10)
    scene.gate.close_for("breaker", "y", 20)
    await scene.clock.advance(10)
    assert list(scene.gate.reasons) == ["breaker"]
    await scene.clock.advance(10)
    assert scene.open


async def test_a_pause_may_be_taken_back_and_given_again(scene: Scene) -> None:
    scene.gate.close_for("rule", "x", 10)
    await scene.clock.advance(10)
    scene.gate.close_for("rule", "x", 10)
    await scene.clock.advance(9)
    assert not scene.open
    await scene.clock.advance(1)
    assert scene.open


class StandsBack(VirtualClock):
    """A machine whose clock is set back: timers fire, and it is not yet so late."""

    back = 0.0

    def time(self) -> float:
        return super().time() - self.back


async def test_a_clock_that_is_set_back_prolongs_a_pause_and_does_not_make_it_endless() -> None:
    clock = StandsBack()
    gate = Gate("q", clock, lambda: None)
    gate.close_for("rule", "x", 10)
    clock.back = 3.0
    await clock.advance(10)
    assert gate.reasons
    clock.back = 0.0
    await clock.advance(3)
    await clock.advance(1)
    assert not gate.reasons


# -- health checks ----------------------------------------------------------------------------------------------------


async def healthy() -> None: ...


async def says_yes() -> bool:
    return True


async def says_no() -> bool:
    return False


async def raises() -> None:
    raise ConnectionError("file-\udcff")


async def hangs() -> None:
    await asyncio.sleep(3600)


async def cancels() -> None:
    raise asyncio.CancelledError


async def times_out() -> None:
    raise TimeoutError("its own")


async def leaves() -> None:
    raise SystemExit(3)


def not_async() -> bool:
    return True


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


async def mumbles() -> None:
    raise Unprintable


@pytest.mark.parametrize("check", [healthy, says_yes])
async def test_a_check_that_returns_is_healthy(scene: Scene, check: Callable[[], Awaitable[object]]) -> None:
    await scene.health(check).first()
    assert scene.open


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (says_no, "says_no said no"),
        (raises, "raises: ConnectionError: file-?"),
        (hangs, "hangs did not answer within 0.05 s"),
        (cancels, "cancels: CancelledError: "),
        (times_out, "times_out: TimeoutError: its own"),
        (leaves, "leaves: SystemExit: 3"),
        (mumbles, "mumbles: Unprintable: (its text cannot be had: RuntimeError)"),
        (not_async, "not_async: TypeError: object bool can't be used in 'await' expression"),
    ],
)
async def test_whatever_else_it_does_means_down(
    scene: Scene, check: Callable[[], Awaitable[object]], says: str
) -> None:
    await scene.health(check).first()
    assert scene.gate.reasons == {"check 1": says}


async def test_a_worker_that_leaves_ends_a_check_that_hangs(scene: Scene) -> None:
    task = asyncio.create_task(scene.health(hangs).first(), name="check")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.open


class ModelServer:
    """A check that can be switched, and that knows how often it was asked since."""

    def __init__(self) -> None:
        self.up = True
        self.asked = 0

    async def is_up(self) -> bool:
        self.asked += 1
        return self.up

    async def turn(self, up: bool) -> None:
        """Returns when it was noticed."""
        self.up, self.asked = up, 0
        async with asyncio.timeout(5):
            while self.asked < 3:  # noqa: ASYNC110  # a check has a period of its own
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("on_down", ["pause", "answer", "warn"])
async def test_a_queue_goes_down_and_comes_back_by_itself(
    scene: Scene, on_down: OnDown, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server = ModelServer()
    task = asyncio.create_task(scene.health(server.is_up, on_down).run(), name="check")
    try:
        for _ in range(2):
            await server.turn(False)
            assert scene.open is (on_down != "pause")
            assert bool(scene.answers) is (on_down == "answer")
            await server.turn(True)
            assert scene.open
            assert not scene.answers
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2  # once each time it goes down, not once a period
    assert all("is_up said no" in warning for warning in warnings)


async def test_checks_of_one_name_do_not_speak_for_each_other(scene: Scene) -> None:
    down, up = scene.health(says_no, name="check 1"), scene.health(says_yes, name="check 2")
    await down.first()
    await up.first()
    assert not scene.open


async def test_functions_of_one_name_are_two_checks() -> None:
    from busline import Bus

    async def lambda_like() -> bool:
        return False

    async def other() -> bool:
        return True

    other.__name__ = lambda_like.__name__
    bus = Bus("memory://gates", service="svc")

    @bus.handler("work", requires=[lambda_like, other])
    async def work() -> None: ...

    async with bus.worker() as worker:
        assert worker.paused == {"svc.work": ["lambda_like said no"]}


async def test_a_check_whose_name_nobody_gave_is_shown_as_it_is() -> None:
    class Callable_:
        async def __call__(self) -> None: ...

        def __repr__(self) -> str:
            return "<the check>"

    assert Check(Callable_()).name == "<the check>"
