"""What the doctor can find: stable codes, how bad each is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


class Illness(NamedTuple):
    """What a code stands for."""

    severity: Severity
    what: str
    do: str


ILLNESSES: dict[str, Illness] = {
    "cannot_serve": Illness(
        "error", "a handler or subscriber that no worker would start with", "change its declaration as the text says"
    ),
    "two_owners": Illness(
        "error", "a topic that two handlers or two services claim", "rename one topic, or delete the queue left over"
    ),
    "queue_cannot": Illness(
        "error",
        "what a handler asks for and its queue at this broker cannot do",
        "take the option away, or use another transport",
    ),
    "time_limit_too_long": Illness(
        "error",
        "a time limit longer than the broker leaves a message to a worker (RabbitMQ: consumer_timeout; SQS: 12 hours)",
        "shorten time_limit=, say ack='early', or raise the broker's limit and name it in the URL",
    ),
    "time_limit_missing": Illness(
        "warning",
        "a handler without a time limit, at a broker that takes a message back after a while, and runs it twice",
        "give it a time_limit= below the broker's",
    ),
    "memory_broker": Illness(
        "warning", "memory:// ends with its process, and no other process reaches it", "set BUSLINE_URL"
    ),
    "no_store": Illness(
        "error",
        "a handler with idempotency=, and a bus without a store",
        "give the bus a store=, for example sqlite:///",
    ),
    "store_unreachable": Illness(
        "error", "the store of idempotency keys and jobs cannot be opened", "start it, or correct store="
    ),
    "broker_unreachable": Illness("error", "nobody answers at the broker's address", "start it, or correct the URL"),
    "broker_refused": Illness(
        "error", "the broker, or its driver, refuses the connection", "correct the user, password, vhost or option"
    ),
    "rights_missing": Illness(
        "error",
        "a queue of the service's cannot be declared, written to, read or deleted",
        "give the user these rights for queues whose names begin as the service's does",
    ),
    "round_trip": Illness(
        "error", "a message that the doctor sent to itself did not come back in time", "look at the broker's own alarms"
    ),
    "queue_missing": Illness(
        "note", "a queue that is not declared yet", "nothing: the first worker does it, or busline setup --yes"
    ),
    "queue_foreign": Illness(
        "error", "a passive queue that is not there: others were to declare it", "ask its owner, or leave passive= out"
    ),
    "queue_differs": Illness(
        "warning",
        "a queue that the broker has otherwise than it is declared here",
        "start a worker of this version; if it refuses, empty the queue and let busline teardown delete it",
    ),
    "queue_refused": Illness(
        "error",
        "a queue that exists with properties which cannot be changed",
        "empty it, let busline teardown --yes delete it, or ask for what it has",
    ),
    "queue_unconsumed": Illness(
        "warning", "messages wait in a queue that nobody consumes", "start a worker, or give it the queue by --queues"
    ),
    "queue_orphaned": Illness(
        "warning",
        "a queue of the service that the app does not serve any more, and nobody consumes",
        "busline teardown --orphans",
    ),
    "queue_paused": Illness("warning", "a queue that an operator has paused", "busline resume QUEUE"),
    "dead_letters": Illness(
        "warning", "messages that failed for good and wait to be looked at", "busline dlq list QUEUE"
    ),
    "no_workers": Illness(
        "note", "no worker of the service answers", "start one: busline worker, on SQS with --control"
    ),
    "clock_skew": Illness(
        "warning",
        "a worker's clock that differs from this machine's by more than max_clock_skew, so calls are dropped or late",
        "let NTP set both clocks, or give the bus a larger max_clock_skew=",
    ),
    "redrive": Illness(
        "error",
        "the broker itself moves a message away before busline has used up its attempts",
        "raise maxReceiveCount (SQS) or the delivery limit (RabbitMQ) above max_deliveries",
    ),
    "check_failed": Illness("error", "a check that could not be made", "see the text; the other checks were made"),
}
"""By code. A code keeps its meaning."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    code: str
    severity: Severity
    about: str
    """The queue, topic, handler or worker; or the broker."""
    text: str
    do: str


def finding(code: str, about: str, text: str, severity: Severity | None = None) -> Finding:
    """Of a code that is known, as bad as that says unless told otherwise."""
    illness = ILLNESSES[code]
    return Finding(code, severity or illness.severity, about, text, illness.do)
