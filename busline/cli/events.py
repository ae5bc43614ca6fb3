"""`busline events`: what happens to messages, as it happens, from the lifecycle events on the bus."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import typer

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.cli.inspect import Store
from busline.cli.terminal import RED, complain, paint, say
from busline.cli.verbs import Url
from busline.codec import decode, encode
from busline.errors import CodecError, StoreUnavailable
from busline.events import DEAF, KINDS
from busline.message import Message
from busline.tails import Tail, tail_of
from busline.topics import check_pattern
from busline.wire import decode_envelope

AGAIN = 1.0
"""Seconds after which a store is asked again that was away."""
SHOWN = ("id", "topic", "attempt", "at")
"""Fields of an event that have a place of their own in a line of text."""


def events(
    kind: Annotated[list[str] | None, typer.Option(metavar="KIND", help=f"Only these: {', '.join(KINDS)}.")] = None,
    topic: Annotated[
        str, typer.Option(metavar="PATTERN", help="Of messages to these topics: * one word, # any.")
    ] = "#",
    of: Annotated[
        str | None, typer.Option("--id", help="Of the message whose id begins so, or of its conversation.")
    ] = (None),
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    url: Url = None,
    store: Store = None,
) -> None:
    """Show what happens to messages, as it happens, until Ctrl-C.

    Best effort: events are told beside the work and are not kept. What nobody listened to is told from 5 seconds
    later on. Where the broker cannot copy events to who listens, those are told by way of the store that happen in
    workers which can be inspected.
    """
    patterns = frozenset(_patterns(kind or KINDS, topic))
    say_or_not = _Printer(of or "", count, as_json)
    asyncio.run(_tail(url, store, patterns, say_or_not))


def _patterns(kinds: Sequence[str], topic: str) -> Iterator[str]:
    for kind in kinds:
        if kind not in KINDS:
            raise Failure(Exit.USAGE, f"--kind {kind!r} is none of {', '.join(KINDS)}")
        prefix = "busline.fault" if kind == "fault" else f"busline.event.{kind}"
        yield check_pattern(f"{prefix}.{topic}")


async def _tail(url: str | None, store: str | None, patterns: frozenset[str], printer: _Printer) -> None:
    async with _watching(Bus(url, store=store), patterns) as tail:
        typer.echo(f"listening at {tail.where}; the first may take {DEAF:g} s", err=True)
        while not printer.done:
            try:
                seen = await tail.seen()
            except StoreUnavailable as error:
                complain(f"{error}; what happens meanwhile is not shown")
                await asyncio.sleep(AGAIN)
                continue
            for event in seen.events:
                printer.show(event)
            if seen.missed:
                complain(f"{seen.missed} events are not shown, as too many happened at once")


@asynccontextmanager
async def _watching(bus: Bus, patterns: frozenset[str]) -> AsyncIterator[Tail]:
    door = bus.store_door()
    try:
        async with bus:
            tail = await tail_of(bus.transport, door, patterns)
            try:
                yield tail
            finally:
                await tail.aclose()
    finally:
        if door is not None:
            await door.aclose()


class _Printer:
    """Shows what is asked for, and counts it."""

    def __init__(self, prefix: str, count: int | None, as_json: bool) -> None:
        self._prefix = prefix
        self._left = count
        self._as_json = as_json

    @property
    def done(self) -> bool:
        """So many as were asked for have been shown."""
        return self._left == 0

    def show(self, message: Message) -> None:
        """One event."""
        try:
            fields: dict[str, Any] = decode(message.body)
            conversation = decode_envelope(message, 0.0).correlation_id
        except CodecError as error:  # somebody else publishes under our name
            complain(f"{message.topic} is no event of ours: {error}")
            return
        if self.done or not (fields["id"].startswith(self._prefix) or conversation.startswith(self._prefix)):
            return
        kind = message.topic.split(".")[1 if message.topic.startswith("busline.fault") else 2]
        told = {"kind": kind, "conversation": conversation, **fields}
        say(encode(told).decode() if self._as_json else _line(kind, fields))
        self._left = self._left - 1 if self._left is not None else None


def _line(kind: str, fields: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(fields["at"]).strftime("%H:%M:%S.%f")[:-3]
    more = "  ".join(f"{key}={value}" for key, value in fields.items() if key not in SHOWN)
    word = paint(f"{kind:<9}", RED, sys.stdout) if kind in ("failed", "fault", "retried") else f"{kind:<9}"
    line = f"{at}  {word}  {fields['topic']}  {fields['id']}  attempt {fields['attempt']}  {more}"
    return " ".join(line.splitlines()).rstrip()
