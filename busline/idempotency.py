"""What makes two messages the same one: keys, their scope, and the fingerprint of what they say. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import orjson

from busline.codec import decode
from busline.errors import CodecError, ConfigurationError
from busline.structs import frozen
from busline.wire import Envelope

OnConflict = Literal["wait", "skip", "raise"]
OnOrphan = Literal["fail", "resend"]

MAX_KEY_BYTES = 1024
"""Longest key of a record; a longer one is replaced by its hash."""
UNFINISHED_TTL = 7 * 86400.0
"""Seconds for which a key that waits for its next attempt, and a job that waits in its queue, are remembered."""


class KeyMissing(Exception):
    """The message has no key where its handler expects one; the text says where."""


@frozen()
class Idempotency:
    """The effect of a handler happens once per key, however often the message is sent or delivered. Needs a store.

    `key`: name of the payload's field that is the key (`"order.id"` looks deeper), or a function that takes what the
    handler takes and returns it. None: the key that the sender gave with `idempotency_key=`, else the message's id, so
    that what the broker delivers twice runs once.

    `lease`: seconds for which a key stays taken without a sign of life of its worker, which renews it while the handler
    runs. `ttl`: seconds for which the outcome is kept, and repeats are answered from it. `on_conflict`: what becomes of
    a message whose key another worker is working on. It is given back until that one has ended ("wait"); or it is
    acked and not run ("skip", a caller gets IdempotencyConflict; a message that the broker hands out again waits all
    the same, because who had it before may be dead); or it fails with IdempotencyConflict ("raise").

    `orphans`: with `ack="early"`, what becomes of a message whose worker has died: it failed, and is a dead letter
    ("fail"), or it is sent again ("resend").
    """

    key: str | Callable[..., Any] | None = None
    lease: float = 10.0
    ttl: float = 86400.0
    on_conflict: OnConflict = "wait"
    orphans: OnOrphan = "fail"

    def __post_init__(self) -> None:
        key: object = self.key  # of whatever type it was given
        if not (key is None or callable(key) or (isinstance(key, str) and key)):
            raise ConfigurationError(f"an idempotency key is the name of a field or a function, not {self.key!r}")
        if not (self.lease >= 0.1 and self.ttl > 0):
            raise ConfigurationError("a claim's lease is at least 0.1 s, its ttl is positive")
        if self.on_conflict not in ("wait", "skip", "raise"):
            raise ConfigurationError(f"on_conflict is 'wait', 'skip' or 'raise', not {self.on_conflict!r}")
        if self.orphans not in ("fail", "resend"):
            raise ConfigurationError(f"orphans is 'fail' or 'resend', not {self.orphans!r}")


PLAIN = Idempotency()
"""Of a message that brought a key, or is tracked, to a handler that said nothing."""


def key_of(
    idempotency: Idempotency | None, envelope: Envelope, body: bytes, arguments: Callable[[], dict[str, Any]]
) -> str:
    """The key of a message; `arguments` are what its handler takes. Raises KeyMissing."""
    wanted = idempotency.key if idempotency is not None else None
    if wanted is None:
        return envelope.key or envelope.id
    return _text(_field(wanted, body) if isinstance(wanted, str) else _asked(wanted, arguments()))


def _field(name: str, body: bytes) -> Any:
    try:
        value = decode(body)
    except CodecError as error:
        raise KeyMissing(f"its idempotency key {name!r} cannot be read: {error}") from error
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        raise KeyMissing(f"it has no field {name!r}, which is its idempotency key")
    return value


def _asked(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        value = function(*arguments.values())
    except Exception as error:  # somebody else's code, which may raise anything
        raise KeyMissing(f"the function for its idempotency key raised {type(error).__name__}") from error
    if value is None:
        raise KeyMissing("the function for its idempotency key returned None")
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        return str(value)


def scoped(queue: str, topic: str, key: str) -> str:
    """The key as the store knows it: two queues, or two topics, never share one. Before its first "/" is the scope of
    the queue, whose name has 200 bytes at most."""
    full = f"{scope_of(queue)}/{_escaped(topic)}/{key}".encode(errors="replace")
    if len(full) <= MAX_KEY_BYTES:
        return full.decode()
    return f"{scope_of(queue)}/sha256:{_sha256(full)}"


def scope_of(queue: str) -> str:
    """What the keys of a queue, and of no other, have before their first "/"."""
    return _escaped(queue)


def _sha256(text: bytes) -> str:
    from hashlib import sha256  # imported when it is needed: it brings OpenSSL along

    return sha256(text).hexdigest()


def _escaped(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def fingerprint(topic: str, body: bytes) -> str:
    """The same for two bodies that say the same to the same topic, however their JSON is written."""
    try:
        canonical = orjson.dumps(orjson.loads(body or b"null"), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError, RecursionError):
        canonical = body  # not JSON as orjson reads it; then only the same bytes are the same
    return _sha256(topic.encode(errors="replace") + b"\0" + canonical)
