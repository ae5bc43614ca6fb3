"""What a test can look at: the messages that left a bus, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from busline.codec import decode, decode_as
from busline.errors import CodecError
from busline.message import Message
from busline.topics import matches
from busline.wire import Envelope

T = TypeVar("T")


@dataclass(slots=True)
class Record:
    """One message, as it left."""

    topic: str
    payload: Any
    """The body as JSON data; the bytes themselves where they are no JSON."""
    id: str
    attempt: int = 1
    """Of which attempt this is."""
    queue: str | None = None
    """The queue that it was sent to, or from which it was handled; None where its topic decides."""
    headers: dict[str, str] = field(default_factory=dict)
    priority: int = 0
    delay: float = 0.0
    """Seconds before it may be delivered."""
    body: bytes = field(default=b"", repr=False)

    def read(self, kind: type[T]) -> T:
        """The payload as a value of this type; raises CodecError where it is none."""
        return decode_as(kind, self.body)  # type: ignore[no-any-return]  # of the type that it was asked for


@dataclass(slots=True)
class Failure(Record):
    """An attempt that failed, or a message that became a dead letter."""

    error: BaseException | None = None
    """What the handler raised; None where it never ran."""
    reason: str = ""
    """Of a dead letter: `failed`, `rejected`, `invalid`, `expired` and so on; else ""."""


R = TypeVar("R", bound=Record)


class Records(list[R]):
    """Records in the order in which they came."""

    def to(self, pattern: str) -> Records[R]:
        """Those of a topic, or of all topics that match a pattern."""
        return Records(record for record in self if matches(pattern, record.topic))

    def one(self, pattern: str = "#") -> R:
        """The only one of this topic or pattern; AssertionError if there are none or several."""
        found = self.to(pattern)
        if len(found) != 1:
            raise AssertionError(f"one message of {pattern} was expected, and these are there: {found}")
        return found[0]

    @property
    def topics(self) -> list[str]:
        """Their topics."""
        return [record.topic for record in self]

    @property
    def payloads(self) -> list[Any]:
        """Their payloads."""
        return [record.payload for record in self]


def facts_of(message: Message, envelope: Envelope, queue: str | None) -> dict[str, Any]:
    """The fields of a record."""
    try:
        payload = decode(message.body)
    except CodecError:
        payload = message.body
    return {
        "topic": message.topic,
        "payload": payload,
        "id": envelope.id,
        "attempt": envelope.attempt,
        "queue": queue,
        "headers": dict(message.headers),
        "priority": message.priority,
        "delay": message.delay,
        "body": message.body,
    }
