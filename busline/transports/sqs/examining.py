"""What is otherwise at SQS than a queue is declared, for `busline doctor`. Nothing is changed by asking."""

from __future__ import annotations

from collections.abc import AsyncIterator

from busline.errors import ConfigurationError
from busline.message import QueueSpec
from busline.transports.base import Remark
from busline.transports.sqs.events import Events
from busline.transports.sqs.faults import Denied
from busline.transports.sqs.names import is_fifo
from busline.transports.sqs.queues import REDRIVE, Known, Queues
from busline.transports.sqs.register import Register
from busline.transports.sqs.settling import Settler


class Examination:
    """Of one queue that exists."""

    def __init__(self, queues: Queues, register: Register, events: Events, settler: Settler, spec: QueueSpec) -> None:
        self._queues = queues
        self._register = register
        self._events = events
        self._settler = settler
        self._spec = spec

    async def remarks(self, known: Known, max_deliveries: int, *, fanout: bool) -> list[Remark]:
        """Everything, however much there is of it."""
        found = [each async for each in self._rights(known)]
        try:
            self._queues.check(self._spec, fanout=fanout)
        except ConfigurationError as error:
            found.append(Remark("queue_refused", str(error)))
        if known.attributes:
            found += self._redrive(known, max_deliveries)
            found += self._visibility(known)
        return found

    async def _rights(self, known: Known) -> AsyncIterator[Remark]:
        """What is missing: an error where a worker would not start, a warning where it lives with it."""
        if not known.attributes:
            text = "sqs:GetQueueAttributes is not permitted: how the queue is set up cannot be checked"
            yield Remark("rights_missing", text, "warning")
        if self._register.denied:
            text = f"{self._register.denied} is not permitted: callers need routes= or queue="
            yield Remark("rights_missing", text, "warning")
        try:
            await self._settler.probe()
            if self._spec.patterns and known.attributes:
                await self._events.probe(known)
        except Denied as denied:
            yield Remark("rights_missing", str(denied))

    def _redrive(self, known: Known, max_deliveries: int) -> list[Remark]:
        count = known.redrive
        if count is not None and count <= max_deliveries:
            text = f"SQS moves a message away after {count} starts, and busline only after {max_deliveries}"
            return [Remark("redrive", f"{text}: raise maxReceiveCount, best to {REDRIVE}")]
        dead = self._spec.dead_letter
        if count is None and dead is not None and is_fifo(dead) == is_fifo(self._spec.name):
            text = f"it has no RedrivePolicy to {dead!r}, the backstop for messages that no worker can give up on"
            return [Remark("queue_differs", text)]
        return []

    def _visibility(self, known: Known) -> list[Remark]:
        lacking = self._queues.lacking_visibility(self._spec, known)
        if lacking is None:
            return []
        text = (
            f"its visibility timeout is {known.number('VisibilityTimeout', 0)} s, and {lacking} s are wanted, twice "
            "the longest time limit, for other clients that read it"
        )
        return [Remark("queue_differs", text)]
