"""Which rights busline uses at AWS, and for what: the policy of the role that a service runs under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from busline.transports.sqs.events import NAME
from busline.transports.sqs.names import REPLIES, beginning
from busline.transports.sqs.url import parse

CALLER = ("sqs:GetQueueUrl", "sqs:SendMessage", "sqs:ListQueueTags")
"""To send; without the last one, and `ANYWHERE`'s, callers say `routes=` or `queue=`."""
OWN = ("sqs:CreateQueue", "sqs:DeleteQueue", "sqs:TagQueue", "sqs:ReceiveMessage", "sqs:DeleteMessage")
"""For queues that go with a process, if nothing else may be made: without them it cannot call."""
WORKER = (
    *("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"),
    *("sqs:TagQueue", "sqs:UntagQueue"),
)
"""To serve queues; without the last two, callers say `routes=`."""
MAKER = ("sqs:CreateQueue", "sqs:SetQueueAttributes", "sqs:DeleteQueue")
"""For a worker that makes its queues itself."""
LISTENER = ("sns:CreateTopic", "sns:Subscribe", "sns:ListSubscriptionsByTopic")
"""For subscribers."""
LISTENED = ("sqs:SetQueueAttributes",)
"""On the queues of subscribers, whose policy has to let SNS send to them."""
PUBLISHER = ("sns:Publish",)
"""To publish to subscribers."""
PUBLISHED = ("sqs:GetQueueAttributes",)
"""On the queues of subscribers: it tells the account, in which the topic is, too."""
ANYWHERE = ("sqs:ListQueues",)
"""IAM has no resource for it."""
SUBSCRIPTIONS = ("sns:SetSubscriptionAttributes", "sns:Unsubscribe")
"""For subscribers; IAM has no resource for them either."""


def iam_policy(url: str, *, worker: bool = True, own: Iterable[str] = ("busline.",)) -> Mapping[str, Any]:
    """The document for a process that uses `url` as it stands: for a worker, or for one that only calls and sends.

    `own`: where create=ephemeral, how the names begin of the queues that a worker's process has for itself, beside that
    for replies; those of broadcast subscribers begin with service and function, and busline's, for `bus.control()` and
    the commands, with `busline.`. Raises ConfigurationError for a URL that is none.
    """
    settings = parse(url)
    sqs: list[str] = [*CALLER, *(WORKER if worker else ()), *(MAKER if worker and settings.create == "all" else ())]
    anywhere, sns = list[str](ANYWHERE), list[str]()
    if settings.events:
        sqs += (*PUBLISHED, *(LISTENED if worker else ()))
        sns += (*PUBLISHER, *(LISTENER if worker else ()))
        anywhere += SUBSCRIPTIONS if worker else ()
    if not settings.renew and worker:
        sqs.remove("sqs:ChangeMessageVisibility")
    queues = f"arn:aws:sqs:{settings.region}:*:"
    statements = [_statement(sqs, f"{queues}{settings.prefix}*")]
    if settings.create != "none":
        starts = [settings.prefix + REPLIES, *(beginning(each, settings.prefix) for each in own if worker)]
        statements.append(_statement(OWN, [f"{queues}{start}*" for start in starts]))
    statements.append(_statement(anywhere, "*"))
    if sns:
        statements.append(_statement(sns, f"arn:aws:sns:{settings.region}:*:{settings.prefix}{NAME}"))
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(actions: Sequence[str], resource: str | list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": sorted(set(actions)), "Resource": resource}
