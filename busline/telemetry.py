"""What happens to messages, told in one place: counters always, log lines where somebody should look, and whatever
observers the bus was given.

Log records carry stable fields in `extra`: `event`, `id`, `topic`, `queue`, and what the event adds. Never a payload.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from busline.errors import Reject
from busline.message import Delivery
from busline.observing import Observer, Observers
from busline.structs import struct
from busline.wire import Envelope, printable, text_of

if TYPE_CHECKING:
    from busline.outcome import Fault

log = logging.getLogger("busline")


@struct
class Stats:
    """Counters of one bus since it was made."""

    handled: int = 0
    """Handlers that returned."""
    failed: int = 0
    """Handlers that raised."""
    retried: int = 0
    dead_lettered: int = 0
    expired_calls: int = 0
    """Calls dropped because nobody waited for them any more."""
    replies_to_nobody: int = 0
    """Replies whose caller was known to be gone."""
    late_replies: int = 0
    """Replies that came when their call had ended, or that belong to no call of ours."""
    leases_lost: int = 0
    released: int = 0
    """Given back unfinished: unknown topics and shutdown."""
    repeats: int = 0
    """Messages that were not run, because what they ask for had been done, or had failed, before."""
    conflicts: int = 0
    """Messages whose idempotency key another worker was working on."""
    claims_lost: int = 0
    orphans: int = 0
    """Messages that were acked early and whose worker died: failed here, or sent again."""


class Telemetry:
    """Counts and logs; core calls it at the few places where a message changes its state."""

    __slots__ = ("observer", "stats")

    def __init__(self) -> None:
        self.stats = Stats()
        self.observer: Observers | None = None
        """Metrics and traces; None = nobody wants to know."""

    @property
    def observers(self) -> Sequence[Observer]:
        """All that were added."""
        return self.observer.observers if self.observer is not None else ()

    def add(self, observer: Observer) -> None:
        """One more, told after those that are there."""
        self.observer = Observers([*self.observers, observer])

    def retried(
        self, delivery: Delivery, envelope: Envelope, error: BaseException, attempts: int, delay: float
    ) -> None:
        """A failure that will be tried again, at most `attempts` times in all."""
        self.stats.failed += 1
        self.stats.retried += 1
        if self.observer is not None:
            self.observer.retried(delivery, envelope, error, delay)
        if log.isEnabledFor(logging.WARNING):
            fields = _fields("retried", delivery, envelope, attempt=envelope.attempt, delay=delay)
            log.warning(
                "%s %s failed on attempt %d of %d, next in %.1f s: %s: %s",
                *(delivery.message.topic, envelope.id, envelope.attempt, attempts, delay),
                *(type(error).__name__, text_of(error)),
                extra=fields,
            )

    def failed(self, delivery: Delivery, envelope: Envelope, error: BaseException) -> None:
        """A failure that is final."""
        self.stats.failed += 1
        if isinstance(error, Reject):
            return  # The handler's decision, told where it becomes a dead letter.
        log.error(
            "%s %s failed for good on attempt %d: %s: %s",
            *(delivery.message.topic, envelope.id, envelope.attempt, type(error).__name__, text_of(error)),
            extra=_fields("failed", delivery, envelope, attempt=envelope.attempt),
            exc_info=error,
        )

    def answered(self, delivery: Delivery, envelope: Envelope, error: BaseException) -> None:
        """A call whose caller gets the error: his to judge, so no alarm on this side."""
        self.stats.failed += 1
        log.info(
            "%s %s answered with %s: %s",
            *(delivery.message.topic, envelope.id, type(error).__name__, text_of(error)),
            extra=_fields("answered", delivery, envelope),
        )

    def dead_lettered(self, delivery: Delivery, envelope: Envelope, fault: Fault, where: str) -> None:
        """A message that now waits in the queue `where` for somebody to look at it."""
        self.stats.dead_lettered += 1
        if self.observer is not None:
            self.observer.dead_lettered(delivery, envelope, fault.reason, where)
        level = logging.INFO if fault.reason == "failed" else logging.WARNING  # `failed` has logged its error
        log.log(
            level,
            "%s %s is a dead letter in %s (%s): %s",
            *(delivery.message.topic, envelope.id, where, fault.reason, printable(fault.message)),
            extra=_fields("dead_lettered", delivery, envelope, reason=fault.reason, dead_letter_queue=where),
        )

    def shortened(self, delivery: Delivery, envelope: Envelope, error: BaseException) -> None:
        """A dead letter that fitted only without its story, or without parts of it."""
        log.warning(
            "%s %s is kept without the whole story of its failure: %s",
            *(delivery.message.topic, envelope.id, text_of(error)),
            extra=_fields("shortened", delivery, envelope),
        )

    def lease_lost(self, delivery: Delivery) -> None:
        """A message that somebody else may be working on by now."""
        self.stats.leases_lost += 1
        if self.observer is not None:
            self.observer.lease_lost(delivery)
        log.warning(
            "lost the lease on a message of %s from %s; its outcome is discarded",
            *(delivery.message.topic, delivery.queue),
            extra={"event": "lease_lost", "topic": delivery.message.topic, "queue": delivery.queue},
        )

    def already_claimed(self, delivery: Delivery, envelope: Envelope, key: str) -> None:
        """The key is being worked on elsewhere: normal, where a broker delivers twice."""
        self.stats.conflicts += 1
        if log.isEnabledFor(logging.INFO):
            log.info(
                "%s %s: already claimed by another worker, key %s",
                *(delivery.message.topic, envelope.id, key),
                extra=_fields("already_claimed", delivery, envelope, key=key),
            )

    def repeated(self, delivery: Delivery, envelope: Envelope, key: str, how: str) -> None:
        """It was done, or had failed, before; it is answered from the store."""
        self.stats.repeats += 1
        if log.isEnabledFor(logging.INFO):
            log.info(
                "%s %s is not run again, %s before under key %s",
                *(delivery.message.topic, envelope.id, how, key),
                extra=_fields("repeated", delivery, envelope, key=key),
            )

    def cancelled(self, delivery: Delivery, envelope: Envelope) -> None:
        """Somebody wanted the job cancelled."""
        log.info(
            "%s %s was cancelled",
            *(delivery.message.topic, envelope.id),
            extra=_fields("cancelled", delivery, envelope),
        )

    def claim_lost(self, delivery: Delivery, key: str) -> None:
        """Somebody else may be working on the key by now."""
        self.stats.claims_lost += 1
        log.warning(
            "lost the claim on key %s of a message of %s; its outcome is discarded",
            *(key, delivery.message.topic),
            extra={"event": "claim_lost", "topic": delivery.message.topic, "queue": delivery.queue, "key": key},
        )

    def orphaned(self, delivery: Delivery, envelope: Envelope, again: bool) -> None:
        """The worker of a message that was acked early has died."""
        self.stats.orphans += 1
        log.warning(
            "%s %s lost its worker and %s",
            *(delivery.message.topic, envelope.id, "is sent again" if again else "has failed"),
            extra=_fields("orphaned", delivery, envelope, again=again),
        )

    def store_failed(self, where: str, error: BaseException) -> None:
        """Nothing that needs a record runs until the store is back."""
        log.error(
            "the store %s failed, and nothing runs without a record: %s",
            *(where, text_of(error)),
            extra={"event": "store_failed", "store": where},
        )

    def unsettled(self, delivery: Delivery, error: BaseException) -> None:
        """A message that could not be settled; the broker will deliver it again."""
        if self.observer is not None:
            self.observer.unsettled(delivery, error)
        log.error(
            "could not settle a message of %s from %s, it will be delivered again: %s",
            *(delivery.message.topic, delivery.queue, text_of(error)),
            extra={"event": "unsettled", "topic": delivery.message.topic, "queue": delivery.queue},
        )

    def released(self, delivery: Delivery) -> None:
        """A message that was given back unfinished."""
        self.stats.released += 1
        if self.observer is not None:
            self.observer.released(delivery)

    def dropped(self, delivery: Delivery, envelope: Envelope) -> None:
        """A call that nobody waited for any more."""
        self.stats.expired_calls += 1
        if self.observer is not None:
            self.observer.dropped(delivery, envelope)

    def late_reply(self) -> None:
        """A reply that nobody of this bus waits for."""
        self.stats.late_replies += 1
        if self.observer is not None:
            self.observer.late_reply()


def _fields(event: str, delivery: Delivery, envelope: Envelope, **more: object) -> dict[str, object]:
    return {
        "event": event,
        "id": envelope.id,
        "topic": delivery.message.topic,
        "queue": delivery.queue,
        **more,
    }
