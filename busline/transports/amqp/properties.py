"""A message as AMQP properties and back. What any client may have written is read without trust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from datetime import datetime
from math import ceil
from random import getrandbits
from struct import error as StructError
from time import time
from typing import Any

from busline.errors import ConfigurationError, MessageTooLarge
from busline.message import DIED, NO_HEADERS, Message
from busline.transports.amqp.wire import Delivered, Header, Properties, encode
from busline.transports.amqp.wire.reading import UNREADABLE

MAX_BYTES = 16 * 1024 * 1024
"""Body and metadata; RabbitMQ 4 takes no larger bodies."""
MAX_HEADER_BYTES = 120_000
"""Metadata and headers travel in one frame of at most 128 KiB."""
MAX_PRIORITY = 10
META = "busline"
DELIVERIES = "busline-deliveries"
"""A header of a message that was released: how often it had been handed out, releases not counted."""
EXPIRES = "busline-expires"
"""A header of an expendable message: when its time has passed, in milliseconds since 1970; 0 = never. The property
`expiration` alone would not do: AMQP counts it anew with each copy, and a quorum queue looks at its head only."""
LADDER = "busline.delay."
"""How the names of the delay queues begin."""

APP_ID = "busline"
PERSISTENT, TRANSIENT = 2, 1

_OF_THE_BROKER = frozenset(
    {META, DELIVERIES, EXPIRES, "x-delivery-count", "x-acquired-count", "CC", "BCC", "x-death"}
    | {f"x-{which}-death-{what}" for which in ("first", "last") for what in ("exchange", "queue", "reason")}
)
_KEPT = frozenset({META, EXPIRES})
"""Of these, what a copy keeps. Not `x-death`: by it a broker would think that a copy which goes through the delay
queues once more runs in a circle, and drop it."""


def check(message: Message) -> None:
    """Raises MessageTooLarge, or ConfigurationError for what no queue here could take."""
    meta = len(message.meta) if message.meta.isascii() else len(message.meta.encode())
    size = len(message.body) + meta
    if size > MAX_BYTES:
        raise MessageTooLarge(size, MAX_BYTES)
    if meta > MAX_HEADER_BYTES // 4 or message.headers:
        headers = meta + sum(len(key.encode()) + len(value.encode()) + 6 for key, value in message.headers.items())
        if headers > MAX_HEADER_BYTES:
            raise MessageTooLarge(headers, MAX_HEADER_BYTES)
    if message.headers and not _OF_THE_BROKER.isdisjoint(message.headers):
        taken = ", ".join(sorted(_OF_THE_BROKER.intersection(message.headers)))
        raise ConfigurationError(f"headers of {message.topic!r}: {taken} mean something to RabbitMQ or to busline")
    if not 0 <= message.priority <= MAX_PRIORITY:
        raise ConfigurationError(f"priority {message.priority} of {message.topic!r} is not in 0 to {MAX_PRIORITY}")


def properties(
    message: Message, *, reply_to: str | None = None, mode: int = PERSISTENT, delayed: bool = False
) -> Header:
    """For one attempt to send. `delayed`: by the ladder, where an expiration would end the delay, not the message.
    Raises ConfigurationError for texts that AMQP has no room for."""
    headers: dict[str, str | int] = {**message.headers} if message.headers else {}
    if message.meta:
        headers[META] = message.meta
    if message.expendable:
        headers[EXPIRES] = 0 if message.ttl is None else ceil((time() + message.ttl) * 1000)
    try:
        return header(
            mode=mode,
            headers=headers,
            priority=message.priority,
            correlation_id=message.correlation_id,
            reply_to=reply_to or message.reply_to,
            expiration=_expiration(message.ttl) if message.expendable and not delayed else None,
            message_type=message.topic,
        )
    except ValueError as error:
        raise ConfigurationError(f"a message of {message.topic!r} cannot be sent: {error}") from None


def header(*, mode: int = PERSISTENT, **more: Any) -> Header:
    """Of something that leaves now; see `encode` for `more`."""
    return encode(
        message_id=_message_id(),
        timestamp=int(time()),
        mode=mode,
        content_type="application/json",
        app_id=APP_ID,
        **more,
    )


def _message_id() -> str:
    """Fresh, because a returned message is known by it; no secret."""
    return f"{getrandbits(128):032x}"


def _expiration(ttl: float | None) -> str | None:
    """The broker deletes it then, if nobody has taken it and it is the first of its queue."""
    return None if ttl is None else str(max(0, ceil(ttl * 1000)))


def life(found: Properties) -> float | None:
    """Seconds until the broker may delete it, 0 or less if that is past; None for what it must keep."""
    expires = found.headers.get(EXPIRES) if found.headers else None
    return expires / 1000 - time() if isinstance(expires, int) and expires > 0 else None


def has_expired(delivered: Delivered) -> bool:
    """Is it one that is of no use any more, and that the broker has not deleted because it was not its turn?"""
    left = life(delivered.properties)
    return left is not None and left <= 0


def is_readable(delivered: Delivered) -> bool:
    """False for a message whose properties could not be decoded."""
    return delivered.properties.delivery_mode != UNREADABLE


def message_of(delivered: Delivered, topic: str = "") -> Message:
    """What was delivered. `topic` is that of a message that names none and came straight to the queue."""
    found = delivered.properties
    headers = found.headers or {}
    meta = headers.get(META) if headers else None
    by_key = delivered.exchange or not topic
    own = NO_HEADERS if not headers else _own(headers)
    return Message(
        found.message_type or _topic_once(headers) or (delivered.routing_key if by_key else topic) or "",
        delivered.body,
        meta if isinstance(meta, str) else "",
        own,
        found.correlation_id,
        found.reply_to,
        found.priority or 0,
        ttl=life(found),
        expendable=bool(headers) and EXPIRES in headers,
    )


def delivery_count(delivered: Delivered) -> int:
    """How often it was handed out, releases not counted. Quorum queues count; of others only a first is known."""
    headers = delivered.properties.headers
    if not headers:
        return 2 if delivered.redelivered else 1
    before, count = headers.get(DELIVERIES, 0), headers.get("x-delivery-count")
    if isinstance(count, int):
        return count + 1 + (before if isinstance(before, int) and before > 0 else 0)
    return 2 if delivered.redelivered or before else 1


def released(found: Properties, deliveries: int, *, delayed: bool) -> Header:
    """Of the copy that takes the place of a released message: as it came, and the broker counts anew."""
    headers = {key: value for key, value in (found.headers or {}).items() if key in _KEPT or key not in _OF_THE_BROKER}
    if died := _died((found.headers or {}).get("x-death")):
        headers[DIED] = died
    if deliveries > 1:
        headers[DELIVERIES] = deliveries - 1
    again = copy(found.full())
    again.headers, again.message_id = headers or None, _message_id()
    again.expiration = None if delayed else _expiration(life(found))
    try:
        return Header.of(again)
    except (ValueError, TypeError, OverflowError, StructError) as error:  # not all that it decodes
        raise ConfigurationError(f"a message cannot be sent again as it came: {error}") from None


def _own(headers: Mapping[str, Any]) -> dict[str, str]:
    own = {key: _text(value) for key, value in headers.items() if key not in _OF_THE_BROKER}
    if died := _died(headers.get("x-death")):
        own[DIED] = died
    return own


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode(errors="replace")
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def _deaths(found: object) -> list[Mapping[str, Any]]:
    """The broker's own account of where a message died, the last first, our delay queues not counted."""
    if not isinstance(found, list):
        return []
    deaths = [death for death in found if isinstance(death, dict)]
    return [death for death in deaths if not str(death.get("queue", "")).startswith(LADDER)]


def _died(found: object) -> str:
    """The last of its deaths."""
    for death in _deaths(found):
        told = {"reason": death.get("reason"), "queue": death.get("queue")}
        if isinstance(at := death.get("time"), datetime):
            told["at"] = at.timestamp()
        return json.dumps(told, default=str, ensure_ascii=False)
    return ""


def _topic_once(headers: Mapping[str, Any]) -> str:
    """Of a message that names no topic and that the broker moved since: the key with which it first came through an
    exchange; "" if it came straight to its queue."""
    deaths = _deaths(headers.get("x-death")) if headers else ()
    if not deaths or not deaths[-1].get("exchange"):
        return ""
    keys = deaths[-1].get("routing-keys")
    return str(keys[0]) if isinstance(keys, list) and keys else ""
