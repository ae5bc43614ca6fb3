"""A time by which everything that is called in a block must have been answered, such as a web request's deadline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf


class Bound:
    """An instant, in seconds since the epoch, that is forgotten when its block has ended.

    Mutable, because tasks that were started in the block hold it too: what lives on afterwards, such as a background
    task of a request that has been answered, is on its own again.
    """

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until

    def lift(self) -> None:
        """The block has ended."""
        self.until = inf


BOUND: ContextVar[Bound | None] = ContextVar("busline_bound", default=None)
"""The bound of the block that runs."""


@contextmanager
def bounded(until: float) -> Iterator[Bound]:
    """Calls in this block end by `until`, or by the end of a block around it if that is earlier."""
    outer = BOUND.get()
    bound = Bound(until if outer is None else min(until, outer.until))
    token = BOUND.set(bound)
    try:
        yield bound
    finally:
        bound.lift()
        BOUND.reset(token)
