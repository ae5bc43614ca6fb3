"""A message as SQS takes it and back. What any client may have written is read without trust.

The body is the payload's text. Beside it at most seven attributes: `topic`, `busline` (our metadata), `headers` (the
user's, one JSON object), `correlation_id`, `reply_to`, `busline-body` (a body that is no text SQS takes), and
`busline-driver`, one JSON object of what only this driver needs:

    b  1 = the body is in its attribute, 0 = it is empty (SQS takes no empty one)
    t  the topic is percent-encoded, because it has characters that SQS does not take
    d  how often it had been handed out before this copy was made
    x  when an expendable message has expired, milliseconds since 1970; 0 = never
    e  1 = it is an event, so it must match one of the queue's patterns
    r  who gave it back, by making this copy
    w  seconds of its delay, counted from the instant at which this copy was sent
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from time import time
from typing import Any
from urllib.parse import quote, unquote

from busline.errors import ConfigurationError, MessageTooLarge
from busline.message import NO_HEADERS, Message

MAX_WIRE = 1_048_576
"""Bytes of body and attributes together, of one message and of one batch."""
MAX_BYTES = MAX_WIRE - 4096
"""Body and metadata of one of ours; the rest is for the other attributes."""
MAX_EVENT_WIRE = 262_144
MAX_EVENT = MAX_EVENT_WIRE - 4096
"""The same of an event, which goes through SNS."""
LONGEST_DELAY = 900
"""Seconds that SQS delays by itself; longer delays take several of them."""
TOPIC, META, HEADERS, DRIVER, BODY = "topic", "busline", "headers", "busline-driver", "busline-body"
CORRELATION, REPLY_TO = "correlation_id", "reply_to"
_OURS = frozenset({TOPIC, META, HEADERS, DRIVER, BODY, CORRELATION, REPLY_TO})
GROUP = "MessageGroupId"
"""A header that names the group of a message in a FIFO queue; without it a message is a group of its own."""
DIED = "busline-died"
"""A header that the driver adds to what SQS dead-lettered by itself: a JSON object that says where it came from."""

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLACEHOLDER = "-"

Attributes = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Parcel:
    """One message, ready to be sent."""

    body: str
    attributes: Attributes
    size: int
    """Bytes that SQS counts."""
    delay: int = 0
    """Whole seconds of `DelaySeconds`."""


def check(message: Message, limit: int = MAX_BYTES) -> None:
    """Raises MessageTooLarge, or ConfigurationError for what no queue here could take. `limit` is in bytes of body and
    metadata."""
    meta = len(message.meta) if message.meta.isascii() else len(message.meta.encode())
    size = len(message.body) + meta
    if size > limit:
        raise MessageTooLarge(size, limit)
    if message.priority:
        raise ConfigurationError(f"priority {message.priority} of {message.topic!r}: SQS knows no priorities")


def parcel(message: Message, *, limit: int = MAX_WIRE, event: bool = False) -> Parcel:
    """Raises MessageTooLarge if it does not fit as it travels."""
    driver: dict[str, Any] = {}
    attributes: Attributes = {}
    body = _text_of(message.body, driver, attributes)
    if event:
        driver["e"] = 1
    if message.expendable:
        driver["x"] = 0 if message.ttl is None else ceil((time() + message.ttl) * 1000)
    if message.delay > 0:
        driver["w"] = message.delay
    topic = message.topic
    if _FORBIDDEN.search(topic):
        topic = quoted(topic)
        driver["t"] = 1
    _put(attributes, TOPIC, topic)
    _put(attributes, META, message.meta)
    _put(attributes, CORRELATION, message.correlation_id)
    _put(attributes, REPLY_TO, message.reply_to)
    if message.headers:
        _put(attributes, HEADERS, json.dumps(dict(message.headers), ensure_ascii=False, separators=(",", ":")))
    if driver:
        _put(attributes, DRIVER, json.dumps(driver, separators=(",", ":")))
    made = Parcel(body, attributes, size_of(body, attributes), min(ceil(message.delay), LONGEST_DELAY))
    if made.size > limit:
        raise MessageTooLarge(made.size, limit)
    return made


def _text_of(body: bytes, driver: dict[str, Any], attributes: Attributes) -> str:
    if not body:
        driver["b"] = 0
        return _PLACEHOLDER
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or _FORBIDDEN.search(text):
        driver["b"] = 1
        attributes[BODY] = {"DataType": "Binary", "BinaryValue": body}
        return _PLACEHOLDER
    return text


def quoted(text: str) -> str:
    """With its odd characters percent-encoded, and percent signs, too."""
    return quote(text, safe="".join(chr(code) for code in range(33, 127) if chr(code) != "%"))


def has_odd_characters(text: str) -> bool:
    """Are there some that SQS does not take?"""
    return _FORBIDDEN.search(text) is not None


def _put(attributes: Attributes, name: str, value: str | None) -> None:
    """As text if SQS takes it, else as bytes."""
    if not value:
        return
    if _FORBIDDEN.search(value):
        attributes[name] = {"DataType": "Binary", "BinaryValue": value.encode()}
    else:
        attributes[name] = {"DataType": "String", "StringValue": value}


def size_of(body: str, attributes: Attributes) -> int:
    """Bytes that SQS counts: body, and of each attribute its name, type and value."""
    size = len(body.encode())
    for name, value in attributes.items():
        size += len(name) + len(value["DataType"])
        size += len(value["StringValue"].encode()) if "StringValue" in value else len(value["BinaryValue"])
    return size


@dataclass(slots=True)
class Letter:
    """What was received, read."""

    message: Message
    driver: Mapping[str, Any]

    @property
    def deliveries_before(self) -> int:
        """How often it had been handed out before this copy was made."""
        return _whole(self.driver.get("d"))

    @property
    def is_event(self) -> bool:
        """It came through SNS."""
        return self.driver.get("e") == 1

    @property
    def expires_at(self) -> float | None:
        """Seconds since the epoch; None if it does not expire."""
        expires = _whole(self.driver.get("x"))
        return expires / 1000 if expires else None

    @property
    def delay(self) -> float:
        """Seconds from its sending."""
        wait = self.driver.get("w")
        return float(wait) if isinstance(wait, (int, float)) and wait > 0 else 0.0


def again(raw: Mapping[str, Any], letter: Letter, *, delay: float, deliveries: int, by: str = "") -> Parcel:
    """What was received, as it came, to be sent once more. Raises MessageTooLarge."""
    driver = {key: value for key, value in letter.driver.items() if key not in ("d", "w", "r")}
    if by:
        driver["r"] = by
    if deliveries:
        driver["d"] = deliveries
    if delay > 0:
        driver["w"] = delay
    attributes: Attributes = {
        name: {key: value[key] for key in ("DataType", "StringValue", "BinaryValue") if key in value}
        for name, value in (raw.get("MessageAttributes") or {}).items()
        if name != DRIVER
    }
    if driver:
        _put(attributes, DRIVER, json.dumps(driver, separators=(",", ":")))
    body = str(raw.get("Body", ""))
    made = Parcel(body, attributes, size_of(body, attributes), min(ceil(delay), LONGEST_DELAY))
    if made.size > MAX_WIRE:
        raise MessageTooLarge(made.size, MAX_WIRE)
    return made


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def read(raw: Mapping[str, Any], topic: str = "") -> Letter:
    """What was received. `topic` is that of a message that names none."""
    attributes: Attributes = raw.get("MessageAttributes") or {}
    driver = _object(_text(attributes.get(DRIVER)))
    named = _text(attributes.get(TOPIC))
    if named is not None and driver.get("t"):
        named = unquote(named)
    message = Message(
        named if named is not None else "" if DRIVER in attributes or META in attributes else topic,
        _bytes_of(str(raw.get("Body", "")), driver.get("b"), attributes.get(BODY)),
        _text(attributes.get(META)) or "",
        _headers(raw, attributes),
        _text(attributes.get(CORRELATION)),
        _text(attributes.get(REPLY_TO)),
    )
    letter = Letter(message, driver)
    if "x" in driver:
        message.expendable = True
        expires = letter.expires_at
        message.ttl = None if expires is None else expires - time()
    return letter


def _bytes_of(text: str, flag: object, apart: Mapping[str, Any] | None) -> bytes:
    if flag == 0:
        return b""
    if flag == 1 and apart is not None:
        return bytes(apart.get("BinaryValue") or b"")
    return text.encode()


def _headers(raw: Mapping[str, Any], attributes: Attributes) -> Mapping[str, str]:
    headers = {name: str(value) for name, value in _object(_text(attributes.get(HEADERS))).items()}
    for name, value in attributes.items():
        if name not in _OURS:
            headers[name] = _text(value) or ""
    source = (raw.get("Attributes") or {}).get("DeadLetterQueueSourceArn")
    if source:
        headers[DIED] = json.dumps({"reason": "maxReceiveCount", "queue": re.split(":", str(source))[-1]})
    return headers or NO_HEADERS


def _object(text: str | None) -> dict[str, Any]:
    """The JSON object in it; an empty one for anything else."""
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    if (text := value.get("StringValue")) is not None:
        return str(text)
    return bytes(value.get("BinaryValue") or b"").decode(errors="replace")
