"""How long the broker leaves a message with a consumer that has not acked it.

Until RabbitMQ 4.2 that is the broker's own setting, `consumer_timeout`, which AMQP cannot tell, and which a queue's
argument could change only for good. From 4.3 on it concerns quorum queues alone, and each consumer may ask for its own.
"""

from __future__ import annotations

from math import inf

from pamqp.common import FieldValue

from busline.transports.amqp.url import Kind

ASKED_SINCE = (4, 3)
DEFAULT = 1800.0
"""Seconds, the broker's own if nobody has changed it."""
LONGEST = 30 * 86400.0
"""Seconds that are asked for at most; the broker's timers reach 49 days."""


def longest(kind: Kind | None, version: tuple[int, ...], named: float | None) -> float:
    """Seconds for which a consumer of such a queue may keep a message; `kind` None: nobody knows. `named`: what the URL
    says of the broker's setting, None if nothing."""
    if version < ASKED_SINCE or kind is None:
        return DEFAULT if named is None else named
    return inf if kind == "classic" else min(named or LONGEST, LONGEST)


def wish(kind: Kind | None, version: tuple[int, ...], named: float | None) -> dict[str, FieldValue]:
    """The consumer's arguments. A kind that knows no such argument would refuse it."""
    if version < ASKED_SINCE or kind != "quorum":
        return {}
    return {"x-consumer-timeout": round(longest(kind, version, named) * 1000)}
