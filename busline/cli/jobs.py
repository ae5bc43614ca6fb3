"""`busline jobs`: what the store knows of jobs, and what can be done about them by hand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

import typer

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.cli.load import load_bus
from busline.cli.terminal import GREEN, RED, paint, say, show_json, show_table
from busline.cli.verbs import Url
from busline.codec import decode
from busline.jobs import Job, JobInfo, Progress

jobs = typer.Typer(
    name="jobs",
    no_args_is_help=True,
    help="Look after jobs that were sent with track=True, an idempotency key or unique_for.",
)

Store = Annotated[
    str | None, typer.Option(help="URL of the store; default: $BUSLINE_STORE, else the one that sqlite:// buses have.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as send printed it and the list shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@jobs.command("list")
def list_(
    topic: Annotated[str, typer.Option(help="Only jobs of this topic.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the latest first.")] = 50,
    as_json: AsJson = False,
    store: Store = None,
    url: Url = None,
) -> None:
    """List jobs, one a line, the latest first."""

    async def look(bus: Bus) -> None:
        found = await bus.jobs(limit, topic=topic)
        if as_json:
            show_json([_summary(info) for info in found])
        else:
            rows = [[str(value if value not in ("", None) else "-") for value in _row(info)] for info in found]
            show_table(("ID", "TOPIC", "STATE", "PROGRESS", "ATTEMPTS", "SENT"), rows)

    _with_bus(url, store, look)


@jobs.command()
def show(id: Id, as_json: AsJson = False, store: Store = None, url: Url = None) -> None:
    """Show everything that is known of a job: state, progress, result or error."""

    async def look(job: Job) -> None:
        told = _summary(await job.info())
        if as_json:
            show_json(told)
            return
        for name, value in told.items():
            if value not in ("", None):
                say(f"{name + ':':<10}{value}")

    _with_job(url, store, id, look)


@jobs.command()
def cancel(id: Id, store: Store = None, url: Url = None) -> None:
    """Cancel a job: it will not run, or is cancelled in its worker."""

    async def act(job: Job) -> None:
        if not await job.cancel():
            raise Failure(Exit.FAILED, f"job {id} had ended: {await job.status()}")
        say(f"cancelling {id}")

    _with_job(url, store, id, act)


@jobs.command()
def retry(id: Id, store: Store = None, url: Url = None) -> None:
    """Send a job again that has failed or was cancelled, under the same id and key."""

    async def act(job: Job) -> None:
        await job.retry()
        say(f"sent {id} again")

    _with_job(url, store, id, act)


@jobs.command()
def watch(id: Id, as_json: AsJson = False, store: Store = None, url: Url = None) -> None:
    """Watch a job until it has ended: a bar on a terminal, a line for each change elsewhere."""

    async def look(job: Job) -> None:
        last = None
        if sys.stdout.isatty() and not as_json:
            last = await _with_bar(job)
        else:
            async for last in job.watch():
                show_json(_summary(last)) if as_json else say(_line(last))
        if last is None or last.state != "SUCCESS":
            raise typer.Exit(Exit.FAILED)

    _with_job(url, store, id, look)


@jobs.command()
def recover(
    app: Annotated[str, typer.Argument(metavar="MODULE:BUS", help="Where the bus is whose handlers they belong to.")],
) -> None:
    """End orphans now: messages that were acked early and whose worker has died. Workers do so by themselves."""

    async def act() -> None:
        async with load_bus(app) as bus:
            number = await bus.recover()
            say(f"ended {number} orphan{'' if number == 1 else 's'}")

    asyncio.run(act())


async def _with_bar(job: Job) -> JobInfo | None:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar  # 50 ms, spent only on terminals

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    last = None
    with Bar(*columns) as bar:
        task = bar.add_task("", total=None, note="")
        async for last in job.watch():
            said = last.progress or Progress(0)
            done = said.total if last.state == "SUCCESS" and said.total else said.current
            bar.update(task, description=last.state, completed=done, total=said.total, note=_figures(said))
    if last is not None and last.state != "SUCCESS":
        say(paint(_line(last), RED, sys.stdout))
    elif last is not None:
        say(paint(_line(last), GREEN, sys.stdout))
    return last


def _with_bus(url: str | None, store: str | None, act: Callable[[Bus], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Bus(url, store=store) as bus:
            await act(bus)

    asyncio.run(run())


def _with_job(url: str | None, store: str | None, id: str, act: Callable[[Job], Awaitable[None]]) -> None:
    _with_bus(url, store, lambda bus: act(bus.job(id)))


def _summary(info: JobInfo) -> dict[str, Any]:
    """What is told of a job, in its order."""
    progress = info.progress
    return {
        "id": info.id,
        "topic": info.topic,
        "state": info.state,
        "attempts": info.attempts,
        "sent": _instant(info.sent_at),
        "current": progress.current if progress else None,
        "total": progress.total if progress else None,
        "note": progress.note if progress else "",
        "key": info.key,
        "result": decode(info.result) if info.result else None,
        "error": decode(info.error) if info.error else None,
    }


def _row(info: JobInfo) -> list[Any]:
    figures = _figures(info.progress) if info.progress else ""
    return [info.id, info.topic, info.state, figures, info.attempts, _instant(info.sent_at)]


def _line(info: JobInfo) -> str:
    """One change."""
    parts = [info.state, _figures(info.progress) if info.progress else ""]
    if info.error:
        error = decode(info.error)
        parts.append(f"{error['type']}: {error['message']}")
    elif info.state == "SUCCESS":
        parts.append(info.result.decode())
    return " ".join(part for part in parts if part)


def _figures(progress: Progress) -> str:
    total = f"/{progress.total:g}" if progress.total is not None else ""
    return f"{progress.current:g}{total} {progress.note}".rstrip()


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
