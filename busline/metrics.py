"""Counters, gauges and histograms of what happens to messages, in this process; how they are shown is for others.

Labels are bounded: queues, topics and patterns of handlers as declared, reasons and outcomes from short lists. Topics
that are sent to are free text, so only the first `MAX_TOPICS` are told apart; the rest count as "other".
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from busline.errors import CallTimeout, CodecError, ConnectionLost, NoHandler, OutcomeUnknown, ReplyLost
from busline.message import Delivery, Message
from busline.observing import Kind, Observed, Observer, Outcome
from busline.registry import Handler
from busline.wire import Envelope, reply_status

BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0)
"""Upper bounds of the histograms, seconds."""
MAX_TOPICS = 200
"""Topics of sent messages that have a label of their own."""
OTHER = "other"

Labels = tuple[str, ...]
Type = Literal["counter", "gauge", "histogram"]


@dataclass(slots=True)
class Family:
    """One metric: its values by the values of its labels. A histogram's value is the counts of its buckets, the one
    beyond the last included, and behind them the sum."""

    name: str
    """Without the `_total` that a counter is shown with."""
    help: str
    type: Type
    labels: Labels = ()
    values: dict[Labels, Any] = field(default_factory=dict)

    def add(self, labels: Labels = (), number: float = 1) -> None:
        """Count."""
        self.values[labels] = self.values.get(labels, 0) + number

    def observe(self, seconds: float, labels: Labels = ()) -> None:
        """Into its bucket."""
        counts = self.values.get(labels)
        if counts is None:
            counts = self.values[labels] = [0.0] * (len(BUCKETS) + 2)
        counts[bisect_left(BUCKETS, seconds)] += 1
        counts[-1] += seconds

    def merge(self, other: Family) -> None:
        """Add another process's values to these."""
        for labels, value in other.values.items():
            mine = self.values.get(labels)
            if mine is None:
                self.values[labels] = list(value) if isinstance(value, list) else value
            elif isinstance(mine, list):
                self.values[labels] = [one + another for one, another in zip(mine, value, strict=True)]
            else:
                self.values[labels] = mine + value

    def to_json(self) -> list[Any]:
        """For another process of the same version."""
        return [self.name, self.help, self.type, self.labels, [[*item] for item in list(self.values.items())]]

    @classmethod
    def from_json(cls, told: Sequence[Any]) -> Family:
        """What `to_json` told."""
        name, text, kind, labels, values = told
        return cls(name, text, kind, tuple(labels), {tuple(key): value for key, value in values})


