"""When a failed message is tried again: pure functions of the attempt, the error and a random number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

from busline.errors import ConfigurationError

JITTER = 0.25
"""Jitter only extends a delay, by up to this share of it: a policy's figure is a promise not to come earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and when a failed message is tried again. Delays are seconds, counted from the failure.

    Either exponential — `first`, times `factor` after each, at most `cap` — or `delays`, whose last value repeats up
    to `max_retries` (by default as many as there are). `when` and `unless` are exception types: only a failure that
    is one of `when` and none of `unless` is retried; anything else is final at once.
    """

    max_retries: int | None = None
    first: float = 2.0
    factor: float = 2.0
    cap: float = 600.0
    delays: Sequence[float] | None = None
    jitter: bool = True
    when: tuple[type[BaseException], ...] = (BaseException,)
    unless: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        figures = [self.first, *(self.delays or ())]
        if not all(figure >= 0 and isfinite(figure) for figure in figures) or not self.cap >= 0:
            raise ConfigurationError(f"the delays of a retry policy are seconds from 0: {self}")
        if not self.factor > 0 or (self.max_retries or 0) < 0:
            raise ConfigurationError(f"a retry policy has a factor above 0 and no negative max_retries: {self}")
        if self.delays is not None and not self.delays:
            raise ConfigurationError("delays=[] retries never; write max_retries=0")
        try:
            isinstance(None, (self.when, self.unless))
        except TypeError as error:
            raise ConfigurationError(f"when= and unless= take exception classes, or tuples of them: {self}") from error

    @property
    def limit(self) -> int:
        """How many retries at most, after the first attempt."""
        if self.max_retries is not None:
            return self.max_retries
        return 3 if self.delays is None else len(self.delays)

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        """Seconds until the attempt after `attempt` (1-based), or None if that one was the last."""
        if attempt > self.limit or not isinstance(error, self.when) or isinstance(error, self.unless):
            return None
        delay = self._plain(attempt)
        return delay * (1 + JITTER * random.random()) if self.jitter else delay

    def _plain(self, attempt: int) -> float:
        if self.delays is not None:
            return self.delays[min(attempt, len(self.delays)) - 1]
        try:
            growth = float(self.factor) ** (attempt - 1)
        except OverflowError:
            growth = inf
        return min(self.cap, self.first * growth) if self.first else 0.0


JOB_RETRY = Retry(max_retries=3, first=2.0, factor=2.0)
"""The default of jobs and events: 2, 4 and 8 s."""
NO_RETRY = Retry(max_retries=0)
"""The default of calls: the caller gets the error at once and decides himself."""
