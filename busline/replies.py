"""From a reply to the value or the error that the caller gets. Pure."""

from __future__ import annotations

from typing import Any

from busline.codec import decode, decode_as
from busline.errors import (
    CodecError,
    IdempotencyConflict,
    IdempotencyMismatch,
    NoHandler,
    RemoteError,
    Unavailable,
)
from busline.message import Message
from busline.registry import ErrorRegistry
from busline.transports.base import Transport
from busline.wire import decode_error, reply_status

_KEY_ERRORS: dict[str, type[IdempotencyConflict] | type[IdempotencyMismatch]] = {
    "busline.idempotency_conflict": IdempotencyConflict,
    "busline.idempotency_mismatch": IdempotencyMismatch,
}


def result_of(reply: Message, topic: str, returns: Any, errors: ErrorRegistry, transport: Transport) -> Any:
    """The result, as `returns` if that is given; raises what the handler raised, or CodecError."""
    if reply_status(reply) == "error":
        raise error_of(reply.body, topic, errors, transport.where)
    if returns is None:
        return decode(reply.body)
    try:
        return decode_as(returns, reply.body)
    except CodecError as error:
        raise CodecError(f"the reply of {topic!r} is not what was expected: {error}") from error


def error_of(body: bytes, topic: str, errors: ErrorRegistry, where: str) -> Exception:
    """The error that an error reply, or the store, tells of."""
    kind, text, details = decode_error(body)
    if kind == "busline.no_handler":
        return NoHandler(topic, where)
    if kind == "busline.unavailable":
        return Unavailable(text)
    if kind in _KEY_ERRORS and isinstance(details.get("key"), str):
        return _KEY_ERRORS[kind](details["key"])
    return errors.rebuild(kind, text, details) or RemoteError(kind, text, details)
