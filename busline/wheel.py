"""Many deadlines, one timer: keys that become due, gathered into buckets."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from busline.clock import Clock, Timer

K = TypeVar("K", bound=Hashable)

RESOLUTION = 1 / 128
"""Width of a bucket, seconds: a key is reported up to this much late and never early. A power of two, so that the
instant at which a bucket ends is exact, and a timer set for it does not find itself a moment too early."""


FEW = 64
"""Buckets among which nobody looks for empty ones."""


class Wheel(Generic[K]):
    """Adding and discarding cost a dict operation each; only the earliest bucket has a timer.

    `on_due` is called in the event loop with each key whose instant has passed and that was not discarded; it may add
    and discard, and must not raise.
    """

    __slots__ = ("_armed_for", "_buckets", "_clock", "_heap", "_on_due", "_room", "_timer")

    def __init__(self, clock: Clock, on_due: Callable[[K], None]) -> None:
        self._clock = clock
        self._on_due = on_due
        self._buckets: dict[int, dict[K, None]] = {}
        self._heap: list[int] = []
        self._room = FEW
        self._timer: Timer | None = None
        self._armed_for = 0

    def add(self, key: K, at: float) -> int:
        """Report `key` at the instant `at`; returns the ticket that `discard` wants."""
        bucket = int(at / RESOLUTION) + 1
        keys = self._buckets.get(bucket)
        if keys is None:
            if len(self._heap) >= self._room:
                self._clear_away()
            keys = self._buckets[bucket] = {}
            heappush(self._heap, bucket)
            self._arm(bucket)
        keys[key] = None
        return bucket

    def discard(self, key: K, ticket: int) -> None:
        """Forget `key`; harmless if it was reported already."""
        # An emptied bucket stays for a while, so that it is in the heap once, however many keys come and go.
        keys = self._buckets.get(ticket)
        if keys is not None:
            keys.pop(key, None)

    def _clear_away(self) -> None:
        """The empty buckets: most deadlines are met long before they pass."""
        kept = []
        for bucket in self._heap:
            if self._buckets[bucket]:
                kept.append(bucket)
            else:
                del self._buckets[bucket]
        heapify(kept)
        self._heap = kept
        self._room = max(FEW, 2 * len(kept))

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def close(self) -> None:
        """Forget everything."""
        self._buckets.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, bucket: int) -> None:
        if self._timer is not None:
            if self._armed_for <= bucket:
                return
            self._timer.cancel()
        self._armed_for = bucket
        self._timer = self._clock.call_at(bucket * RESOLUTION, self._turn)

    def _turn(self) -> None:
        self._timer = None
        passed = int(self._clock.time() / RESOLUTION)
        while self._heap and (self._heap[0] <= passed or not self._buckets[self._heap[0]]):
            bucket = heappop(self._heap)
            keys = self._buckets[bucket]
            while keys:  # `on_due` may add to them and discard from them
                key, _ = keys.popitem()
                self._on_due(key)
            self._buckets.pop(bucket, None)
        if self._heap:
            self._arm(self._heap[0])
