"""The demo's play: calls with a killing in the middle, events, an import, a message that always fails, the count."""

from __future__ import annotations

import asyncio
import csv
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

from busline import Bus, BuslineError
from busline.demo.app import WORK, Answer, Batch, Question
from busline.demo.ledger import Airport, AirportTable, Ledger
from busline.demo.screen import Line, Screen
from busline.demo.workers import DemoFailed, Workers
from busline.registry import DEAD_SUFFIX
from busline.transports.base import Inspectable
from busline.wire import decode_envelope

CALLS = 2_000
IN_FLIGHT = 32
EVENTS = 250
BATCH = 50
"""Rows in one message."""
CALL_TIMEOUT = 20.0
PATIENCE = 30.0
"""Seconds that events, import and dead letter may take before they count as lost."""


@dataclass
class Calls:
    """What became of the calls, seen by who made them."""

    made: int = 0
    answered: int = 0
    wrong: int = 0
    """Answers that belong to another question."""
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    killed: int | None = None
    """The pid of the worker that was killed."""

    def quantile(self, share: float) -> float:
        """Milliseconds within which `share` of the calls were answered."""
        ordered = sorted(self.seconds) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class Demo:
    """One run against workers that are up. `service` is the prefix of its topics."""

    def __init__(self, bus: Bus, workers: Workers, service: str, folder: Path, screen: Screen, calls: int) -> None:
        self._bus = bus
        self._workers = workers
        self._service = service
        self._ledger = Ledger(folder)
        self._table = AirportTable(folder / "airports.db")
        self._screen = screen
        self._number = calls
        self._calls = Calls()

    async def play(self) -> bool:
        """All acts; True if nothing was lost. Raises DemoFailed, BuslineError."""
        pids = await self._workers.ready(self._bus, self._topic("hello"))
        self._screen.say(f"{len(pids)} workers: pids {', '.join(map(str, sorted(pids)))}")
        self._table.create()
        await self._make_calls()
        await self._publish_events()
        rows = await self._import_airports()
        letters = await self._fail()
        lines = self._result(rows, letters)
        self._screen.table(lines)
        return all(line.good for line in lines)

    def _topic(self, name: str) -> str:
        return f"{self._service}.{name}"

    # -- calls, and the killing -----------------------------------------------------------------------------------

    async def _make_calls(self) -> None:
        numbers = iter(range(self._number))
        with self._screen.bar("calls", self._number) as move:
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(self._keep_calling(numbers, move))

    async def _keep_calling(self, numbers: Iterator[int], move: Callable[[int], None]) -> None:
        calls = self._calls
        for number in numbers:
            question = Question(number=number, text=f"question {number}")
            calls.made += 1
            began = perf_counter()
            try:
                answer = await self._bus.call(self._topic("square"), question, timeout=CALL_TIMEOUT, returns=Answer)
            except BuslineError as error:
                calls.errors.append(f"{type(error).__name__}: {error}")
                continue
            calls.seconds.append(perf_counter() - began)
            calls.answered += 1
            calls.wrong += not _belongs(answer, question)
            move(calls.answered)
            if calls.killed is None and calls.answered >= self._number // 3:
                calls.killed = answer.pid
                # By then it has begun the next ones, and answered none of them.
                asyncio.get_running_loop().call_later(WORK / 2, self._kill, answer.pid)

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._screen.say(f"worker {pid} killed with SIGKILL after {self._calls.answered:,} answers", "red")

    # -- events, jobs, the dead letter ----------------------------------------------------------------------------

    async def _publish_events(self) -> None:
        async def publish(number: int) -> None:
            await self._bus.publish(self._topic(f"happened.{number % 10}"), number)

        await _all(publish, range(EVENTS))

        def received() -> int:
            return sum(self._ledger.count(name).distinct for name in ("bill", "notify"))

        await self._watch("events", 2 * EVENTS, received)

    async def _import_airports(self) -> int:
        rows = read_airports()
        batches = [
            Batch(number=number, rows=rows[start : start + BATCH])
            for number, start in enumerate(range(0, len(rows), BATCH))
        ]

        async def send(batch: Batch) -> None:
            await self._bus.send(self._topic("import"), batch)

        await _all(send, batches)
        await self._watch("import", len(rows), self._table.count)
        return len(rows)

    async def _fail(self) -> list[dict[str, Any]]:
        """Send the message that always fails; the failures that its dead letters tell of."""
        await self._bus.send(self._topic("doomed"))
        letters: list[dict[str, Any]] = []
        began = perf_counter()
        while not letters and perf_counter() - began < PATIENCE:
            await asyncio.sleep(0.05)
            letters = await self._dead_letters()
        for letter in letters:
            self._screen.say(
                f"dead letter in {self._service}{DEAD_SUFFIX}: {letter['reason']} after {letter['attempts']} attempts,"
                f" {letter['type']}: {letter['message']}"
            )
        return letters

    async def _dead_letters(self) -> list[dict[str, Any]]:
        transport = self._bus.transport
        if not isinstance(transport, Inspectable):
            raise DemoFailed(f"dead letters at {transport.where} cannot be looked at")
        messages = await transport.peek(self._service + DEAD_SUFFIX, 10)
        failures = (decode_envelope(message, now=0.0).failure for message in messages)
        return [failure for failure in failures if failure]

    async def _watch(self, label: str, total: int, count: Callable[[], int]) -> None:
        """Show how `count` approaches `total`, and return when it is there or has not moved for too long."""
        done, moved = 0, perf_counter()
        with self._screen.bar(label, total) as move:
            while done < total and perf_counter() - moved < PATIENCE:
                await asyncio.sleep(0.02)
                if (now := count()) != done:
                    done, moved = now, perf_counter()
                    move(done)

    # -- the count ------------------------------------------------------------------------------------------------

    def _result(self, rows: int, letters: Sequence[dict[str, Any]]) -> list[Line]:
        calls, imported = self._calls, self._table.count()
        trouble = _trouble(calls, self._number)
        events = [self._ledger.count(name) for name in ("bill", "notify")]
        received = sum(count.distinct for count in events)
        redone = self._ledger.count("calls").repeats
        repeats = sum(count.repeats for count in (*events, self._ledger.count("batches")))
        return [
            Line("calls answered", f"{calls.answered:,} of {calls.made:,}", trouble, not trouble),
            Line("p50 / p99", f"{calls.quantile(0.5):.1f} / {calls.quantile(0.99):.1f} ms", self._pace()),
            Line("begun twice", f"{redone + repeats:,}", f"{redone} of them calls that the killed worker had begun"),
            Line("events received", f"{received:,} of {2 * EVENTS:,}", "two subscribers", received == 2 * EVENTS),
            Line("rows imported", f"{imported:,} of {rows:,}", "counted in the table", imported == rows),
            Line("dead letters", f"{len(letters)} of 1", "kept, with the reason", len(letters) == 1),
        ]

    def _pace(self) -> str:
        slowest = max(self._calls.seconds, default=0.0)
        return f"{WORK * 1000:.0f} ms of it work; the slowest {slowest:.2f} s"


def _belongs(answer: Answer, question: Question) -> bool:
    return (answer.number, answer.square, answer.text) == (question.number, question.number**2, question.text[::-1])


def _trouble(calls: Calls, number: int) -> str:
    """What is wrong with the calls, or nothing."""
    if calls.errors:
        return f"{len(calls.errors)} failed, the first: {calls.errors[0]}"
    if calls.answered != number:
        return f"{number:,} were to be made"
    return f"{calls.wrong} answers to other questions" if calls.wrong else ""


def read_airports() -> list[Airport]:
    """The rows of the file that comes with busline."""
    text = (files("busline.demo") / "airports.csv").read_text("utf-8")
    return [Airport.model_validate(row) for row in csv.DictReader(text.splitlines())]


async def _all(work: Callable[[Any], Awaitable[None]], items: Sequence[Any]) -> None:
    """Do `work` for every item, a few at a time."""
    for start in range(0, len(items), IN_FLIGHT):
        await asyncio.gather(*map(work, items[start : start + IN_FLIGHT]))
