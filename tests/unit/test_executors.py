"""Plain functions in threads and processes: results, exceptions, death, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from itertools import count
from pathlib import Path

import pytest
from anyio import CapacityLimiter

from busline import Bus, Context, Idempotency, JobCancelled, RemoteError, Retry
from busline.errors import CodecError, ConfigurationError
from busline.executors import ThreadRun, run_in_process
from busline.slots import QueueSlots
from busline.testing.scenes import eventually

numbers = count()
NAME: ContextVar[str] = ContextVar("NAME", default="outside")
CODE = """
import os, signal, time
from pydantic import BaseModel
from busline import Reject

class Sum(BaseModel):
    of: list[int]

def add(numbers: list[int]) -> Sum:
    return Sum(of=numbers)

def fail(text: str) -> None:
    raise ValueError(text)

def reject() -> None:
    raise Reject("no")

class Local(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.two = two

def fail_unpicklably() -> None:
    raise Local(1, 2)

def odd() -> object:
    return object()

def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

def leave() -> None:
    raise SystemExit(3)

def pid() -> int:
    return os.getpid()

def hang(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(3600)
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A module that another process can import, too."""
    import importlib
    import sys

    folder = tmp_path_factory.mktemp("handlers")
    (folder / "plain_handlers.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("plain_handlers")
    sys.path.remove(str(folder))


@pytest.fixture
def bus() -> Bus:
    return Bus(f"memory://executors-{next(numbers)}", service="svc", retry=Retry(max_retries=0))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z" if Path(f"/proc/{pid}/stat").exists() else True


# -- threads ----------------------------------------------------------------------------------------------------------


async def test_a_thread_gives_its_result_and_its_variables_are_its_own() -> None:
    def sets() -> str:
        NAME.set("inside")
        return threading.current_thread().name

    run, variables = ThreadRun(), copy_context()
    assert not run.left_behind
    assert await run.run(variables, sets, CapacityLimiter(1)) != threading.current_thread().name
    assert not run.left_behind
    assert (NAME.get(), variables[NAME]) == ("outside", "inside")


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(1), KeyboardInterrupt()], ids=repr)
async def test_a_thread_raises_what_its_function_raises(error: BaseException) -> None:
    def raises() -> None:
        raise error

    run = ThreadRun()
    with pytest.raises(type(error)):
        await run.run(copy_context(), raises, CapacityLimiter(1))
    assert not run.left_behind


@pytest.mark.parametrize("error", [StopIteration(1), GeneratorExit()], ids=repr)
async def test_what_no_task_could_be_given_comes_as_a_runtime_error(error: BaseException) -> None:
    def raises() -> None:
        raise error

    with pytest.raises(RuntimeError):
        await ThreadRun().run(copy_context(), raises, CapacityLimiter(1))


async def test_a_thread_that_is_cancelled_is_left_behind_and_known() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def waits() -> None:
        begun.set()
        go_on.wait(10)

    run = ThreadRun()
    task = asyncio.create_task(run.run(copy_context(), waits, CapacityLimiter(1)), name="handler")
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.left_behind
    go_on.set()
    async with asyncio.timeout(5):
        while run.left_behind:  # noqa: ASYNC110  # a thread tells nobody
            await asyncio.sleep(0.001)


async def test_a_thread_that_never_began_is_not_left_behind() -> None:
    limiter = CapacityLimiter(1)
    run = ThreadRun()
    async with limiter:
        task = asyncio.create_task(run.run(copy_context(), lambda: None, limiter), name="handler")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not run.left_behind


async def test_a_plain_function_whose_time_is_up_is_reported_if_it_goes_on(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("busline.slots.CANCEL_GRACE", 0.02)
    go_on, stuck = threading.Event(), list[str]()

    @bus.handler("work", time_limit=0.02)
    def work(waits: bool) -> str:
        if waits:
            go_on.wait(10)
        return "done"

    try:
        async with bus.worker(concurrency=1, on_stuck=stuck.append):
            with pytest.raises(RemoteError) as caught:
                await bus.call("work", True, timeout=5)
            assert caught.value.type == "TimeLimitExceeded"
            async with asyncio.timeout(5):
                while not stuck:  # noqa: ASYNC110  # a timer tells it
                    await asyncio.sleep(0.001)
            assert "the thread of work goes on" in stuck[0]
            assert await bus.call("work", False, timeout=5) == "done"  # its slot is free all the same
    finally:
        go_on.set()


async def test_a_plain_function_that_ends_within_the_grace_is_not_reported(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("busline.slots.CANCEL_GRACE", 0.2)
    checked, stuck = asyncio.Event(), list[str]()
    check = QueueSlots._check_stuck

    def checks(slots: QueueSlots, work: object) -> None:
        check(slots, work)  # type: ignore[arg-type]  # as it came
        checked.set()

    monkeypatch.setattr(QueueSlots, "_check_stuck", checks)

    @bus.handler("work", time_limit=0.02)
    def work() -> None:
        time.sleep(0.05)

    async with bus.worker(concurrency=1, on_stuck=stuck.append):
        with pytest.raises(RemoteError):
            await bus.call("work", timeout=5)
        await asyncio.wait_for(checked.wait(), 5)
    assert stuck == []


# -- processes --------------------------------------------------------------------------------------------------------


async def test_a_plain_function_that_was_cancelled_ends_where_it_next_asks_for_something(bus: Bus) -> None:
    ends: list[BaseException] = []
    begun, go = asyncio.Event(), threading.Event()

    @bus.handler("plain.rows", idempotency=Idempotency(lease=0.3))
    def rows(ctx: Context) -> None:
        ctx.wait(ctx.progress, 0)
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(20)
        try:
            ctx.wait(ctx.progress, 1)
        except asyncio.CancelledError as error:
            ends.append(error)
            raise

    loop = asyncio.get_running_loop()
    async with bus.worker():
        job = await bus.send("plain.rows", track=True)
        await asyncio.wait_for(begun.wait(), 20)
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(20)
        go.set()
        await eventually(lambda: len(ends) == 1)
        progress = await job.progress()
        assert progress is not None
        assert progress.current == 0


async def test_async_code_awaits_instead_of_waiting(bus: Bus) -> None:
    @bus.handler("plain.wait")
    async def wait(ctx: Context) -> None:
        ctx.wait(ctx.progress, 1)

    async with bus.worker():
        with pytest.raises(RemoteError, match="await the verb instead"):
            await bus.call("plain.wait")


async def test_a_process_gives_the_json_of_its_result(there: object) -> None:
    limiter = CapacityLimiter(1)
    assert await run_in_process(there.add, b"[1,2]", limiter) == b'{"of":[1,2]}'  # type: ignore[attr-defined]  # made above
    assert await run_in_process(there.pid, b"", limiter) != str(os.getpid()).encode()  # type: ignore[attr-defined]  # made above


async def test_a_process_raises_what_its_function_raises(there: object) -> None:
    limiter = CapacityLimiter(1)
    with pytest.raises(ValueError, match="broken"):
        await run_in_process(there.fail, b'"broken"', limiter)  # type: ignore[attr-defined]  # made above
    with pytest.raises(CodecError):
        await run_in_process(there.odd, b"", limiter)  # type: ignore[attr-defined]  # made above


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("die", "RuntimeError"),
        ("fail", "ValueError"),
        ("reject", "busline.rejected"),
        ("odd", "CodecError"),
        ("leave", "RuntimeError"),
        ("fail_unpicklably", None),
    ],
)
async def test_however_a_process_ends_its_caller_hears_of_it_and_the_next_one_works(
    bus: Bus, there: object, name: str, kind: str | None
) -> None:
    bus.handler("work", executor="process", time_limit=20)(getattr(there, name))
    bus.handler("add", executor="process")(there.add)  # type: ignore[attr-defined]  # made above
    async with bus.worker(concurrency=1):
        with pytest.raises(RemoteError) as caught:
            await bus.call("work", "text" if name == "fail" else None, timeout=25)
        assert kind is None or caught.value.type == kind
        assert await bus.call("add", [1], timeout=25) == {"of": [1]}


async def test_a_process_is_killed_at_its_time_limit(bus: Bus, there: object, tmp_path: Path) -> None:
    bus.handler("work", executor="process", time_limit=2.0)(there.hang)  # type: ignore[attr-defined]  # made above
    path = tmp_path / "pid"
    async with bus.worker(concurrency=1):
        with pytest.raises(RemoteError) as caught:
            await bus.call("work", str(path), timeout=25)
        assert caught.value.type == "TimeLimitExceeded"
        pid = int(path.read_text())
        async with asyncio.timeout(5):
            while not gone(pid):  # noqa: ASYNC110  # a process of somebody else's tells nobody
                await asyncio.sleep(0.005)


def test_what_another_process_could_not_find_is_refused(bus: Bus) -> None:
    def local() -> None: ...

    async def asynchronous() -> None: ...

    for function in (local, asynchronous, lambda: None):
        other = Bus("memory://", service="svc")
        other.handler("work", executor="process")(function)
        with pytest.raises(ConfigurationError):
            other.plan()
