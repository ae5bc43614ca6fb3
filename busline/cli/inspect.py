"""`busline inspect`, `pause`, `resume` and `concurrency`: workers that run are asked and directed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.cli.terminal import say, show_json, show_table
from busline.cli.verbs import Url
from busline.control import Answer, Control

Timeout = Annotated[float, typer.Option(min=0.01, help="Seconds to wait for answers.")]
Name = Annotated[
    str | None, typer.Option("--worker", metavar="NAME", help="Only this worker, or NAME/PID; * stands for anything.")
]
Expect = Annotated[
    int | None, typer.Option(min=1, help="So many processes must answer; the wait is over when they have.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As a JSON list.")]
Store = Annotated[
    str | None,
    typer.Option(help="The store by which workers are asked where the broker cannot; default: $BUSLINE_STORE."),
]
QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="As busline queues shows it.")]

inspect = typer.Typer(
    name="inspect",
    no_args_is_help=True,
    help="Ask the worker processes that run now. One that is dead, stopped or blocked does not answer.",
)


@inspect.command()
def ping(
    url: Url = None,
    timeout: Timeout = 1.0,
    worker: Name = None,
    expect: Expect = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Who is there. Fit for a health check: 0 if a process (or --expect of them) answered, else 6."""
    answers = _ask(url, store, lambda control: control.ping(timeout=timeout, worker=worker, expect=expect))
    rows = [(*_who(each), each.state, _span(each.at - each.started_at), each.version) for each in answers]
    _show(answers, as_json, ("WORKER", "PID", "STATE", "UP", "VERSION"), rows)
    _check(answers, url, timeout, worker, expect)


