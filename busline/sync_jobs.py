"""A job for code that does not await."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar, overload

from busline.jobs import Job, JobInfo, JobState, Progress

T = TypeVar("T")


class Blocking(Protocol):
    """Runs a verb in the loop, and blocks until it has ended."""

    def __call__(self, verb: Callable[[], Coroutine[Any, Any, T]], /) -> T: ...


class SyncJob:
    """As `Job`, each method blocking its thread; made by `SyncBus.send` and `SyncBus.job`."""

    __slots__ = ("_do", "_job")

    def __init__(self, job: Job, do: Blocking) -> None:
        self._job = job
        self._do = do

    def __repr__(self) -> str:
        return f"SyncJob({self.id!r}, {self.topic!r})"

    @property
    def id(self) -> str:
        """The message's id."""
        return self._job.id

    @property
    def topic(self) -> str:
        """Where it was sent; "" for a job that was found by its id."""
        return self._job.topic

    def info(self) -> JobInfo:
        """`Job.info`."""
        return self._do(self._job.info)

    def status(self) -> JobState:
        """`Job.status`."""
        return self._do(self._job.status)

    def progress(self) -> Progress | None:
        """What its handler said last, or None; `watch` tells each time that it says more."""
        return self.info().progress

    def watch(self) -> Iterator[JobInfo]:
        """`Job.watch`: how it is now, and then each change, until it has ended."""
        changes = self._job.watch()

        async def next_one() -> JobInfo | None:
            return await anext(changes, None)

        while (info := self._do(next_one)) is not None:
            yield info

    @overload
    def result(self, timeout: float | None = None, *, returns: type[T]) -> T: ...
    @overload
    def result(self, timeout: float | None = None, *, returns: None = None) -> Any: ...
    def result(self, timeout: float | None = None, *, returns: Any = None) -> Any:
        """`Job.result`."""

        async def result() -> Any:
            return await self._job.result(timeout, returns=returns)

        return self._do(result)

    def cancel(self) -> bool:
        """`Job.cancel`."""
        return self._do(self._job.cancel)

    def retry(self) -> None:
        """`Job.retry`."""
        self._do(self._job.retry)
