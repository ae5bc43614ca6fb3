"""Which rights busline uses at AWS, and for what: the policy of the role that a service runs under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from busline.transports.sqs.events import NAME
from busline.transports.sqs.url import parse

CALLER = ("sqs:GetQueueUrl", "sqs:SendMessage", "sqs:ListQueues", "sqs:ListQueueTags")
"""To send and to publish; without the last two, callers say `routes=` or `queue=`."""
INBOX = ("sqs:CreateQueue", "sqs:DeleteQueue", "sqs:TagQueue", "sqs:ReceiveMessage", "sqs:DeleteMessage")
"""To call, which needs a queue for the replies; of the names `PREFIX-_reply-*` only, if nothing else may be made."""
WORKER = (
    *("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"),
    *("sqs:TagQueue", "sqs:UntagQueue"),
)
"""To serve queues; without the last two, callers say `routes=`."""
MAKER = ("sqs:CreateQueue", "sqs:SetQueueAttributes", "sqs:DeleteQueue")
"""For a worker that makes its queues itself."""
LISTENER = (
    *("sns:CreateTopic", "sns:Subscribe", "sns:SetSubscriptionAttributes", "sns:ListSubscriptionsByTopic"),
    *("sns:Unsubscribe",),
)
"""For subscribers."""
LISTENED = ("sqs:SetQueueAttributes",)
"""On the queues of subscribers, whose policy has to let SNS send to them."""
PUBLISHER = ("sns:Publish",)
"""To publish to subscribers."""


def iam_policy(url: str, *, worker: bool = True) -> Mapping[str, Any]:
    """The document for a process that uses `url` as it stands: for a worker, or for one that only calls and sends.

    Raises ConfigurationError for a URL that is none.
    """
    settings = parse(url)
    sqs: list[str] = [*CALLER, *(WORKER if worker else ()), *(MAKER if worker and settings.create == "all" else ())]
    sns: list[str] = [*PUBLISHER, *(LISTENER if worker else ())] if settings.events else []
    if worker and settings.events:
        sqs += LISTENED
    if not settings.renew:
        sqs.remove("sqs:ChangeMessageVisibility")
    queues = f"arn:aws:sqs:{settings.region}:*:{settings.prefix}*"
    statements = [_statement([action for action in sqs if action != "sqs:ListQueues"], queues)]
    if settings.create != "none":
        statements.append(_statement(INBOX, f"arn:aws:sqs:{settings.region}:*:{settings.prefix}-_reply-*"))
    statements.append(_statement(["sqs:ListQueues"], "*"))
    if sns:
        statements.append(_statement(sns, f"arn:aws:sns:{settings.region}:*:{settings.prefix}{NAME}"))
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(actions: Sequence[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": sorted(set(actions)), "Resource": resource}
