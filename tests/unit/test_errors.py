"""The error tree, as its docstring draws it."""

from __future__ import annotations

import inspect
import re
from math import inf, nan
from typing import Any

import pytest

import busline
from busline import errors
from busline.errors import (
    BuslineError,
    CallTimeout,
    MessageTooLarge,
    NoHandler,
    QueueFull,
    QueueNotFound,
    Reject,
    RemoteError,
    RetryLater,
)

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, Exception) and cls.__module__ == errors.__name__
}


def drawn() -> dict[str, str | None]:
    """Each class in the drawing, and the one it hangs from."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w+)", line):
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            parents[found[2]] = above[depth - 1] if depth else None
    return parents


def test_the_tree_is_as_it_is_drawn() -> None:
    tree = {name: cls for name, cls in CLASSES.items() if issubclass(cls, BuslineError)}
    assert set(tree) == set(drawn())
    for name, parent in drawn().items():
        assert tree[name].__bases__[0].__name__ == (parent or "Exception")


def test_what_a_handler_raises_as_an_instruction_stands_beside_the_tree() -> None:
    assert set(CLASSES) - set(drawn()) == {"Reject", "RetryLater"}
    assert not issubclass(Reject, BuslineError)
    assert not issubclass(RetryLater, BuslineError)


def test_every_error_that_can_be_caught_can_be_imported() -> None:
    for name in ("BuslineError", "CallTimeout", "NoHandler", "RemoteError", "Reject", "RetryLater"):
        assert getattr(busline, name) is CLASSES[name]


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_says_what_it_means(name: str) -> None:
    assert inspect.getdoc(CLASSES[name])


@pytest.mark.parametrize(
    ("error", "fields", "says"),
    [
        (QueueNotFound("q"), {"queue": "q", "where": ""}, "queue 'q' does not exist"),
        (QueueNotFound("q", "here"), {"queue": "q", "where": "here"}, "at here"),
        (QueueFull("q", 5), {"queue": "q", "max_length": 5}, "5 messages"),
        (MessageTooLarge(7, 5), {"size": 7, "limit": 5}, "7 bytes"),
        (CallTimeout("t", 1.5, "queued", "here"), {"topic": "t", "timeout": 1.5, "state": "queued"}, "is a worker"),
        (CallTimeout("t", 1.5, "started", "here"), {"state": "started", "where": "here"}, "had started it"),
        (NoHandler("t", "here"), {"topic": "t", "where": "here"}, "nobody handles 't' at here"),
        (RemoteError("T", "text", {"a": 1}), {"type": "T", "message": "text", "details": {"a": 1}}, "T: text"),
        (RemoteError("T", ""), {"type": "T", "message": "", "details": {}}, "^T$"),
        (Reject(), {"reason": "rejected"}, "rejected"),
        (Reject("too old"), {"reason": "too old"}, "too old"),
        (RetryLater(1.5), {"delay": 1.5}, "retry in 1.5 s"),
        (RetryLater(0), {"delay": 0}, "retry in 0 s"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_carries_its_fields_and_says_what_to_do(error: Exception, fields: dict[str, Any], says: str) -> None:
    assert {name: getattr(error, name) for name in fields} == fields
    assert re.search(says, str(error))


def test_a_call_timeout_is_a_timeout_error() -> None:
    assert isinstance(CallTimeout("t", 1.0, "queued", "here"), TimeoutError)


@pytest.mark.parametrize("delay", [-1, -0.001, nan, inf, -inf])
def test_retry_later_takes_a_time_that_comes(delay: float) -> None:
    with pytest.raises(ValueError, match="number of seconds"):
        RetryLater(delay)


def test_retry_later_takes_a_number() -> None:
    with pytest.raises(TypeError):
        RetryLater("soon")  # type: ignore[arg-type]  # that is the point
