"""What is known of the processes of a worker, from their reports: are they ready, and what have they counted?

A process reports from its event loop; one whose reports stop is stuck, whatever its last one said. What a process had
counted stays counted when it has ended, up to its last report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from busline.cli.exits import Exit
from busline.cli.lifeline import READY, RETIRING
from busline.integrations.app_metrics import AppMetric, joined
from busline.metrics import Family

REPORT_PERIOD = 0.5
"""Seconds between two reports of a process."""
SILENT = 2.0
"""Seconds without a report after which a process counts as stuck."""
GIVEN_UP = 15.0
"""Seconds without a report after which a process that nobody watches and replaces counts as dead."""


@dataclass(slots=True)
class Member:
    """One process."""

    place: int
    state: str = "starting"
    """starting, ready, or retiring."""
    heard_at: float = 0.0
    troubles: list[str] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    app: list[AppMetric] = field(default_factory=list)


def report(troubles: Iterable[str], families: Iterable[Family], app: Iterable[AppMetric] | None = None) -> bytes:
    """What a process tells of itself; of the app's own metrics only when they were read."""
    told: dict[str, Any] = {"troubles": list(troubles), "metrics": [family.to_json() for family in families]}
    if app is not None:
        told["app"] = [metric.to_json() for metric in app]
    return orjson.dumps(told)


class Board:
    """The processes of one worker, of which `places` should be ready."""

    def __init__(self, places: int, now: Callable[[], float] = time.monotonic) -> None:
        self._places = max(1, places)
        self._now = now
        self._members: dict[int, Member] = {}
        self._past: dict[str, Family] = {}
        """What processes had counted that have ended."""
        self._past_of_app: dict[str, AppMetric] = {}
        self._ends = Family("busline_worker_process_ends", "Worker processes that have ended.", "counter", ("how",))
        self.stopping = False
        """The worker was told to stop."""

    def started(self, pid: int, place: int) -> None:
        """A process was started."""
        self._members[pid] = Member(place)

    def heard(self, pid: int, news: bytes) -> None:
        """A line from a process."""
        member = self._members.get(pid)
        if member is None:
            return
        member.heard_at = self._now()
        if news == READY:
            member.state = "ready" if member.state == "starting" else member.state
        elif news == RETIRING:
            member.state = "retiring"
        else:
            told: dict[str, Any] = orjson.loads(news)
            member.troubles = told["troubles"]
            member.families = [Family.from_json(family) for family in told["metrics"]]
            if "app" in told:
                member.app = [AppMetric.from_json(metric) for metric in told["app"]]

    def ended(self, pid: int, code: int) -> None:
        """A process is gone."""
        member = self._members.pop(pid, None)
        if member is not None:
            _merge(self._past, (family for family in member.families if family.type != "gauge"))
            joined((metric for metric in member.app if metric.outlives), self._past_of_app)
            self._ends.add(("in order" if code in (Exit.OK, Exit.RECYCLED) else "killed" if code < 0 else "failed",))

    @property
    def troubles(self) -> list[str]:
        """Why the worker is not ready; empty if it is."""
        troubles = ["the worker is stopping"] if self.stopping else []
        for place in range(self._places):
            at_work = [pid for pid, member in self._members.items() if member.place == place and _works(member)]
            if not at_work:
                troubles.append(f"{_nth(place, self._places)} is not ready")
            troubles += (f"process {pid}: {trouble}" for pid in at_work for trouble in self._troubles_of(pid))
        return troubles

    def _troubles_of(self, pid: int) -> Iterator[str]:
        member = self._members[pid]
        if (silence := self._now() - member.heard_at) > SILENT:
            yield f"its event loop has not turned for {silence:.0f} s"
        yield from member.troubles

    @property
    def silence(self) -> float:
        """Seconds since the process that has been silent for longest was heard; 0.0 while none is at work."""
        return max((self._now() - member.heard_at for member in self._members.values() if _works(member)), default=0.0)

    def families(self) -> list[Family]:
        """The metrics of all processes together, and of the worker as a whole."""
        merged: dict[str, Family] = {}
        _merge(merged, self._past.values())
        for member in list(self._members.values()):
            _merge(merged, member.families)
        return [*merged.values(), *self._own()]

    def app_metrics(self) -> list[AppMetric]:
        """The app's own metrics, of all processes together."""
        merged = joined(self._past_of_app.values(), {})
        for member in list(self._members.values()):
            joined(member.app, merged)
        return list(merged.values())

    def _own(self) -> Iterator[Family]:
        processes = Family("busline_worker_processes", "Worker processes that live.", "gauge", ("state",))
        for state in ("starting", "ready", "retiring"):
            processes.add((state,), sum(member.state == state for member in self._members.values()))
        ready = Family("busline_worker_ready", "1 if the worker is ready, as /readyz tells.", "gauge")
        ready.add(number=float(not self.troubles))
        silence = Family("busline_worker_silence_seconds", "Since the event loop that turned last did.", "gauge")
        silence.add(number=self.silence)
        yield from (processes, self._ends, ready, silence)


def _works(member: Member) -> bool:
    return member.state == "ready"


def _nth(place: int, places: int) -> str:
    return "the process" if places == 1 else f"process {place + 1} of {places}"


def _merge(into: dict[str, Family], families: Iterable[Family]) -> None:
    for family in families:
        mine = into.get(family.name)
        if mine is None:
            mine = into[family.name] = Family(family.name, family.help, family.type, family.labels)
        mine.merge(family)
