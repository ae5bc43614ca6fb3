"""Time that was there to be used: what a busy machine has kept from those who are waited for does not count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

TRUTH = 5.0
"""Seconds within which what is told has to be true."""
LONGEST = 60.0
"""Seconds of anybody's time that are waited at most, however busy the machine is."""


def family(pid: int) -> list[int]:
    """The process and all that it has started, and they."""
    found = [pid]
    for each in found:  # which grows meanwhile
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


class FairClock:
    """Counts seconds, without those that a thread of these processes has waited for a processor (as Linux tells; where
    nobody tells, all count)."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._began = self._at = time.monotonic()
        self._waited = self._read()
        self.passed = 0.0

    def _read(self) -> dict[str, int]:
        waited: dict[str, int] = {}
        for pid in self._pids():
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    waited[str(file)] = int(file.read_text().split()[1])
                except OSError:  # it has just ended
                    continue
        return waited

    def tick(self, what: str) -> float:
        """Seconds that have passed; fails if that is too long for `what` to be told."""
        at, waited = time.monotonic(), self._read()
        kept = sum(max(0, each - self._waited.get(name, 0)) for name, each in waited.items()) / 1e9
        self.passed += max(0.0, at - self._at - kept)
        self._at, self._waited = at, waited
        assert self.passed < TRUTH, f"not told within {TRUTH:g} s: {what}"
        assert at < self._began + LONGEST, f"not told in {LONGEST:g} s on this busy machine: {what}"
        return self.passed
