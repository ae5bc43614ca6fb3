"""From a reply to the value or the error that the caller gets. Pure."""

from __future__ import annotations

from typing import Any

from busline.codec import decode, decode_as
from busline.errors import CodecError, NoHandler, RemoteError, Unavailable
from busline.message import Message
from busline.registry import ErrorRegistry
from busline.wire import decode_error, reply_status


def result_of(reply: Message, topic: str, returns: Any, errors: ErrorRegistry, where: str) -> Any:
    """The result, as `returns` if that is given; raises what the handler raised, or CodecError."""
    if reply_status(reply) == "error":
        raise _error(reply, topic, errors, where)
    if returns is None:
        return decode(reply.body)
    try:
        return decode_as(returns, reply.body)
    except CodecError as error:
        raise CodecError(f"the reply of {topic!r} is not what was expected: {error}") from error


def _error(reply: Message, topic: str, errors: ErrorRegistry, where: str) -> Exception:
    kind, text, details = decode_error(reply.body)
    if kind == "busline.no_handler":
        return NoHandler(topic, where)
    if kind == "busline.unavailable":
        return Unavailable(text)
    return errors.rebuild(kind, text, details) or RemoteError(kind, text, details)
