"""Messages as bytes, so that a store can keep them: what a handler sent, a job's message, an orphan's. Pure."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import orjson

from busline.codec import compact
from busline.errors import CodecError
from busline.message import Destination, Message, ToQueue, ToTopic
from busline.structs import struct

_FIELDS = (*("topic", "meta", "headers", "correlation_id", "reply_to", "priority", "delay", "ttl", "expendable"),)


@struct
class Parcel:
    """A message with its address; `to` is None for an event."""

    message: Message
    to: Destination | None = None
    fallback: str | None = None
    """The queue that takes it if nobody owns its topic."""
    job: dict[str, Any] | None = None
    """How it is tracked: `ttl`, `unique`, `unique_for`; None where it is not."""

    def fields(self) -> dict[str, Any]:
        """What `pack` writes."""
        message, to = self.message, self.to
        packed = {name: value for name in _FIELDS if (value := getattr(message, name)) not in (None, "", 0, False)}
        packed["headers"] = dict(message.headers)
        packed["body"] = b64encode(message.body).decode()
        if isinstance(to, ToQueue):
            packed["to_queue"] = to.queue
        elif to is not None:
            packed["to_topic"] = to.topic
        if self.fallback is not None:
            packed["fallback"] = self.fallback
        if self.job is not None:
            packed["job"] = self.job
        return packed


def pack(*parcels: Parcel) -> bytes:
    """One after the other; nothing for none."""
    return compact(orjson.dumps([parcel.fields() for parcel in parcels])) if parcels else b""


def unpack(packed: bytes) -> list[Parcel]:
    """What was packed. Raises CodecError for bytes that `pack` did not write."""
    if not packed:
        return []
    try:
        return [_parcel(fields) for fields in orjson.loads(packed)]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CodecError(f"what the store kept is no message: {error}") from error


def _parcel(fields: dict[str, Any]) -> Parcel:
    fields = dict(fields)
    queue, topic = fields.pop("to_queue", None), fields.pop("to_topic", None)
    to = ToQueue(queue) if queue is not None else ToTopic(topic) if topic is not None else None
    fallback, job = fields.pop("fallback", None), fields.pop("job", None)
    return Parcel(Message(body=b64decode(fields.pop("body")), **fields), to, fallback, job)
