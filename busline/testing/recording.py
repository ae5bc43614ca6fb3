"""An observer that keeps what it sees, for tests to look at."""

from __future__ import annotations

from collections.abc import Callable

from busline.message import Delivery, Message
from busline.observing import Kind, Observer, Outcome
from busline.registry import Handler
from busline.testing.records import Failure, Record, Records, facts_of
from busline.wire import Envelope


class Recorder(Observer):
    """Keeps every message that left, and every failure, in order."""

    def __init__(self) -> None:
        self.jobs: Records[Record] = Records()
        self.events: Records[Record] = Records()
        self.calls: Records[Record] = Records()
        self.handled: Records[Record] = Records()
        self.retries: Records[Failure] = Records()
        self.failures: Records[Failure] = Records()
        self.dead_letters: Records[Failure] = Records()
        self._last: dict[str, BaseException] = {}

    def sending(self, kind: Kind, message: Message, envelope: Envelope, queue: str | None) -> Callable[[], None]:
        """It is kept once it has left."""
        record = Record(**facts_of(message, envelope, queue))
        records = self.events if kind == "event" else self.jobs
        return lambda: records.append(record)

    def sent(self, began: Callable[[], None], error: BaseException | None) -> None:
        """It has left, or not."""
        if error is None:
            began()

    def calling(self, message: Message, envelope: Envelope, queue: str | None) -> None:
        """A call leaves."""
        self.calls.append(Record(**facts_of(message, envelope, queue)))

    def starting(self, delivery: Delivery, envelope: Envelope, handler: Handler) -> tuple[Delivery, Envelope]:
        """An attempt starts."""
        return delivery, envelope

    def ended(self, began: tuple[Delivery, Envelope], outcome: Outcome, error: BaseException | None) -> None:
        """An attempt has ended."""
        delivery, envelope = began
        facts = facts_of(delivery.message, envelope, delivery.queue)
        if outcome == "succeeded":
            self.handled.append(Record(**facts))
        elif outcome != "abandoned":
            (self.retries if outcome == "retried" else self.failures).append(Failure(**facts, error=error))
            if error is not None:
                self._last[envelope.id] = error

    def dead_lettered(self, delivery: Delivery, envelope: Envelope, reason: str, queue: str) -> None:
        """It is a dead letter."""
        facts = facts_of(delivery.message, envelope, delivery.queue)
        error = self._last.get(envelope.id) if reason in ("failed", "rejected") else None
        self.dead_letters.append(Failure(**facts, error=error, reason=reason))