class Metrics(Observer):
    """Counts for every bus that is instrumented with it."""

    def __init__(self) -> None:
        self._buses: list[Observed] = []
        self._topics: set[str] = set()
        self._queues: dict[str, Labels] = {}
        queue, handler = ("queue",), ("queue", "handler")
        self._sent = Family(
            "busline_messages_sent", "Jobs and events that the broker took.", "counter", ("kind", "topic")
        )
        self._unsent = Family(
            "busline_send_failures", "Jobs and events that could not be sent.", "counter", ("kind", "topic", "error")
        )
        self._calls = Family(
            "busline_call_duration_seconds", "Calls, until their reply or their end.", "histogram", ("topic", "outcome")
        )
        self._received = Family("busline_messages_received", "Messages that were taken from a queue.", "counter", queue)
        self._redelivered = Family(
            "busline_messages_redelivered", "Messages that the broker had handed out before.", "counter", queue
        )
        self._waited = Family(
            "busline_message_wait_seconds", "From when a message could be taken until it was.", "histogram", queue
        )
        self._attempts = Family(
            "busline_handler_duration_seconds",
            "Attempts of handlers, until they returned, raised or were cancelled.",
            "histogram",
            (*handler, "outcome"),
        )
        self._dead = Family("busline_messages_dead_lettered", "Messages given up.", "counter", ("queue", "reason"))
        self._dropped = Family(
            "busline_calls_expired", "Calls that were not run because nobody waited any more.", "counter", queue
        )
        self._released = Family("busline_messages_released", "Messages given back unfinished.", "counter", queue)
        self._lost = Family(
            "busline_leases_lost", "Messages that were taken from us while we had them.", "counter", queue
        )
        self._unsettled = Family(
            "busline_settlement_failures", "Messages whose outcome the broker could not be told.", "counter", queue
        )
        self._replies = Family("busline_replies", "Replies that were sent.", "counter", ("queue", "delivered"))
        self._late = Family("busline_late_replies", "Replies that nobody waited for any more.", "counter")
        self._late.add(number=0)
        self._counted = [value for value in vars(self).values() if isinstance(value, Family)]

    def instrumented(self, bus: Observed) -> None:
        self._buses.append(bus)

    def families(self) -> Iterator[Family]:
        """All metrics as they are now; from any thread."""
        yield from self._counted
        yield from self._now()

    def _now(self) -> Iterator[Family]:
        """What is read from the buses when somebody looks."""
        running = Family("busline_messages_in_progress", "Messages that are handled now.", "gauge", ("queue",))
        slots = Family("busline_queue_slots", "Messages that may be handled at a time.", "gauge", ("queue",))
        paused = Family("busline_queue_paused", "Processes in which the queue is not consumed.", "gauge", ("queue",))
        calls = Family("busline_calls_in_progress", "Calls that wait for their reply.", "gauge")
        up = Family("busline_broker_connections_healthy", "Workers whose consumers are at the broker.", "gauge")
        for bus in list(self._buses):
            calls.add(number=bus.calls_in_flight)
            for worker in list(bus.workers):
                up.add(number=float(worker.health.serves))
                for queue in worker.states():
                    label = self._queue(queue.name)
                    running.add(label, queue.running)
                    slots.add(label, queue.slots)
                    paused.add(label, float(bool(queue.troubles)))
        yield from (running, slots, paused, calls, up)

    def _topic(self, topic: str) -> str:
        if topic in self._topics:
            return topic
        if len(self._topics) >= MAX_TOPICS:
            return OTHER
        self._topics.add(topic)
        return topic

    def _queue(self, name: str) -> Labels:
        """The label of a queue. One that each process has for itself is called as its subscriber everywhere."""
        labels = self._queues.get(name)
        if labels is None:
            workers = (worker for bus in self._buses for worker in bus.workers)
            plans = (plan for worker in workers for plan in worker.queues if plan.spec.name == name)
            own = any(plan.spec.ephemeral for plan in plans)
            labels = self._queues[name] = (name.rpartition(".")[0] if own else name,)
        return labels

    # -- the sender's side --------------------------------------------------------------------------------------

    def sending(self, kind: Kind, message: Message, envelope: Envelope, queue: str | None) -> Labels:
        return kind, self._topic(message.topic)

    def sent(self, began: Labels, error: BaseException | None) -> None:
        if error is None:
            self._sent.add(began)
        else:
            self._unsent.add((*began, type(error).__name__))

    def calling(self, message: Message, envelope: Envelope, queue: str | None) -> tuple[float, str]:
        return time.perf_counter(), self._topic(message.topic)

    def called(self, began: tuple[float, str], reply: Message | None, error: BaseException | None) -> None:
        at, topic = began
        outcome = _outcome(error) if error is not None or reply is None else _answer(reply)
        self._calls.observe(time.perf_counter() - at, (topic, outcome))

    def late_reply(self) -> None:
        self._late.add()

    # -- the worker's side --------------------------------------------------------------------------------------

    def received(self, delivery: Delivery, envelope: Envelope) -> None:
        queue = self._queue(delivery.queue)
        self._received.add(queue)
        if delivery.deliveries > 1:
            self._redelivered.add(queue)
        # The sender's clock may be ahead of ours.
        self._waited.observe(max(0.0, time.time() - (envelope.due_at or envelope.sent_at)), queue)

    def starting(self, delivery: Delivery, envelope: Envelope, handler: Handler) -> tuple[float, str, str]:
        return time.perf_counter(), self._queue(delivery.queue)[0], handler.declaration.topic

    def ended(self, began: tuple[float, str, str], outcome: Outcome, error: BaseException | None) -> None:
        at, queue, handler = began
        self._attempts.observe(time.perf_counter() - at, (queue, handler, outcome))

    def dead_lettered(self, delivery: Delivery, envelope: Envelope, reason: str, queue: str) -> None:
        self._dead.add((*self._queue(delivery.queue), reason))

    def dropped(self, delivery: Delivery, envelope: Envelope) -> None:
        self._dropped.add(self._queue(delivery.queue))

    def released(self, delivery: Delivery) -> None:
        self._released.add(self._queue(delivery.queue))

    def lease_lost(self, delivery: Delivery) -> None:
        self._lost.add(self._queue(delivery.queue))

    def unsettled(self, delivery: Delivery, error: BaseException) -> None:
        self._unsettled.add(self._queue(delivery.queue))

    def replying(self, delivery: Delivery, reply: Message) -> Labels:
        return self._queue(delivery.queue)

    def replied(self, began: Labels, *, delivered: bool) -> None:
        self._replies.add((*began, "true" if delivered else "false"))


def _answer(reply: Message) -> str:
    try:
        return "ok" if reply_status(reply) == "ok" else "error"
    except CodecError:
        return "failed"


def _outcome(error: BaseException | None) -> str:
    match error:
        case CallTimeout():
            return "timeout"
        case NoHandler():
            return "no_handler"
        case ReplyLost() | ConnectionLost() | OutcomeUnknown():
            return "lost"
        case asyncio.CancelledError():
            return "cancelled"
        case _:
            return "failed"
