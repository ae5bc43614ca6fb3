"""When a failed message is tried again: pure functions of the attempt, the error and a random number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Literal, Self

from busline.errors import ConfigurationError
from busline.structs import frozen

JITTER = 0.25
"""Jitter only extends a delay, by up to this share of it: a policy's figure is a promise not to come earlier."""

ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]


@frozen()
class Verdict:
    """What a policy says about one failure."""

    action: Literal["now", "later", "end", "pause"]
    """Again in the same slot; again after `delay`; never again; give back and stop the queue for `delay`."""
    delay: float = 0.0


NOW = Verdict("now")
END = Verdict("end")


@frozen()
class Rule:
    """What a policy does about errors of some types, before its general rule."""

    types: tuple[type[BaseException], ...]
    policy: Retry | None = None
    """Retry by this; None = never again."""
    pause: float | None = None
    """Give the message back, uncounted, and stop its queue in this process for so many seconds."""


@frozen(kw_only=True)
class Retry:
    """How often and when a failed message is tried again. Delays are seconds, counted from the failure.

    Either exponential — `first`, times `factor` after each, at most `cap` — or `delays`, whose last value repeats up
    to `max_retries` (by default as many as there are); `Retry.linear` and `Retry.fixed` are shorthands. Each of these
    attempts may be followed by `immediate` retries in the same slot, which suit errors that pass within milliseconds;
    a delayed retry frees the slot at once.

    `when` and `unless` are exception types: only a failure that is one of `when` and none of `unless` is retried;
    anything else is final at once. `on` adds rules for single types; the first that matches decides.
    """

    max_retries: int | None = None
    first: float = 2.0
    factor: float = 2.0
    step: float = 0.0
    cap: float = 600.0
    delays: Sequence[float] | None = None
    immediate: int = 0
    jitter: bool = True
    when: ErrorTypes = (BaseException,)
    unless: ErrorTypes = ()
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        figures = [self.first, self.step, *(self.delays or ())]
        if not all(figure >= 0 and isfinite(figure) for figure in figures) or not self.cap >= 0:
            raise ConfigurationError(f"the delays of a retry policy are seconds from 0: {self}")
        if not self.factor > 0 or (self.max_retries or 0) < 0 or self.immediate < 0:
            raise ConfigurationError(f"a retry policy has a factor above 0 and no negative numbers of retries: {self}")
        if self.delays is not None and not self.delays:
            raise ConfigurationError("delays=[] retries never; write max_retries=0")
        try:
            isinstance(None, (self.when, self.unless))
        except TypeError as error:
            raise ConfigurationError(f"when= and unless= take exception classes, or tuples of them: {self}") from error

    @classmethod
    def linear(
        cls, first: float, step: float, *, max_retries: int = 3, cap: float = 600.0, jitter: bool = True
    ) -> Self:
        """`first`, then `step` seconds more each time, at most `cap`."""
        return cls(max_retries=max_retries, first=first, factor=1.0, step=step, cap=cap, jitter=jitter)

    @classmethod
    def fixed(cls, delay: float, *, max_retries: int = 3, jitter: bool = True) -> Self:
        """Always the same delay."""
        return cls(max_retries=max_retries, delays=(delay,), jitter=jitter)

    def on(
        self,
        *types: type[BaseException],
        delays: Sequence[float] | None = None,
        max_retries: int | None = None,
        immediate: int = 0,
        dead_letter: bool = False,
        pause: float | None = None,
    ) -> Self:
        """This policy with one more rule: errors of `types` are retried after `delays` (and `immediate`ly before
        each), or are final (`dead_letter=True`), or stop the queue in this process for `pause` seconds while the
        message waits uncounted. Say one of the three."""
        asked = [delays is not None or max_retries is not None or immediate > 0, dead_letter, pause is not None]
        if not types or sum(asked) != 1:
            raise ConfigurationError("a rule names error types and one of delays=/immediate=, dead_letter=, pause=")
        if pause is not None and not pause > 0:
            raise ConfigurationError(f"pause is a positive number of seconds, not {pause!r}")
        own = None
        if asked[0]:
            retries = 0 if delays is None and max_retries is None else max_retries
            own = replace(
                self,
                delays=delays or self.delays,
                max_retries=retries,
                immediate=immediate,
                when=types,
                unless=(),
                rules=(),
            )
        return replace(self, rules=(*self.rules, Rule(types, own, pause)))

    @property
    def limit(self) -> int:
        """How many delayed retries at most."""
        if self.max_retries is not None:
            return self.max_retries
        return 3 if self.delays is None else len(self.delays)

    @property
    def attempts(self) -> int:
        """How many attempts at most, the first and the immediate ones included."""
        return (self.limit + 1) * (self.immediate + 1)

    def verdict(self, attempt: int, error: BaseException) -> Verdict:
        """What follows when the attempt of this number (1-based) failed with `error`."""
        for rule in self.rules:
            if isinstance(error, rule.types):
                if rule.pause is not None:
                    return Verdict("pause", rule.pause)
                return rule.policy.verdict(attempt, error) if rule.policy else END
        if attempt >= self.attempts or not isinstance(error, self.when) or isinstance(error, self.unless):
            return END
        group, position = divmod(attempt - 1, self.immediate + 1)
        if position < self.immediate:
            return NOW
        delay = self._plain(group + 1)
        return Verdict("later", delay * (1 + JITTER * random.random()) if self.jitter else delay)

    def _plain(self, retry: int) -> float:
        if self.delays is not None:
            return self.delays[min(retry, len(self.delays)) - 1]
        try:
            growth = float(self.factor) ** (retry - 1)
        except OverflowError:
            growth = inf
        return min(self.cap, (self.first * growth if self.first else 0.0) + self.step * (retry - 1))


JOB_RETRY = Retry(max_retries=3, first=2.0, factor=2.0)
"""The default of jobs and events: 2, 4 and 8 s."""
NO_RETRY = Retry(max_retries=0)
"""The default of calls: the caller gets the error at once and decides himself."""
