"""What keeps a queue from being consumed in this process for a while, and what keeps it from working.

A gate has reasons to be closed: a failing health check, a retry rule, a tripped breaker, an operator. While it has any,
the consumer is resized to nothing, so that messages stay at the broker and burn no attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from busline.clock import Clock, sleep
from busline.driving import ends_task
from busline.options import Check, OnDown
from busline.telemetry import log
from busline.wire import text_of


class Gate:
    """Open while nobody has a reason to keep it closed. `on_change` is called when it opens or closes."""

    def __init__(self, queue: str, clock: Clock, on_change: Callable[[], None]) -> None:
        self._queue = queue
        self.clock = clock
        self._on_change = on_change
        self.reasons: dict[str, str] = {}
        """Why it is closed: name → explanation. Empty when it is open."""
        self.opened = anyio.Event()
        """Set while it is open; a slot waits for it before it asks for a message."""
        self.opened.set()
        self._pauses: dict[str, float] = {}

    def close(self, name: str, why: str) -> None:
        """Keep it closed until `open(name)`."""
        if name in self.reasons:
            return
        self.reasons[name] = why
        log.warning(
            "queue %s is paused: %s", self._queue, why, extra={"event": "paused", "queue": self._queue, "reason": name}
        )
        if len(self.reasons) == 1:
            self.opened = anyio.Event()
            self._on_change()

    def close_for(self, name: str, why: str, seconds: float) -> None:
        """Keep it closed for at least `seconds` from now."""
        until = self.clock.time() + seconds
        if until <= self._pauses.get(name, 0.0):
            return
        self._pauses[name] = until
        self.close(name, f"{why}, for {seconds:g} s")
        self.clock.call_at(until, lambda: self._end_pause(name))

    def open(self, name: str) -> None:
        """Take this reason back."""
        if self.reasons.pop(name, None) is None:
            return
        if not self.reasons:
            log.info("queue %s is resumed", self._queue, extra={"event": "resumed", "queue": self._queue})
            self.opened.set()
            self._on_change()

    def _end_pause(self, name: str) -> None:
        until = self._pauses.get(name)
        if until is None:
            return
        if until > self.clock.time():  # it was prolonged, or the machine's clock was set back
            self.clock.call_at(until, lambda: self._end_pause(name))
            return
        del self._pauses[name]
        self.open(name)


class HealthGate:
    """Watches one check of a queue and does what its handler asked for when the check fails.

    "pause" closes the gate; "answer" leaves word in `answers`, which the queue's handling reads; "warn" only logs.
    Resumes by itself.
    """

    def __init__(self, name: str, check: Check, on_down: OnDown, gate: Gate, answers: dict[str, str]) -> None:
        self._name = name  # of its own, as several checks may be functions of one name
        self._check = check
        self._on_down = on_down
        self._gate = gate
        self._answers = answers
        self._down = False

    async def first(self) -> None:
        """Ask once, before anything is consumed."""
        self._report(await self._ask())

    async def run(self) -> None:
        """Ask every period, until cancelled."""
        while True:
            await sleep(self._gate.clock, self._check.period)
            self._report(await self._ask())

    async def _ask(self) -> str | None:
        """None if healthy, else what is wrong."""
        answer: object = None
        try:
            with anyio.move_on_after(self._check.timeout) as patience:
                answer = await self._check.function()
        except BaseException as error:  # whatever a check raises is its way of saying no
            if ends_task(error, asyncio.current_task()):
                raise
            return f"{self._check.name}: {type(error).__name__}: {text_of(error)}"
        if patience.cancelled_caught:
            return f"{self._check.name} did not answer within {self._check.timeout:g} s"
        return f"{self._check.name} said no" if answer is False else None

    def _report(self, trouble: str | None) -> None:
        went_down, self._down = trouble is not None and not self._down, trouble is not None
        if self._on_down == "pause":
            if trouble is not None:
                self._gate.close(self._name, trouble)
            else:
                self._gate.open(self._name)
        elif self._on_down == "answer":
            if trouble is not None:
                self._answers[self._name] = trouble
            else:
                self._answers.pop(self._name, None)
        if went_down and self._on_down != "pause":
            log.warning("%s", trouble, extra={"event": "check_failed", "check": self._check.name})
