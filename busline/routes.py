"""Where a message goes when its sender says more than its topic. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from busline.errors import ConfigurationError
from busline.message import Destination, ToQueue, ToTopic
from busline.topics import check_pattern, matches

FALLBACK = "#"
"""The route that is taken only where the transport knows no owner of the topic."""
REMEMBERED = 10_000
"""Topics whose way is remembered; beyond, all are found anew."""
LONGEST = 1e12
"""Seconds beyond which a time is a mistake, among them infinity; no calendar date is so far away."""


class Routes:
    """Patterns and queues: the first match overrides who owns a topic, `"#"` is for topics that nobody owns."""

    __slots__ = ("_known", "_routes", "fallback", "given")

    def __init__(self, routes: Mapping[str, str] | None) -> None:
        self.given = dict(routes or {})
        """As given, the fallback included."""
        given = {check_pattern(pattern): queue for pattern, queue in self.given.items()}
        self.fallback = given.pop(FALLBACK, None)
        """The queue of the fallback, or None."""
        self._routes = given
        self._known: dict[str, Destination] = {}

    def to(self, topic: str, queue: str | None) -> Destination:
        """A queue that was named, the first route that matches, or the owner of the topic."""
        if queue is not None:
            return ToQueue(queue)
        known = self._known.get(topic)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[topic] = self._find(topic)
        return known

    def _find(self, topic: str) -> Destination:
        for pattern, target in self._routes.items():
            if matches(pattern, topic):
                return ToQueue(target)
        return ToTopic(topic)


def seconds_until(delay: float | None, eta: datetime | None, now: float) -> float:
    """The delay that a sender asked for, in either form. Raises ConfigurationError for both, or for neither kind."""
    if delay is not None and eta is not None:
        raise ConfigurationError("give delay= or eta=, not both")
    if eta is not None:
        if eta.tzinfo is None:
            raise ConfigurationError("eta= needs a time zone, for example datetime.now(timezone.utc) + timedelta(...)")
        return max(0.0, eta.timestamp() - now)
    if delay is not None and not 0 <= delay <= LONGEST:
        raise ConfigurationError(f"delay is a number of seconds from 0, not {delay!r}")
    return delay or 0.0


def check_seconds(name: str, figure: float) -> float:
    """Return `figure`, or raise ConfigurationError if it is not a positive number of seconds."""
    if not 0 < figure <= LONGEST:
        raise ConfigurationError(f"{name} is a positive number of seconds, not {figure!r}")
    return figure
