"""What travels between processes: length-prefixed frames, the kind in the first byte."""

from __future__ import annotations

import json
from struct import Struct

from busline.errors import CodecError
from busline.message import Message

WAKE = 1
"""Messages of a queue are ready, or will be at a given time."""
REPLY = 2

LENGTH = Struct("!I")
_WAKE = Struct("!BQd")
_REPLY = Struct("!BIiiiiiid")
_NONE = -1


def wake(queue: int, due: float) -> bytes:
    """A wake-up; `due` is 0.0 for now."""
    return _WAKE.pack(WAKE, queue, due)


def read_wake(frame: bytes) -> tuple[int, float]:
    """The queue's id and the time."""
    _, queue, due = _WAKE.unpack(frame)
    return queue, due


def reply(inbox: int, message: Message) -> bytes:
    """A message, whole, for one of the inboxes that the process has had.

    Only `delay` and `expendable` stay behind: they say how a message waits in a queue, and a reply waits in none.
    """
    headers = json.dumps(dict(message.headers), ensure_ascii=False) if message.headers else None
    texts = (message.topic, message.meta, headers, message.correlation_id, message.reply_to)
    parts = [None if text is None else text.encode() for text in texts]
    sizes = [_NONE if part is None else len(part) for part in parts]
    ttl = -1.0 if message.ttl is None else message.ttl
    return b"".join([_REPLY.pack(REPLY, inbox, message.priority, *sizes, ttl), *filter(None, parts), message.body])


def read_reply(frame: bytes) -> tuple[int, Message]:
    """The inbox and the message again."""
    _, inbox, priority, *sizes, ttl = _REPLY.unpack_from(frame)
    texts: list[str | None] = []
    at = _REPLY.size
    for size in sizes:
        if size == _NONE:
            texts.append(None)
        else:
            texts.append(frame[at : at + size].decode())
            at += size
    topic, meta, headers, correlation_id, reply_to = texts
    if topic is None or meta is None:
        raise CodecError("a reply without topic or meta")
    decoded = json.loads(headers) if headers else {}
    ends = None if ttl < 0 else ttl
    return inbox, Message(topic, frame[at:], meta, decoded, correlation_id, reply_to, priority, 0.0, ends)
