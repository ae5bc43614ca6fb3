"""`busline dlq`: the dead letters of a queue, listed, shown, sent back or deleted."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.cli.terminal import complain, indented, say, show_json, show_table
from busline.cli.verbs import Url
from busline.codec import decode
from busline.dead_letters import FIELDS, DeadLetters, Letter, OnProgress, Result, Selection
from busline.errors import CodecError
from busline.message import DIED

dlq = typer.Typer(
    name="dlq",
    no_args_is_help=True,
    help="Look after dead letters: messages that failed for good, with the story of their failure.",
)

QueueName = Annotated[
    str, typer.Argument(metavar="QUEUE", help="The queue whose dead letters are meant, or the one that they are in.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE",
        help=f"Only letters whose {', '.join(FIELDS[:-1])} is VALUE, or whose message has it in it. All must hold.",
    ),
]
Id = Annotated[list[str] | None, typer.Option(help="Only the letter whose id begins so; any of several.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many, the oldest first.")]
AsJson = Annotated[bool, typer.Option("--json", help="As a JSON list.")]


@dlq.command("list")
def list_(
    queue: QueueName, where: Where = None, id: Id = None, limit: Limit = 50, as_json: AsJson = False, url: Url = None
) -> None:
    """List dead letters, one a line."""
    selection = _selection(where, id)

    async def look(letters: DeadLetters) -> None:
        found = await letters.peek(selection, limit)
        if as_json:
            show_json([_summary(letter) for letter in found])
            return
        if found:
            rows = [[str(value or "-") for value in _summary(letter).values()] for letter in found]
            show_table(("ID", "TOPIC", "REASON", "TYPE", "ATTEMPTS", "WHEN", "FROM"), rows)
        waiting = await letters.waiting()
        chosen = "" if selection.is_all else " that were chosen"
        say(f"{_count(len(found))}{chosen}, of {waiting} in {letters.queue}")

    _with_letters(url, queue, look)


@dlq.command()
def show(
    queue: QueueName, where: Where = None, id: Id = None, limit: Limit = 10, as_json: AsJson = False, url: Url = None
) -> None:
    """Show everything that dead letters tell: failure, traceback, headers, payload."""
    selection = _selection(where, id)

    async def look(letters: DeadLetters) -> None:
        found = await letters.peek(selection, limit)
        if not found:
            raise Failure(Exit.FAILED, f"no such letter in {letters.queue}")
        if as_json:
            show_json([_everything(letter) for letter in found])
            return
        for letter in found:
            _tell(letter)

    _with_letters(url, queue, look)


@dlq.command()
def replay(
    queue: QueueName,
    where: Where = None,
    id: Id = None,
    to: Annotated[str | None, typer.Option(help="To this queue, wherever they came from.")] = None,
    url: Url = None,
) -> None:
    """Send dead letters back to the queues they came from: the same id, a first attempt.

    Each is deleted here only when the other queue has it.
    """
    selection = _selection(where, id)

    async def send_back(letters: DeadLetters) -> None:
        with _progress("replaying") as progress:
            result = await letters.replay(selection, to=to, on_progress=progress)
        _conclude("replayed", result, letters)

    _with_letters(url, queue, send_back)


@dlq.command()
def purge(
    queue: QueueName,
    where: Where = None,
    id: Id = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before deleting all.")] = False,
    url: Url = None,
) -> None:
    """Delete dead letters for good."""
    selection = _selection(where, id)

    async def delete(letters: DeadLetters) -> None:
        if selection.is_all and not yes:
            _confirm(await letters.waiting(), letters.queue)
        with _progress("deleting") as progress:
            result = await letters.purge(selection, on_progress=progress)
        _conclude("deleted", result, letters)

    _with_letters(url, queue, delete)


def _with_letters(url: str | None, queue: str, act: Callable[[DeadLetters], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Bus(url) as bus:
            await act(await DeadLetters.find(bus.transport, queue))

    asyncio.run(run())


def _selection(where: list[str] | None, ids: list[str] | None) -> Selection:
    pairs = []
    for text in where or ():
        name, separator, value = text.partition("=")
        if not separator or name not in FIELDS:
            raise Failure(Exit.USAGE, f"--where {text!r} is not FIELD=VALUE; fields are {', '.join(FIELDS)}")
        pairs.append((name, value))
    if not all(ids or ()):
        raise Failure(Exit.USAGE, "--id is the beginning of an id, not nothing")
    return Selection(pairs, ids or ())


def _confirm(number: int, queue: str) -> None:
    if not sys.stdin.isatty():
        raise Failure(Exit.USAGE, f"this would delete all {number} dead letters in {queue}: choose some, or say --yes")
    typer.confirm(f"Delete all {number} dead letters in {queue}?", abort=True)


@contextmanager
def _progress(what: str) -> Iterator[OnProgress | None]:
    """A bar on a terminal."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.progress import Progress  # 50 ms, spent only on terminals

    with Progress(transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda looked, total: bar.update(task, completed=looked, total=total)


def _conclude(what: str, result: Result, letters: DeadLetters) -> None:
    say(f"{what} {_count(result.done)} of {letters.queue}")
    for why, number in Counter(why for _, why in result.kept).items():
        first = next(letter.id for letter, reason in result.kept if reason == why)
        complain(f"kept {_count(number)}{f' ({first} …)' if first else ''}: {why}")
    if result.unseen:
        complain("not all letters were looked at, because too many of them were not chosen")
    if result.kept or result.unseen:
        raise typer.Exit(Exit.FAILED)


def _count(number: int) -> str:
    return f"{number} dead letter{'' if number == 1 else 's'}"


def _summary(letter: Letter) -> dict[str, Any]:
    """What a line of the list tells, in its order."""
    failure = letter.failure
    return {
        "id": letter.id,
        "topic": letter.message.topic,
        "reason": failure.get("reason") or ("not from busline" if letter.envelope is not None else "unreadable"),
        "type": failure.get("type", ""),
        "attempts": failure.get("attempts"),
        "when": _instant(failure.get("last_at")),
        "queue": failure.get("queue", ""),
    }


def _everything(letter: Letter) -> dict[str, Any]:
    return {
        **_summary(letter),
        "first": _instant(letter.failure.get("first_at")),
        "message": letter.failure.get("message", ""),
        "traceback": letter.failure.get("traceback", ""),
        "headers": {name: value for name, value in letter.message.headers.items() if name != DIED},
        "correlation_id": letter.envelope.correlation_id if letter.envelope is not None else "",
        "causation_id": letter.envelope.causation_id if letter.envelope is not None else "",
        "payload": _payload(letter),
    }


def _payload(letter: Letter) -> Any:
    try:
        return decode(letter.message.body)
    except CodecError:
        return repr(letter.message.body)


def _tell(letter: Letter) -> None:
    told = _everything(letter)
    payload, traceback, headers = told.pop("payload"), str(told.pop("traceback")), told.pop("headers")
    for name, value in told.items():
        if value not in ("", None):
            say(f"{name + ':':<16}{value}")
    for name, value in headers.items():
        say(f"{'header:':<16}{name}={value}")
    say("payload:")
    say(indented(payload))
    if traceback:
        say("traceback:")
        say(traceback.rstrip())
    say("")


def _instant(seconds: object) -> str:
    """Local time, to the second."""
    if not isinstance(seconds, int | float):
        return ""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
