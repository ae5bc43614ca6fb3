"""The one seam for metrics and traces: what happens to messages, told while it happens.

An observer overrides what it wants to know of. Without one, each place costs an `is not None`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from busline.message import Delivery, Message
from busline.wire import Envelope, text_of

if TYPE_CHECKING:
    from busline.registry import Handler
    from busline.telemetry import Stats
    from busline.worker import Worker

log = logging.getLogger("busline")

Kind = Literal["call", "job", "event"]
Outcome = Literal["succeeded", "retried", "failed", "abandoned"]
"""How an attempt ended: it returned; it raised and is tried again; it raised and that was the last time; it was
cancelled, on request or because its worker leaves or its lease was lost, and is somebody else's now or nobody's."""


class Observed(Protocol):
    """What an observer may read of its bus, at any time."""

    @property
    def url(self) -> str: ...
    @property
    def stats(self) -> Stats: ...
    @property
    def calls_in_flight(self) -> int: ...
    @property
    def workers(self) -> Sequence[Worker]: ...


class Observer:
    """Told of each step of each message; this one does nothing.

    All methods are called in the event loop and must be quick. What a method returns is handed to its counterpart when
    the step is over, and means nothing to anybody else.
    """

    def instrumented(self, bus: Observed) -> None:
        """It now observes this bus; it may observe several."""

    # -- the sender's side --------------------------------------------------------------------------------------

    def sending(self, kind: Kind, message: Message, envelope: Envelope, queue: str | None) -> Any:
        """A job or event is ready to leave, to its topic's owner or to `queue`; its headers may still be replaced.
        One that waits for its handler's success may never leave."""

    def sent(self, began: Any, error: BaseException | None) -> None:
        """The broker has it, or why not."""

    def calling(self, message: Message, envelope: Envelope, queue: str | None) -> Any:
        """A call is ready to leave; its headers may still be replaced."""

    def called(self, began: Any, reply: Message | None, error: BaseException | None) -> None:
        """The call has ended: with its reply, which may tell of an error, or without one."""

    def late_reply(self) -> None:
        """A reply came when its call had ended, or belongs to no call of ours."""

    # -- the worker's side --------------------------------------------------------------------------------------

    def received(self, delivery: Delivery, envelope: Envelope) -> None:
        """A worker has taken a message."""

    def starting(self, delivery: Delivery, envelope: Envelope, handler: Handler) -> Any:
        """An attempt starts. Called in the handler's own context variables, which this may set."""

    def ended(self, began: Any, outcome: Outcome, error: BaseException | None) -> None:
        """The attempt has ended; what was decided about its message is carried out next."""

    def retried(self, delivery: Delivery, envelope: Envelope, error: BaseException, delay: float) -> None:
        """It will be tried again, after `delay` seconds."""

    def dead_lettered(self, delivery: Delivery, envelope: Envelope, reason: str, queue: str) -> None:
        """It has become a dead letter in `queue`."""

    def dropped(self, delivery: Delivery, envelope: Envelope) -> None:
        """A call whose deadline had passed was not run."""

    def released(self, delivery: Delivery) -> None:
        """It was given back unfinished: an unknown topic, a worker that leaves."""

    def lease_lost(self, delivery: Delivery) -> None:
        """Somebody else may be working on it by now."""

    def unsettled(self, delivery: Delivery, error: BaseException) -> None:
        """It could not be settled; the broker will deliver it again."""

    def replying(self, delivery: Delivery, reply: Message) -> Any:
        """A reply is ready to leave; its headers may still be replaced."""

    def replied(self, began: Any, *, delivered: bool) -> None:
        """The reply has left; `delivered` is False if its caller is known to be gone, or it could not be sent."""

    def settled(self, delivery: Delivery) -> None:
        """Whatever was decided about the delivery has been carried out: the last that is told of it."""


PAIRS = {"sending": "sent", "calling": "called", "starting": "ended", "replying": "replied"}
"""What begins, and how it ends."""
STEPS = (
    *("late_reply", "received", "retried", "dead_lettered", "dropped"),
    *("released", "lease_lost", "unsettled", "settled"),
)
"""What simply happens."""


class Observers(Observer):
    """Several as one, each step bound to those that want to know of it. What one of them raises is logged and harms
    neither the message nor the others."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)
        for name in STEPS:
            setattr(self, name, _telling([getattr(each, name) for each in observers if _overrides(each, name)]))
        for begin, end in PAIRS.items():
            pairs = [
                (getattr(each, begin), getattr(each, end))
                for each in observers
                if _overrides(each, begin) or _overrides(each, end)
            ]
            setattr(self, begin, _beginning([pair[0] for pair in pairs]))
            setattr(self, end, _ending([pair[1] for pair in pairs]))


_FAILED = object()
"""In the place of what an observer would have returned."""


def _overrides(observer: Observer, name: str) -> bool:
    return getattr(type(observer), name) is not getattr(Observer, name)


def _telling(methods: Sequence[Callable[..., Any]]) -> Callable[..., None]:
    def tell(*arguments: Any) -> None:
        for method in methods:
            try:
                method(*arguments)
            except Exception as error:
                _complain(method, error)

    return tell


def _beginning(methods: Sequence[Callable[..., Any]]) -> Callable[..., list[Any]]:
    def begin(*arguments: Any) -> list[Any]:
        begun = []
        for method in methods:
            try:
                begun.append(method(*arguments))
            except Exception as error:
                begun.append(_FAILED)
                _complain(method, error)
        return begun

    return begin


def _ending(methods: Sequence[Callable[..., Any]]) -> Callable[..., None]:
    def end(begun: list[Any], *arguments: Any, **named: Any) -> None:
        for method, its in zip(methods, begun, strict=True):
            try:
                if its is not _FAILED:
                    method(its, *arguments, **named)
            except Exception as error:
                _complain(method, error)

    return end


def _complain(method: Callable[..., Any], error: Exception) -> None:
    name = getattr(method, "__qualname__", repr(method))
    log.error("the observer's %s failed: %s", name, text_of(error), extra={"event": "observer_failed"}, exc_info=error)
