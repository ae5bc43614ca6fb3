"""What a delivery of ours carries, and for how long its message stays ours: counted on this machine's clock.

A yes from SQS proves nothing once that time has passed: it also says yes to whoever held the message before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from time import monotonic, time
from typing import Any

from busline.message import Delivery
from busline.transports.sqs.url import LONGEST_LEASE
from busline.transports.sqs.wire import Letter, read

MARGIN = 0.1
"""Share of a lease by which we count it shorter, at most a second: for the way there and back."""
REMEMBERED = 10_000
"""Messages that are done with, and whose deletion failed, beyond which the oldest are forgotten."""
SYSTEM_ATTRIBUTES = (
    *("ApproximateReceiveCount", "SentTimestamp", "ApproximateFirstReceiveTimestamp"),
    *("DeadLetterQueueSourceArn", "MessageGroupId"),
)
"""Those that are asked for with each message."""


def counted(lease: float) -> float:
    """How long we count on a lease of so many seconds."""
    return lease - min(1.0, lease * MARGIN)


@dataclass(slots=True, eq=False)
class Receipt:
    """The driver's own part of a delivery."""

    handle: str
    message_id: str
    until: float
    """Instant of `monotonic()` to which the message is ours."""
    since: float
    """When it was received; SQS takes it back twelve hours after that in any case."""
    letter: Letter
    raw: Mapping[str, Any]
    settled: bool = False

    @property
    def is_ours(self) -> bool:
        """Not settled, and its time has not passed."""
        return not self.settled and monotonic() < self.until

    @property
    def has_expired(self) -> bool:
        """It is expendable and its time has passed."""
        expires = self.letter.expires_at
        return expires is not None and expires <= time()

    def longest(self, lease: float) -> int:
        """Whole seconds for which it can be kept from now, of those that are wished for; 0 at the end."""
        left = LONGEST_LEASE - (monotonic() - self.since) - 1
        return max(0, floor(min(lease, left)))

    @property
    def count(self) -> int:
        """How often SQS has handed it out; not counted is what was only hidden for its delay, as in a FIFO queue."""
        system = self.raw.get("Attributes") or {}
        count = _count(system.get("ApproximateReceiveCount"))
        sent, first = _seconds(system.get("SentTimestamp")), _seconds(system.get("ApproximateFirstReceiveTimestamp"))
        return count - 1 if count > 1 and first - sent < self.letter.delay else count

    @property
    def delay_left(self) -> float:
        """Seconds of its delay that have not passed, by the clock of SQS as far as possible."""
        delay = self.letter.delay
        if not delay:
            return 0.0
        system = self.raw.get("Attributes") or {}
        sent, first = _seconds(system.get("SentTimestamp")), _seconds(system.get("ApproximateFirstReceiveTimestamp"))
        waited = max(0.0, first - sent)
        if _count(system.get("ApproximateReceiveCount")) > 1:  # the first receipt is past, only our clock is left
            waited = max(waited, time() - sent)
        return delay - waited


def receipt_of(raw: Mapping[str, Any], lease: float, topic: str) -> Receipt:
    """Of a message that arrived just now."""
    now = monotonic()
    return Receipt(str(raw["ReceiptHandle"]), str(raw["MessageId"]), now + counted(lease), now, read(raw, topic), raw)


def delivery_of(receipt: Receipt, queue: str) -> Delivery:
    """As core sees it."""
    return Delivery(
        receipt.letter.message,
        queue,
        receipt,
        receipt.count + receipt.letter.deliveries_before,
        time() + receipt.until - monotonic(),
    )


def _count(value: object) -> int:
    return int(value) if isinstance(value, str) and value.isdigit() else 1


def _seconds(value: object) -> float:
    return int(value) / 1000 if isinstance(value, str) and value.isdigit() else 0.0


class Done:
    """Messages that have been dealt with and may come again all the same, by the id that SQS gave them."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, message_id: str) -> None:
        """Its deletion failed, or came too late."""
        self._ids[message_id] = None
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._ids
