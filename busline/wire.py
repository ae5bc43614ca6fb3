"""The envelope and the reply as they travel: `Message.meta` is one compact JSON string, the body the payload alone.

On a request: `v` (1), `id`, `sent`, and where they say something `attempt`, `deadline`, `expires`, `due`,
`correlation`, `causation`, `key`, `replay`, `failure`. On a reply: `v`, `status`. Instants are seconds since the epoch.
Fields that this version does not know are kept when a message is sent on; a version that it does not know is refused,
never guessed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import orjson

from busline.codec import decode, encode
from busline.errors import CodecError
from busline.message import Message
from busline.structs import struct

VERSION = 1
MAX_ATTEMPT = 2**53
"""The next one is a number that every JSON reader can still tell apart."""
IDS_AT_ONCE = 64
"""Ids that one system call brings."""
ReplyStatus = Literal["ok", "error", "started"]


def new_id() -> str:
    """128 random bits as 32 hex digits: unguessable, so that nobody can answer a call that he has not seen."""
    while True:
        try:
            return _unused_ids.pop()  # atomic, whoever else takes one in another thread
        except IndexError:
            _unused_ids.extend(os.urandom(16 * IDS_AT_ONCE).hex(" ", 16).split())


_unused_ids: list[str] = []
os.register_at_fork(after_in_child=_unused_ids.clear)


@struct
class Envelope:
    """What busline knows about one message, beside topic and body."""

    id: str
    sent_at: float
    """When it was first sent; a retry keeps it."""
    attempt: int = 1
    deadline: float | None = None
    """Of a call: after it nobody waits for the answer."""
    expires_at: float | None = None
    """Of a job or an event with a ttl: after it, it must not start."""
    due_at: float | None = None
    """When it could first be delivered, where that is not when it was sent: it was delayed, or is tried again."""
    correlation_id: str = ""
    """The id of the message at the root of the conversation."""
    causation_id: str | None = None
    """The id of the message whose handling sent this one."""
    failure: dict[str, Any] | None = None
    """Why it is a dead letter."""
    unknown: dict[str, Any] | None = None
    """Fields of a later minor version, kept as they came; None where there are none, as a dict for each would cost."""
    key: str | None = None
    """The sender's idempotency key: messages with the same one ask for the same effect. "" = its id is the key, because
    it is tracked as a job."""
    replay: str | None = None
    """Somebody has sent this dead letter back: a key that failed is opened again, once for each such sending."""

    def encode(self) -> str:
        """The string that travels as `Message.meta`; fields that say nothing are left out."""
        fields: dict[str, Any] = {"v": VERSION, "id": self.id, "sent": self.sent_at}
        if self.attempt != 1:
            fields["attempt"] = self.attempt
        if self.deadline is not None:
            fields["deadline"] = self.deadline
        if self.expires_at is not None:
            fields["expires"] = self.expires_at
        if self.due_at is not None:
            fields["due"] = self.due_at
        if self.correlation_id and self.correlation_id != self.id:
            fields["correlation"] = self.correlation_id
        if self.causation_id:
            fields["causation"] = self.causation_id
        if self.key is not None:
            fields["key"] = self.key
        if self.replay:
            fields["replay"] = self.replay
        if self.failure:
            fields["failure"] = self.failure
        if self.unknown:
            fields = {**self.unknown, **fields}
        return orjson.dumps(fields).decode()

    def next_attempt(self, due_at: float) -> Envelope:
        """The same message, to be tried once more from `due_at`."""
        return replace(self, attempt=self.attempt + 1, due_at=due_at)

    def dead(self, failure: dict[str, Any]) -> Envelope:
        """The same message as a dead letter: nobody waits for it and it does not expire."""
        return replace(self, failure=failure, deadline=None, expires_at=None)


_STRING, _NUMBER = frozenset({str}), frozenset({int, float})
_INSTANT = (float, type(None))
_FIELDS: dict[str, tuple[str, frozenset[type]]] = {
    "id": ("id", _STRING),
    "sent": ("sent_at", _NUMBER),
    "attempt": ("attempt", frozenset({int})),
    "deadline": ("deadline", _NUMBER),
    "expires": ("expires_at", _NUMBER),
    "due": ("due_at", _NUMBER),
    "correlation": ("correlation_id", _STRING),
    "causation": ("causation_id", _STRING),
    "key": ("key", _STRING),
    "replay": ("replay", _STRING),
    "failure": ("failure", frozenset({dict})),
}
"""What each field is of an envelope, and what JSON makes of it; a bool is no number here."""


def decode_envelope(message: Message, now: float) -> Envelope:
    """Read `message.meta`; a message from elsewhere, without any, gets an envelope of its own.

    Raises CodecError for anything that is not an envelope of our version.
    """
    if not message.meta:
        return Envelope(id=message.correlation_id or new_id(), sent_at=now)
    fields = _fields(message.meta)
    id, sent, deadline = fields.get("id"), fields.get("sent"), fields.get("deadline")
    said = 2 if deadline is None else 3
    if len(fields) == said and id and type(id) is str and type(sent) is float and type(deadline) in _INSTANT:
        return Envelope(id, sent, 1, deadline, None, None, id)  # a first attempt says no more
    return _read(fields, now)


def _read(fields: Mapping[str, Any], now: float) -> Envelope:
    envelope = Envelope("", now)
    for name, value in fields.items():
        if name not in _FIELDS:
            if envelope.unknown is None:
                envelope.unknown = {}
            envelope.unknown[name] = value
            continue
        attribute, types = _FIELDS[name]
        if type(value) not in types:
            raise CodecError(f"{name!r} in the busline header is a {type(value).__name__}")
        setattr(envelope, attribute, value)
    if not envelope.id or not 1 <= envelope.attempt <= MAX_ATTEMPT:
        raise CodecError(f"the busline header has no id, or an attempt that is not 1 to {MAX_ATTEMPT}")
    envelope.correlation_id = envelope.correlation_id or envelope.id
    if envelope.unknown or envelope.failure:
        _check_nesting(envelope)
    return envelope


def _check_nesting(envelope: Envelope) -> None:
    """orjson reads 1024 levels and writes 254: what could never be sent on is refused when it is received."""
    try:
        envelope.encode()
    except TypeError as error:
        raise CodecError(f"the busline header cannot be sent on: {error}") from error


def _fields(meta: str) -> dict[str, Any]:
    try:
        fields = orjson.loads(meta)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise CodecError(f"the busline header is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CodecError(f"the busline header is a {type(fields).__name__}, not an object")
    version = fields.pop("v", None)
    if version != VERSION or version is True:
        raise CodecError(f"the busline header is of version {version!r}, this side reads {VERSION}")
    return fields


_STATUS_META: dict[ReplyStatus, str] = {
    status: orjson.dumps({"v": VERSION, "status": status}).decode() for status in ("ok", "error", "started")
}
_META_STATUS: dict[str, ReplyStatus] = {meta: status for status, meta in _STATUS_META.items()}


def reply_to(request: Message, status: ReplyStatus, body: bytes) -> Message:
    """The reply to `request`. Its body is the result's JSON, or the error's, or null for "started"."""
    return Message(request.topic, body, _STATUS_META[status], {}, request.correlation_id)


def reply_status(reply: Message) -> ReplyStatus:
    """What kind of reply it is; one without metadata, from elsewhere, is a result. Raises CodecError."""
    if status := _META_STATUS.get(reply.meta):
        return status
    if not reply.meta:
        return "ok"
    named = _fields(reply.meta).get("status")
    for status in _STATUS_META:
        if status == named:
            return status
    raise CodecError(f"a reply has the status {named!r}, which this side does not know")


def printable(text: str) -> str:
    """The text, with a question mark for each lone surrogate, which no JSON can carry (file names have them)."""
    return text.encode(errors="replace").decode()


def text_of(error: BaseException) -> str:
    """What the exception says, fit to travel, also where saying it fails."""
    try:
        return printable(str(error))
    except Exception as fault:
        return f"(its text cannot be had: {fault.__class__.__name__})"


def encode_error(type: str, message: str, details: dict[str, Any]) -> bytes:
    """The body of an error reply; details that have no JSON form are left out rather than the error."""
    try:
        return encode({"type": type, "message": message, "details": details})
    except CodecError:
        return encode({"type": printable(type), "message": printable(message), "details": {}})


def decode_error(body: bytes) -> tuple[str, str, dict[str, Any]]:
    """Type, message and details of an error reply. Raises CodecError."""
    error = decode(body)
    if not isinstance(error, dict) or not isinstance(error.get("type"), str):
        raise CodecError("an error reply has no type")
    details = error.get("details")
    return error["type"], str(error.get("message", "")), details if isinstance(details, dict) else {}