@inspect.command()
def active(
    url: Url = None,
    timeout: Timeout = 1.0,
    worker: Name = None,
    expect: Expect = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """What each process works on, and since when."""
    answers = _ask(url, store, lambda control: control.active(timeout=timeout, worker=worker, expect=expect))
    rows = [
        (*_who(each), told["queue"], told["topic"], told["id"], str(told["attempt"]), _span(told["seconds"]))
        for each in answers
        for told in each.data["messages"]
    ]
    _show(answers, as_json, ("WORKER", "PID", "QUEUE", "TOPIC", "ID", "ATTEMPT", "FOR"), rows)
    _check(answers, url, timeout, worker, expect)


@inspect.command()
def stats(
    url: Url = None,
    timeout: Timeout = 1.0,
    worker: Name = None,
    expect: Expect = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """What each process has done with each queue, and what pauses it; --json tells more."""
    answers = _ask(url, store, lambda control: control.stats(timeout=timeout, worker=worker, expect=expect))
    rows = [
        (*_who(each), name, str(told["running"]), str(told["concurrency"]), str(told["taken"]), _paused(told))
        for each in answers
        for name, told in each.data["queues"].items()
    ]
    _show(answers, as_json, ("WORKER", "PID", "QUEUE", "RUNNING", "CONCURRENCY", "TAKEN", "PAUSED"), rows)
    _check(answers, url, timeout, worker, expect)


@inspect.command()
def handlers(
    url: Url = None,
    timeout: Timeout = 1.0,
    worker: Name = None,
    expect: Expect = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """What each process serves."""
    answers = _ask(url, store, lambda control: control.handlers(timeout=timeout, worker=worker, expect=expect))
    rows = [
        (*_who(each), told["topic"], told["kind"], told["queue"], told["function"])
        for each in answers
        for told in each.data["handlers"]
    ]
    _show(answers, as_json, ("WORKER", "PID", "TOPIC", "KIND", "QUEUE", "FUNCTION"), rows)
    _check(answers, url, timeout, worker, expect)


def pause(
    queue: QueueArgument, url: Url = None, timeout: Timeout = 1.0, as_json: AsJson = False, store: Store = None
) -> None:
    """Stop all workers from taking messages of a queue, until busline resume.

    What runs is finished, and messages wait at the broker. Workers that start later keep to it, too.
    """
    answers = _ask(url, store, lambda control: control.pause(queue, timeout=timeout))
    if as_json:
        show_json([asdict(each) for each in answers])
    else:
        say(f"{queue} is paused in {_processes(answers)}; {_others(answers)}a worker that starts will keep to it")


def resume(
    queue: QueueArgument, url: Url = None, timeout: Timeout = 1.0, as_json: AsJson = False, store: Store = None
) -> None:
    """Let the workers take messages of a queue again that was paused with busline pause."""
    answers = _ask(url, store, lambda control: control.resume(queue, timeout=timeout))
    if as_json:
        show_json([asdict(each) for each in answers])
        return
    say(f"{queue} is resumed in {_processes(answers)}{'' if answers else '; within a minute in those that run'}")
    for each in answers:
        if each.data["paused"]:
            say(f"still paused in {each.worker}/{each.pid}: {'; '.join(each.data['paused'])}")


def concurrency(
    queue: QueueArgument,
    number: Annotated[int, typer.Argument(min=1, metavar="N", help="Messages at a time, in each process.")],
    url: Url = None,
    timeout: Timeout = 1.0,
    worker: Name = None,
    as_json: AsJson = False,
    store: Store = None,
) -> None:
    """Change how many messages of a queue each running process handles at a time.

    It holds until the process ends: one that starts later begins with what it was started with.
    """
    answers = _ask(url, store, lambda control: control.set_concurrency(queue, number, timeout=timeout, worker=worker))
    if not answers:
        raise Failure(
            Exit.NO_HANDLER, f"no worker that serves {queue!r} answered within {timeout:g} s; {_who_answers(url)}"
        )
    if as_json:
        show_json([asdict(each) for each in answers])
    else:
        say(f"{queue} is handled {number} at a time in {_processes(answers)}")


def _ask(url: str | None, store: str | None, ask: Callable[[Control], Awaitable[Sequence[Answer]]]) -> Sequence[Answer]:
    async def run() -> Sequence[Answer]:
        async with Bus(url, store=store).control() as control:
            return await ask(control)

    return asyncio.run(run())


def _who(answer: Answer) -> tuple[str, str]:
    return answer.worker, str(answer.pid)


def _show(answers: Sequence[Answer], as_json: bool, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if as_json:
        show_json([asdict(each) for each in answers])
    elif answers:
        show_table(header, rows)


def _check(answers: Sequence[Answer], url: str | None, timeout: float, worker: str | None, expect: int | None) -> None:
    wanted = expect or 1
    if len(answers) < wanted:
        whom = f"of {worker!r} " if worker else ""
        raise Failure(
            Exit.TIMEOUT,
            f"{_processes(answers)} {whom}answered within {timeout:g} s, where {wanted} should have; "
            f"{_who_answers(url)}",
        )


def _who_answers(url: str | None) -> str:
    if Bus(url).url.startswith("sqs:"):
        return (
            "on SQS workers answer that were started by busline worker --control (BUSLINE_CONTROL=1), or whose bus has "
            "control=True"
        )
    return "workers answer that busline worker has started, or whose bus has control=True"


def _others(answers: Sequence[Answer]) -> str:
    """Those that did not answer look at the record by themselves, if `busline worker` has started them."""
    return "" if answers else "one that runs will within a minute, "


def _paused(told: dict[str, Any]) -> str:
    return "; ".join(told["paused"])


def _processes(answers: Sequence[Answer]) -> str:
    number = len(answers)
    return f"{number or 'no'} process{'' if number == 1 else 'es'}"


def _span(seconds: float) -> str:
    """For people: 4.2 s, 3:05 min, 12:00 h, 3 d."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"
    if seconds < 2 * 86400:
        return time.strftime(f"{seconds // 3600:.0f}:%M h", time.gmtime(seconds))
    return f"{seconds // 86400:.0f} d"
