"""SoftTimeLimitExceeded, wherever a handler happens to wait: raised there, everything behind it cleaned up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from itertools import count
from typing import Any

import anyio
import anyio.to_thread
import pytest

from busline import Bus, Context, RemoteError, Retry
from busline.driving import Drive, ends_task
from busline.errors import SoftTimeLimitExceeded
from busline.transports.base import Inspectable
from busline.wire import decode_envelope

numbers = count()
NAME: ContextVar[str] = ContextVar("NAME", default="outside")
SOFT = 0.05


class Scene:
    """What happened while a handler was interrupted."""

    def __init__(self, bus: Bus | None = None) -> None:
        self.bus = bus
        self.running = 0
        self.ended: list[str] = []
        self.entered = asyncio.Event()

    async def forever(self) -> None:
        """A child that must not outlive the handler."""
        self.running += 1
        self.entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.running -= 1
            self.ended.append("child")


async def sleeping(scene: Scene) -> None:
    scene.entered.set()
    await asyncio.sleep(3600)


async def waiting_for(scene: Scene) -> None:
    await asyncio.wait_for(scene.forever(), 3600)


async def gathering(scene: Scene) -> None:
    await asyncio.gather(scene.forever(), scene.forever())


async def in_a_task_group(scene: Scene) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.forever())
        group.create_task(scene.forever())


async def in_the_body_of_a_task_group(scene: Scene) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.forever())
        await asyncio.sleep(3600)


async def in_nested_task_groups(scene: Scene) -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(scene.forever())
        await in_the_body_of_a_task_group(scene)


async def within_a_timeout(scene: Scene) -> None:
    async with asyncio.timeout(3600):
        await scene.forever()


async def in_an_anyio_task_group(scene: Scene) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(scene.forever)
        group.start_soon(scene.forever)


async def in_the_body_of_an_anyio_task_group(scene: Scene) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(scene.forever)
        await anyio.sleep(3600)


async def in_a_cancel_scope(scene: Scene) -> None:
    with anyio.CancelScope():
        await scene.forever()


async def in_a_shielded_scope(scene: Scene) -> None:
    with anyio.CancelScope(shield=True):
        await scene.forever()


async def moving_on_after(scene: Scene) -> None:
    with anyio.move_on_after(3600):
        await scene.forever()


async def failing_after(scene: Scene) -> None:
    with anyio.fail_after(3600):
        await scene.forever()


async def in_a_thread(scene: Scene) -> None:
    scene.entered.set()
    await anyio.to_thread.run_sync(time.sleep, SOFT * 4)


async def in_a_thread_of_asyncio(scene: Scene) -> None:
    scene.entered.set()
    await asyncio.to_thread(time.sleep, SOFT * 4)


async def awaiting_a_task(scene: Scene) -> None:
    await asyncio.create_task(scene.forever(), name="child")


async def in_an_async_generator(scene: Scene) -> None:
    async def rows() -> AsyncIterator[int]:
        try:
            await scene.forever()
            yield 1
        finally:
            await asyncio.sleep(0)
            scene.ended.append("generator")

    async for _ in rows():
        raise AssertionError("nothing was yielded")
    raise AssertionError("it ended by itself")


async def in_an_async_with(scene: Scene) -> None:
    @asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0)
            scene.ended.append("rolled back")

    async with transaction():
        await scene.forever()


async def on_an_event(scene: Scene) -> None:
    scene.entered.set()
    await anyio.Event().wait()


async def for_a_lock(scene: Scene) -> None:
    lock = asyncio.Lock()
    async with lock:
        scene.entered.set()
        await lock.acquire()


async def busy(scene: Scene) -> None:
    scene.entered.set()
    while scene.entered.is_set():  # noqa: ASYNC110  # it always waits for the next turn only
        await asyncio.sleep(0)


PLACES: list[Callable[[Scene], Awaitable[None]]] = [
    sleeping,
    waiting_for,
    gathering,
    in_a_task_group,
    within_a_timeout,
    in_an_anyio_task_group,
    in_the_body_of_an_anyio_task_group,
    in_a_cancel_scope,
    in_a_shielded_scope,
    moving_on_after,
    failing_after,
    in_a_thread,
    in_a_thread_of_asyncio,
    awaiting_a_task,
    in_an_async_generator,
    in_an_async_with,
    on_an_event,
    for_a_lock,
    busy,
]
IN_A_GROUP = [in_the_body_of_a_task_group, in_nested_task_groups]
"""Where `except SoftTimeLimitExceeded` around it does not catch it, as with any exception: it takes `except*`."""
each_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
every_place = pytest.mark.parametrize("place", PLACES + IN_A_GROUP, ids=lambda place: place.__name__)


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def driven(handler: Callable[[], Any], ready: asyncio.Event, error: asyncio.CancelledError) -> Any:
    """The result of `handler` in this task, interrupted with `error` as soon as it waits."""
    drive = Drive(copy_context(), handler())

    async def interrupt() -> None:
        await ready.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        drive.interrupt(error)

    interrupting = asyncio.create_task(interrupt(), name="interrupt")
    try:
        return await drive
    finally:
        await interrupting


# -- the drive itself -------------------------------------------------------------------------------------------------


@every_place
async def test_what_a_coroutine_lets_through_comes_out_as_itself(place: Callable[[Scene], Awaitable[None]]) -> None:
    scene, error = Scene(), SoftTimeLimitExceeded(SOFT)
    with pytest.raises(SoftTimeLimitExceeded) as caught:
        await driven(lambda: place(scene), scene.entered, error)
    assert caught.value is error
    assert (scene.running, cancelling()) == (0, 0)


@each_place
async def test_a_coroutine_may_catch_it_clean_up_and_return(place: Callable[[Scene], Awaitable[None]]) -> None:
    scene = Scene()

    async def handler() -> str:
        try:
            await place(scene)
        except SoftTimeLimitExceeded:
            assert (scene.running, cancelling()) == (0, 0)
            await asyncio.sleep(0)
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            with anyio.move_on_after(0.001) as scope:
                await anyio.sleep(60)
            assert scope.cancelled_caught
            return "cleaned up"
        finally:
            scene.ended.append("finally")
        return "never interrupted"

    assert await driven(handler, scene.entered, SoftTimeLimitExceeded(SOFT)) == "cleaned up"
    assert scene.ended[-1] == "finally"
    assert cancelling() == 0


@pytest.mark.parametrize("place", IN_A_GROUP, ids=lambda place: place.__name__)
async def test_from_the_body_of_a_task_group_it_comes_in_a_group(place: Callable[[Scene], Awaitable[None]]) -> None:
    scene = Scene()

    async def handler() -> str:
        try:
            await place(scene)
        except* SoftTimeLimitExceeded:
            scene.ended.append("caught")
        return "cleaned up"

    assert await driven(handler, scene.entered, SoftTimeLimitExceeded(SOFT)) == "cleaned up"
    assert (scene.running, scene.ended[-1], cancelling()) == (0, "caught", 0)


async def test_a_group_with_other_errors_stays_a_group() -> None:
    scene = Scene()

    async def handler() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails_when_cancelled(scene))
            await asyncio.sleep(3600)

    with pytest.raises(BaseExceptionGroup) as caught:
        await driven(handler, scene.entered, SoftTimeLimitExceeded(SOFT))
    # Since 3.13, asyncio keeps whatever is a CancelledError out of a group with other errors.
    assert {KeyError} <= {type(error) for error in caught.value.exceptions} <= {SoftTimeLimitExceeded, KeyError}


async def fails_when_cancelled(scene: Scene) -> None:
    try:
        await scene.forever()
    except asyncio.CancelledError:
        raise KeyError("cleaning up failed") from None


async def test_a_group_of_the_coroutines_own_is_left_alone() -> None:
    async def handler() -> None:
        raise BaseExceptionGroup("own", [SoftTimeLimitExceeded(SOFT)])

    with pytest.raises(BaseExceptionGroup, match="own"):
        await Drive(copy_context(), handler())


async def test_a_shielded_task_goes_on_and_its_waiter_does_not() -> None:
    scene = Scene()
    shielded = asyncio.create_task(scene.forever(), name="shielded")

    async def handler() -> None:
        await asyncio.shield(shielded)

    with pytest.raises(SoftTimeLimitExceeded):
        await driven(handler, scene.entered, SoftTimeLimitExceeded(SOFT))
    assert scene.running == 1
    shielded.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shielded
    assert cancelling() == 0


async def test_a_task_that_ignores_its_cancellation_does_not_hide_the_limit() -> None:
    ready = asyncio.Event()

    async def stubborn() -> str:
        ready.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "ignored"
        return "slept"

    async def handler() -> str:
        try:
            return await asyncio.create_task(stubborn(), name="stubborn")
        except SoftTimeLimitExceeded:
            assert cancelling() == 0
            return "cleaned up"

    assert await driven(handler, ready, SoftTimeLimitExceeded(SOFT)) == "cleaned up"
    assert cancelling() == 0


async def test_a_coroutine_that_ignores_it_goes_on() -> None:
    scene = Scene()

    async def handler() -> str:
        try:
            await scene.forever()
        except SoftTimeLimitExceeded:
            pass
        await asyncio.sleep(0)
        return "went on"

    assert await driven(handler, scene.entered, SoftTimeLimitExceeded(SOFT)) == "went on"


async def test_it_is_raised_once() -> None:
    ready, seen = asyncio.Event(), []

    async def handler() -> str:
        ready.set()
        try:
            await asyncio.sleep(3600)
        except SoftTimeLimitExceeded as error:
            seen.append(error)
        await asyncio.sleep(0.01)
        return "done"

    drive = Drive(copy_context(), handler())

    async def interrupt() -> None:
        await ready.wait()
        drive.interrupt(SoftTimeLimitExceeded(1))
        drive.interrupt(SoftTimeLimitExceeded(2))

    interrupting = asyncio.create_task(interrupt(), name="interrupt")
    assert await drive == "done"
    await interrupting
    assert [error.limit for error in seen] == [1]


async def test_nothing_is_interrupted_before_it_began() -> None:
    async def handler() -> str:
        return "done"

    drive = Drive(copy_context(), handler())
    drive.interrupt(SoftTimeLimitExceeded(SOFT))
    assert await drive == "done"


async def test_what_is_about_to_go_on_is_interrupted_at_its_await() -> None:
    """The limit passes in the very turn of the loop in which what the coroutine waits for has come."""
    ready = asyncio.Event()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handler() -> str:
        ready.set()
        try:
            return await future
        except SoftTimeLimitExceeded:
            return "interrupted"

    drive = Drive(copy_context(), handler())

    async def both() -> None:
        await ready.wait()
        future.set_result("came")
        drive.interrupt(SoftTimeLimitExceeded(SOFT))

    interrupting = asyncio.create_task(both(), name="both")
    assert await drive == "interrupted"
    await interrupting
    assert cancelling() == 0


async def test_what_is_awaited_may_fail_and_the_coroutine_may_handle_it() -> None:
    async def fails() -> None:
        raise KeyError("broken")

    async def handler() -> str:
        try:
            await asyncio.create_task(fails(), name="fails")
        except KeyError:
            return "handled"
        return "never failed"

    assert await Drive(copy_context(), handler()) == "handled"


async def test_a_coroutine_that_is_given_up_cleans_up_in_its_own_variables() -> None:
    closed = []

    async def handler() -> None:
        NAME.set("inside")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append(NAME.get())

    drive = Drive(copy_context(), handler()).__await__()
    drive.send(None)
    drive.close()
    assert closed == ["inside"]


async def test_a_cancellation_of_the_task_stays_one() -> None:
    ready = asyncio.Event()

    async def handler() -> None:
        ready.set()
        await asyncio.sleep(3600)

    async def runs() -> None:
        await Drive(copy_context(), handler())

    task = asyncio.create_task(runs(), name="cancelled")
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert type(caught.value) is asyncio.CancelledError


async def test_a_cancellation_at_the_same_time_is_not_lost() -> None:
    """The soft limit comes first, and the task still counts as cancelled."""
    ready, seen = asyncio.Event(), []

    async def handler() -> str:
        ready.set()
        try:
            await asyncio.sleep(3600)
        except SoftTimeLimitExceeded:
            seen.append(cancelling())
        return "done"

    async def runs(drive: Drive) -> str:
        return str(await drive)

    drive = Drive(copy_context(), handler())
    task = asyncio.create_task(runs(drive), name="both")
    await ready.wait()
    drive.interrupt(SoftTimeLimitExceeded(SOFT))
    task.cancel()
    await asyncio.wait([task])
    assert seen == [1]
    assert task.cancelling() == 1


async def test_the_variables_of_a_coroutine_are_its_own_while_it_cleans_up() -> None:
    ready = asyncio.Event()
    variables = copy_context()

    async def handler() -> None:
        NAME.set("inside")
        ready.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            assert NAME.get() == "inside"

    drive = Drive(variables, handler())

    async def interrupt() -> None:
        await ready.wait()
        drive.interrupt(SoftTimeLimitExceeded(SOFT))

    interrupting = asyncio.create_task(interrupt(), name="interrupt")
    with pytest.raises(SoftTimeLimitExceeded):
        await drive
    await interrupting
    assert NAME.get() == "outside"
    assert variables[NAME] == "inside"


async def test_whose_error_it_is() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert not ends_task(asyncio.CancelledError(), task)
    assert not ends_task(GeneratorExit(), task)
    assert not ends_task(asyncio.CancelledError(), None)
    task.cancel()
    try:
        assert ends_task(asyncio.CancelledError(), task)
        assert not ends_task(SoftTimeLimitExceeded(1), task)
        assert not ends_task(KeyError(), task)
    finally:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        task.uncancel()
    other = asyncio.create_task(asyncio.sleep(0), name="other")
    assert ends_task(GeneratorExit(), other)
    await other


# -- through a worker -------------------------------------------------------------------------------------------------


@pytest.fixture
def bus() -> Bus:
    return Bus(f"memory://soft-{next(numbers)}", service="svc", retry=Retry(max_retries=0))


def others() -> set[str]:
    """The tasks that are not ours: children that were left running."""
    names = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    return {name for name in names if not name.startswith("busline ")}


async def nested_call(scene: Scene) -> None:
    assert scene.bus is not None
    await scene.bus.call("never", timeout=3600)


@pytest.mark.parametrize("place", [*PLACES, *IN_A_GROUP, nested_call], ids=lambda place: place.__name__)
async def test_it_is_the_failure_of_a_handler_that_lets_it_through(
    bus: Bus, place: Callable[[Scene], Awaitable[None]]
) -> None:
    scene = Scene(bus)
    bus.handler("never", queue="never")(scene.forever)

    @bus.handler("work", soft_time_limit=SOFT, time_limit=30)
    async def work() -> None:
        try:
            await place(scene)
        finally:
            scene.ended.append("finally")

    async with bus.worker(concurrency=1, drain_timeout=0):
        with pytest.raises(RemoteError) as caught:
            await bus.call("work", timeout=10)
        assert caught.value.type == "SoftTimeLimitExceeded"
        assert scene.ended[-1] == "finally"
        assert others() == set()
        assert (scene.running, bus.calls_in_flight) == ((1, 0) if place is nested_call else (0, 0))
        with pytest.raises(RemoteError):  # the slot goes on, with a task that is not cancelled
            await bus.call("work", timeout=10)
    assert bus.stats.failed == 2


@pytest.mark.parametrize("place", [*PLACES, nested_call], ids=lambda place: place.__name__)
async def test_a_handler_may_clean_up_and_answer(bus: Bus, place: Callable[[Scene], Awaitable[None]]) -> None:
    scene = Scene(bus)
    bus.handler("never", queue="never")(scene.forever)

    @bus.handler("fine", queue="others")
    async def fine() -> str:
        return "fine"

    @bus.handler("work", soft_time_limit=SOFT, time_limit=30)
    async def work(ctx: Context) -> str:
        try:
            await place(scene)
        except SoftTimeLimitExceeded:
            return str(await ctx.call("fine", timeout=5)) + f" {cancelling()}"
        return "never interrupted"

    async with bus.worker(concurrency=1, drain_timeout=0):
        assert await bus.call("work", timeout=10) == "fine 0"
    assert bus.stats.failed == 0


# -- races ------------------------------------------------------------------------------------------------------------


async def outcome_of(call: Awaitable[str]) -> str:
    try:
        return await call
    except RemoteError as error:
        return error.type


async def test_at_the_very_end_of_a_handler_it_is_raised_or_not_and_harms_nothing(bus: Bus) -> None:
    @bus.handler("work", soft_time_limit=0.02, time_limit=30)
    async def work(seconds: float) -> str:
        await asyncio.sleep(seconds)
        assert cancelling() == 0
        return "in time"

    async with bus.worker(concurrency=1):
        ends = [outcome_of(bus.call("work", 0.018 + step * 0.0008, timeout=10)) for step in range(20)]
        assert {await end for end in ends} <= {"in time", "SoftTimeLimitExceeded"}
        assert await bus.call("work", 0, timeout=10) == "in time"
    assert bus.stats.handled + bus.stats.failed == 21


async def test_who_cleans_up_for_too_long_runs_into_the_hard_limit(bus: Bus) -> None:
    ended = []

    @bus.handler("work", soft_time_limit=0.02, time_limit=0.06)
    async def work() -> str:
        try:
            await asyncio.sleep(3600)
        except SoftTimeLimitExceeded:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(1)
        return "too late"

    async with bus.worker(concurrency=1):
        for number in range(1, 3):
            with pytest.raises(RemoteError) as caught:
                await bus.call("work", timeout=10)
            assert caught.value.type == "TimeLimitExceeded"
            assert len(ended) == number


async def test_both_limits_in_the_same_instant_are_one_failure(bus: Bus) -> None:
    ended = []

    @bus.handler("work", soft_time_limit=0.02, time_limit=0.0200001)
    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(1)

    async with bus.worker(concurrency=1):
        for number in range(1, 6):
            with pytest.raises(RemoteError) as caught:
                await bus.call("work", timeout=10)
            assert caught.value.type in ("TimeLimitExceeded", "SoftTimeLimitExceeded")
            assert len(ended) == number
    assert bus.stats.failed == 5


@pytest.mark.parametrize("first", ["limit", "drain"])
@pytest.mark.parametrize("raises", [True, False])
async def test_a_worker_that_leaves_in_the_same_instant_loses_nothing(bus: Bus, raises: bool, first: str) -> None:
    started, seen = asyncio.Event(), []

    @bus.handler("work", soft_time_limit=3600)
    async def work() -> str:
        try:
            started.set()
            await asyncio.sleep(3600)
        except SoftTimeLimitExceeded:
            seen.append(cancelling())
            if raises:
                raise
        return "cleaned up"

    async with bus:
        async with bus.worker(concurrency=1) as worker:
            await bus.send("work")
            await asyncio.wait_for(started.wait(), 5)
            (slot,) = worker._queues[0]._slots
            assert slot.work is not None
            assert slot.work.drive is not None
            both = [lambda: slot.work.drive.interrupt(SoftTimeLimitExceeded(1)), worker.abort]  # type: ignore[union-attr]  # checked above
            for happens in both if first == "limit" else reversed(both):
                happens()
            await worker.wait()
        assert seen == [0 if first == "limit" else 1]  # anyio does not cancel what is being woken
        assert (bus.stats.failed, bus.stats.handled) == ((1, 0) if raises else (0, 1))
        assert isinstance(bus.transport, Inspectable)
        stats = {stats.name: stats for stats in await bus.transport.stats()}
        assert stats["svc"].leased == 0
        assert stats["svc"].ready + stats["svc.dead"].ready + bus.stats.handled == 1
        assert others() == set()


async def test_a_drain_that_cancels_a_handler_which_cleans_up_gives_its_message_back(bus: Bus) -> None:
    cleaning = asyncio.Event()

    @bus.handler("work", soft_time_limit=0.02, time_limit=30)
    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            await asyncio.sleep(3600)

    async with bus:
        async with bus.worker(concurrency=1, drain_timeout=0):
            await bus.send("work")
            await asyncio.wait_for(cleaning.wait(), 5)
        assert isinstance(bus.transport, Inspectable)
        (message,) = await bus.transport.peek("svc", 10)
        assert decode_envelope(message, 0.0).attempt == 1
        assert others() == set()
