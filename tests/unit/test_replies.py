"""From a reply to what the caller gets."""

from __future__ import annotations

from typing import Any

import pytest

from busline.errors import CodecError, NoHandler, RemoteError, Unavailable
from busline.message import Message
from busline.registry import ErrorRegistry
from busline.replies import result_of
from busline.transports.memory import MemoryBroker, MemoryTransport
from busline.wire import encode_error, reply_to

HERE = MemoryTransport(MemoryBroker())
REQUEST = Message("a.topic", b"", correlation_id="c", reply_to="inbox")


class NotFound(Exception):
    pass


def result(body: bytes, returns: Any = None) -> Any:
    return result_of(reply_to(REQUEST, "ok", body), "a.topic", returns, ErrorRegistry(), HERE)


def raised(kind: str, text: str, details: dict[str, Any] | None = None) -> Exception:
    errors = ErrorRegistry()
    errors.add("not_found", NotFound)
    reply = reply_to(REQUEST, "error", encode_error(kind, text, details or {}))
    with pytest.raises(Exception) as caught:  # which one is the question
        result_of(reply, "a.topic", None, errors, HERE)
    return caught.value


@pytest.mark.parametrize(
    ("body", "returns", "value"),
    [(b"null", None, None), (b'{"a":[1]}', None, {"a": [1]}), (b'"5"', int, 5), (b"[1,2]", tuple[int, int], (1, 2))],
)
def test_a_result_is_plain_data_or_of_the_type_asked_for(body: bytes, returns: Any, value: object) -> None:
    assert result(body, returns) == value


@pytest.mark.parametrize(("body", "returns"), [(b"no json", None), (b"no json", int), (b'"x"', int), (b"null", int)])
def test_a_result_that_is_something_else_says_so(body: bytes, returns: Any) -> None:
    with pytest.raises(CodecError, match="'a.topic'" if returns else "not JSON"):
        result(body, returns)


def test_what_our_own_side_answers_arrives_as_our_own_errors() -> None:
    error = raised("busline.no_handler", "ignored")
    assert isinstance(error, NoHandler)
    assert (error.topic, error.where) == ("a.topic", "memory://")
    error = raised("busline.unavailable", "the model server is down")
    assert isinstance(error, Unavailable)
    assert str(error) == "the model server is down"


def test_a_registered_error_arrives_as_itself_and_any_other_as_a_remote_error() -> None:
    error = raised("not_found", "no 7", {"args": ["no 7"]})
    assert isinstance(error, NotFound)
    assert str(error) == "no 7"
    error = raised("KeyError", "'x'", {"a": 1})
    assert isinstance(error, RemoteError)
    assert (error.type, error.message, error.details) == ("KeyError", "'x'", {"a": 1})


def test_a_reply_of_somebody_else_without_metadata_is_a_result() -> None:
    assert result_of(Message("a.topic", b"5"), "a.topic", None, ErrorRegistry(), HERE) == 5
