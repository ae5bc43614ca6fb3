"""How much a queue takes: the spacing of a rate limit, the window of a circuit breaker. Pure state, no clock."""

from __future__ import annotations

from collections import deque

from busline.options import Breaker


class Spacing:
    """A rate limit as a distance between starts: no bursts, and nothing is saved up while idle."""

    __slots__ = ("_interval", "_next_at")

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next_at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next start may happen."""
        return max(0.0, self._next_at - now)

    def started(self, now: float) -> None:
        """Something started at `now`."""
        self._next_at = now + self._interval


class FailureWindow:
    """Decides when a breaker trips, from what ended within its window."""

    __slots__ = ("_ended", "_failures", "breaker")

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self._ended: deque[tuple[float, bool]] = deque()
        self._failures = 0

    def ended(self, now: float, *, failed: bool) -> bool:
        """One more ended; True if the breaker trips, and then counting begins anew."""
        self._ended.append((now, failed))
        self._failures += failed
        while self._ended[0][0] < now - self.breaker.window:
            self._failures -= self._ended.popleft()[1]
        total = len(self._ended)
        if total < self.breaker.minimum or self._failures < self.breaker.share * total:
            return False
        self._ended.clear()
        self._failures = 0
        return True
