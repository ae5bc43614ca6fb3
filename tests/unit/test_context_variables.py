"""`Drive`: a coroutine in the current task, in context variables of its own."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import pytest

from busline.driving import Drive

NAME: ContextVar[str] = ContextVar("NAME", default="outside")


def isolated(coroutine: Coroutine[Any, Any, Any]) -> Drive:
    return Drive(copy_context(), coroutine)


async def test_it_returns_what_the_coroutine_returns() -> None:
    async def answers() -> int:
        await asyncio.sleep(0)
        return 5

    assert await isolated(answers()) == 5


async def test_it_raises_what_the_coroutine_raises() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        await isolated(fails())


async def test_what_is_set_inside_is_seen_inside_only_across_every_await() -> None:
    async def sets() -> list[str]:
        NAME.set("inside")
        seen = [NAME.get()]
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(NAME.get())
        return seen

    assert await isolated(sets()) == ["inside"] * 4
    assert NAME.get() == "outside"


async def test_what_is_set_outside_meanwhile_is_not_seen_inside() -> None:
    async def looks() -> str:
        await asyncio.sleep(0)
        return NAME.get()

    variables = copy_context()
    token = NAME.set("changed")
    assert await Drive(variables, looks()) == "outside"
    NAME.reset(token)


async def test_two_at_once_do_not_see_each_other() -> None:
    async def sets(name: str) -> str:
        NAME.set(name)
        await asyncio.sleep(0)
        return NAME.get()

    async def run(name: str) -> Any:
        return await isolated(sets(name))

    assert await asyncio.gather(run("a"), run("b"), run("c")) == ["a", "b", "c"]


async def test_tasks_and_threads_that_it_starts_inherit_its_variables() -> None:
    async def starts() -> tuple[str, str]:
        NAME.set("inside")
        task = asyncio.create_task(looks(), name="child")
        return await task, await anyio.to_thread.run_sync(NAME.get)

    async def looks() -> str:
        return NAME.get()

    assert await isolated(starts()) == ("inside", "inside")


async def test_it_runs_in_the_current_task() -> None:
    async def which() -> object:
        await asyncio.sleep(0)
        return asyncio.current_task()

    assert await isolated(which()) is asyncio.current_task()


async def test_one_may_await_another() -> None:
    async def inner() -> str:
        NAME.set("inner")
        await asyncio.sleep(0)
        return NAME.get()

    async def outer() -> tuple[str, str]:
        NAME.set("outer")
        return await isolated(inner()), NAME.get()

    assert await isolated(outer()) == ("inner", "outer")


async def test_a_cancellation_reaches_the_coroutine_with_its_message() -> None:
    seen: list[Any] = []

    async def waits() -> None:
        NAME.set("inside")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            seen.extend((error.args, NAME.get()))
            raise

    async def run() -> None:
        await isolated(waits())

    task = asyncio.create_task(run(), name="isolated")
    await asyncio.sleep(0)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [("enough",), "inside"]


async def test_the_coroutine_may_clean_up_after_a_cancellation_and_return() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "cleaned up"

    async def run() -> Any:
        return await isolated(stubborn())

    task = asyncio.create_task(run(), name="isolated")
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "cleaned up"


async def test_timeouts_groups_and_scopes_work_inside_it() -> None:
    async def works() -> list[str]:
        seen = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        if scope.cancelled_caught:
            seen.append("scope")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0)
            tasks.cancel_scope.cancel()
        seen.append("group")
        return seen

    assert await isolated(works()) == ["scope", "group"]


async def test_a_scope_around_it_cancels_it() -> None:
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await isolated(anyio.sleep_forever())
    assert scope.cancelled_caught


@pytest.mark.parametrize("error", [StopAsyncIteration("x"), SystemError("x"), BaseExceptionGroup("x", [SystemExit()])])
async def test_odd_exceptions_pass_unchanged(error: BaseException) -> None:
    async def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await isolated(fails())
    assert caught.value is error


async def test_a_stop_iteration_is_an_error_and_not_a_result() -> None:
    async def fails() -> None:
        raise StopIteration("result")

    with pytest.raises(RuntimeError, match="StopIteration"):
        await isolated(fails())


async def test_closing_it_closes_the_coroutine_in_its_own_variables() -> None:
    seen: list[str] = []

    async def waits() -> None:
        token = NAME.set("inside")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(NAME.get())
            NAME.reset(token)  # which raises in any context but its own

    async def run() -> None:
        await isolated(waits())

    coroutine = run()
    coroutine.send(None)
    coroutine.close()
    assert seen == ["inside"]
    gc.collect()
