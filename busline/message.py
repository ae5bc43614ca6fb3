"""The values that core and transports exchange. No I/O, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from busline.structs import entity, struct, value

NO_HEADERS: Mapping[str, str] = {}
DIED = "busline-died"
"""A header that a driver adds to what its broker made a dead letter by itself: a JSON object with `reason`, `queue`
(where it was before), and `at` (when, seconds since 1970)."""


@struct
class Message:
    """What travels. A driver carries every field, or refuses by its `Limits`; it never looks into `body` or `meta`.

    Treated as immutable by everybody. Not frozen, because a frozen one costs twice as much to make.
    """

    topic: str
    """Dotted name, e.g. "orders.create". Carried even when the message is sent straight to a queue."""
    body: bytes
    """The payload's JSON and nothing else."""
    meta: str = ""
    """busline's own metadata as one compact JSON string (see wire.py); "" for a message from elsewhere."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The user's own headers; any UTF-8."""
    correlation_id: str | None = None
    """Pairs a reply with its request; on a request it is unguessable and fresh per attempt."""
    reply_to: str | None = None
    """Inbox address that wants a reply; a message that has one is a call."""
    priority: int = 0
    """Higher is delivered first; 0 to `Limits.priorities`."""
    delay: float = 0.0
    """Seconds before it may be delivered, counted by the broker from acceptance."""
    ttl: float | None = None
    """Seconds until it is of no use. A hint: core checks the deadline itself when the message is received, so a
    broker may drop an expired call (`reply_to` set) and must keep anything else, unless it is `expendable`."""
    expendable: bool = False
    """The broker deletes it when its `ttl` has passed, wherever it waits: a dead letter that is kept for a time."""


@entity
class Delivery:
    """One message, handed to this process and leased to it until settled. Compared and hashed by identity."""

    message: Message
    queue: str
    receipt: Any
    """The driver's own; opaque to everybody else."""
    deliveries: int = 1
    """How often it was handed out, this time included. Where `Limits.counts_releases` is False, above 1 means that an
    earlier holder died or lost its lease."""
    leased_until: float = 0.0
    """Instant on the clock of `Clock.time()`; 0.0 where the broker knows no lease."""


@value
class Binding:
    """A foreign exchange that feeds a queue; brokers without exchanges refuse it."""

    exchange: str
    routing_key: str
    type: Literal["direct", "topic", "fanout"] = "direct"


@value
class WorkTerms:
    """How the messages of a queue are worked on. A broker with nothing to set or to check by it leaves it alone."""

    longest: float
    """Seconds that a handler may run, by the longest time limit; inf where one has none."""
    early: bool
    """All of them are acked before they run."""
    attempts: int
    """How often a message is tried at most, by the most patient handler."""


@value
class QueueSpec:
    """What a queue should be. Attaching is declaring, or verifying, exactly this.

    A driver that cannot honour a field which was set raises ConfigurationError; none is ever ignored.
    """

    name: str
    service: str = ""
    """Who declares it; a topic may move between two queues of one service, never silently between services."""
    topics: frozenset[str] = frozenset()
    """Topics owned by this queue: calls and jobs sent to the topic arrive here, and nowhere else."""
    patterns: frozenset[str] = frozenset()
    """Patterns of events of which this queue gets a copy (`*` one word, `#` any number)."""
    ephemeral: bool = False
    """Gone, with its messages, when the transport that attached it is closed or its process dies."""
    max_priority: int | None = None
    """Highest priority that the queue must know; None = whatever the broker offers by itself."""
    max_length: int | None = None
    """Most messages that may wait; a send beyond raises QueueFull. None = no bound."""
    kind: Literal["quorum", "classic"] | None = None
    """RabbitMQ's queue type; None = the driver's choice."""
    bindings: tuple[Binding, ...] = ()
    """Foreign exchanges that also feed it."""
    passive: bool = False
    """Others own the queue: it must exist and is never declared or changed."""
    dead_letter: str | None = None
    """Where the broker itself should move what it gives up on, as a backstop behind core's own dead letters."""
    for_dead_letters: bool = False
    """It holds dead letters: the broker must neither limit its deliveries nor dead-letter out of it."""
    work: WorkTerms | None = None
    """How its messages are worked on, for brokers that have settings about that; None where nobody said."""


@value
class Limits:
    """What one queue at one broker, as configured, can do. Numbers, because "can delay" was never the question."""

    max_delay: float
    """Longest native `Message.delay`, seconds; inf = any, 0 = none."""
    max_release_delay: float
    """Longest native `release(delay=)`, seconds; 0 = at once only."""
    lease: float | None
    """Seconds that a delivery stays ours without `extend`; None = as long as the connection lives."""
    max_lease: float
    """Longest time that a message can stay ours, extended or not, seconds; inf = no end."""
    priorities: int
    """Highest `Message.priority`; 0 = the queue knows none."""
    max_bytes: int
    """Largest body plus metadata, bytes."""
    max_batch: int
    """Most messages that one `send` hands to the broker in one go; larger batches are cut by the driver."""
    counts_deliveries: bool
    """`Delivery.deliveries` is a count, and not just 1 or 2."""
    counts_releases: bool
    """That count includes what was released; then it is only an upper bound of the starts."""
    fanout: bool
    """`publish` reaches queues attached with patterns."""
    ordered: bool
    """Messages of equal priority are delivered in the order in which they were accepted."""
    exact_bounds: bool = True
    """The bounds of a queue are kept to the message: delayed ones count, senders at the same time cannot exceed
    `max_length` together, and a client that never attached is told of a `max_priority`, too. Where False, some messages
    more may fit, and a queue may refuse to have both a `max_length` and `patterns`."""


@value
class ToQueue:
    """Straight to a queue, whoever owns the topic."""

    queue: str


@value
class ToTopic:
    """To the one queue that owns the topic, as recorded at the broker."""

    topic: str


Destination = ToQueue | ToTopic


@value
class Health:
    """Do my consumers exist at the broker? `since` is an instant of `Clock.time()`."""

    status: Literal["unknown", "healthy", "degraded", "down"]
    since: float = 0.0
    detail: str = ""
    tolerable: bool = False
    """Of "degraded": every consumer is at the broker all the same."""

    @property
    def serves(self) -> bool:
        """Every consumer is at the broker."""
        return self.status == "healthy" or self.tolerable


@value
class QueueStats:
    """A queue at one moment."""

    name: str
    ready: int
    """Could be delivered now."""
    delayed: int | None
    """Waiting for their time; None where the broker does not tell."""
    leased: int | None
    """Handed out and not settled; None where the broker does not tell."""
    consumers: int | None
    """Processes that consume it, or more where the broker counts something finer; None where it does not tell."""
    topics: frozenset[str]
    patterns: frozenset[str]
    ephemeral: bool
