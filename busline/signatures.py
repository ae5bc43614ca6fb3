"""What type checkers know of the functions that can stand for a topic, and of the options of a call."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Concatenate, TypedDict, TypeVar

from busline.context import Context

Req = TypeVar("Req")
Rep = TypeVar("Rep")

Handler = Callable[..., Any]
"""Any function that handles a topic. The others tell async and plain ones apart, as mypy cannot take both at once."""

AsyncNothing = Callable[[], Coroutine[Any, Any, Rep]] | Callable[[Context], Coroutine[Any, Any, Rep]]
AsyncContextFirst = Callable[[Context, Req], Coroutine[Any, Any, Rep]]
AsyncPayload = Callable[Concatenate[Req, ...], Coroutine[Any, Any, Rep]]
"""The payload comes first; the context and dependencies, which the caller does not give, may follow."""
AsyncHandler = Callable[..., Coroutine[Any, Any, Rep]]

PlainNothing = Callable[[], Rep] | Callable[[Context], Rep]
PlainContextFirst = Callable[[Context, Req], Rep]
PlainPayload = Callable[Concatenate[Req, ...], Rep]
PlainHandler = Callable[..., Rep]


class CallOptions(TypedDict, total=False):
    """What `call` takes by keyword beside `returns`; see there."""

    timeout: float | None
    queue: str | None
    priority: int | None
    headers: Mapping[str, str] | None
    idempotency_key: str | None


class SendOptions(TypedDict, total=False):
    """What `send` takes by keyword; see there."""

    queue: str | None
    priority: int | None
    headers: Mapping[str, str] | None
    delay: float | None
    eta: datetime | None
    ttl: float | None
    idempotency_key: str | None
    track: bool
    unique_for: float | None
    unique_key: str | None
