"""Events through SNS: one topic of SNS for all, one subscription for each queue that listens.

A subscription's filter lets through what begins as one of the queue's patterns does; what SNS cannot express is
matched exactly when the message is received. Deliveries are raw, so an event looks like any other message.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from busline.errors import BuslineError, ConfigurationError, QueueNotFound
from busline.message import Message, QueueSpec
from busline.topics import is_pattern, matches
from busline.transports.sqs.batching import Batcher
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.faults import Denied, Refused
from busline.transports.sqs.queues import Known, Queues
from busline.transports.sqs.register import Entry, Register
from busline.transports.sqs.sending import Sender, all_of
from busline.transports.sqs.url import Settings
from busline.transports.sqs.wire import MAX_EVENT_WIRE, TOPIC, Letter, has_odd_characters, parcel, quoted

NAME = "-_events"
"""How the topic at SNS is called, after the prefix."""
SID = "buslineEvents"
"""Of the statement in a queue's policy that lets the topic send to it."""


def rules_of(patterns: Iterable[str]) -> list[Any]:
    """The filter's rules for the attribute `topic`: they let through whatever matches one of the patterns, and more."""
    rules: list[Any] = []
    for pattern in sorted(patterns):
        literal: list[str] = []
        words = pattern.split(".")
        for word in words:
            if word in ("*", "#"):
                break
            literal.append(word)
        start = ".".join(literal)
        if not is_pattern(pattern):
            rules += _each(pattern)
        elif not literal:
            return [{"exists": True}]
        else:
            rules += [{"prefix": each} for each in _each(start + ".")]
            if words[len(literal)] == "#":
                rules += _each(start)
    return rules


def _each(text: str) -> list[str]:
    """As a topic may be written: as it is, or percent-encoded where it has characters that SQS does not take."""
    return [quoted(text)] if has_odd_characters(text) else list({text: None, quoted(text): None})


class Publisher(Sender):
    """Sends to a topic of SNS as to a queue; `url` is its ARN."""

    async def _ask(self, url: str, name: str, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        published = [
            {"Id": each["Id"], "Message": each["MessageBody"], "MessageAttributes": each["MessageAttributes"]}
            for each in entries
        ]
        return await self._clients.ask_sns(
            "PublishBatch", handed_over=True, TopicArn=url, PublishBatchRequestEntries=published
        )

    def _new_batcher(self, url: str, name: str) -> Batcher:
        return Batcher(partial(self._send, url, name), name="publish", most_bytes=MAX_EVENT_WIRE)


class Events:
    """Who listens, and what is said."""

    def __init__(self, clients: Clients, queues: Queues, register: Register, settings: Settings) -> None:
        self._clients = clients
        self._queues = queues
        self._register = register
        self._settings = settings
        self._publisher = Publisher(clients, settings.where, settings.timeout)
        self._arn: str | None = None
        self._lock = asyncio.Lock()
        self.denied = ""
        """The right that is missing to listen; "" as long as none is known to be."""

    # -- listening ------------------------------------------------------------------------------------------------

    async def listen(self, spec: QueueSpec, known: Known) -> None:
        """Subscribe the queue. Raises ConfigurationError where that is not permitted."""
        try:
            await self._subscribe(spec, known)
        except Denied as denied:
            self.denied = denied.action
            raise ConfigurationError(
                f"queue {spec.name!r} cannot listen to events at {self._settings.where}: {denied.action} is not "
                "permitted"
            ) from denied

    async def _subscribe(self, spec: QueueSpec, known: Known) -> None:
        arn = known.attributes.get("QueueArn")
        if arn is None:
            raise Denied(
                "sqs:GetQueueAttributes", f"the ARN of queue {spec.name!r} cannot be read", self._settings.where
            )
        topic = await self._made_topic()
        await self._permit(spec.name, known, arn, topic)
        policy = json.dumps({TOPIC: rules_of(spec.patterns)}, separators=(",", ":"), ensure_ascii=False)
        if (subscription := await self._subscription(topic, arn)) is None:
            attributes = {"RawMessageDelivery": "true", "FilterPolicy": policy}
            await self._clients.ask_sns(
                "Subscribe", TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=attributes
            )
            return
        for name, value in (("FilterPolicy", policy), ("RawMessageDelivery", "true")):
            await self._clients.ask_sns(
                "SetSubscriptionAttributes", SubscriptionArn=subscription, AttributeName=name, AttributeValue=value
            )

    async def _made_topic(self) -> str:
        """Its ARN. Made if it does not exist, where queues may be made, too."""
        async with self._lock:
            if self._arn is None:
                made = await self._clients.ask_sns("CreateTopic", Name=self._settings.prefix + NAME)
                self._arn = str(made["TopicArn"])
            return self._arn

    async def _permit(self, name: str, known: Known, arn: str, topic: str) -> None:
        """The queue's policy must let the topic send to it; what else it says stays."""
        policy = _object(known.attributes.get("Policy", ""))
        statements = policy.get("Statement") or []
        statements = [statements] if isinstance(statements, dict) else list(statements)
        if any(statement.get("Sid") == SID for statement in statements):
            return
        statements.append(
            {
                "Sid": SID,
                "Effect": "Allow",
                "Principal": {"Service": "sns.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": arn,
                "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
            }
        )
        text = json.dumps({"Version": "2012-10-17", **policy, "Statement": statements})
        await self._clients.ask("SetQueueAttributes", queue=name, QueueUrl=known.url, Attributes={"Policy": text})

    async def _subscription(self, topic: str, arn: str) -> str | None:
        """Of this queue to the topic."""
        request: dict[str, Any] = {"TopicArn": topic}
        while True:
            answer = await self._clients.ask_sns("ListSubscriptionsByTopic", **request)
            for each in answer.get("Subscriptions") or []:
                if each.get("Endpoint") == arn:
                    return str(each["SubscriptionArn"])
            if not answer.get("NextToken"):
                return None
            request["NextToken"] = answer["NextToken"]

    async def probe(self, known: Known) -> None:
        """Raises Denied if SNS may not be asked; a topic that is not made yet is none of the doctor's business."""
        try:
            await self._subscription(self._arn_beside(known.attributes["QueueArn"]), "")
        except Refused as error:
            if error.code != "NotFound":
                raise

    async def unlisten(self, entry: Entry) -> None:
        """Unsubscribe a queue that listens no more, or that is deleted. What is left over harms nobody: SNS then sends
        to a queue that is not there, or the queue drops what does not match."""
        try:
            arn = (await self._queues.attributes(entry.url, entry.name)).get("QueueArn")
            topic = self._arn_beside(arn) if arn else None
            if arn and topic and (subscription := await self._subscription(topic, arn)):
                await self._clients.ask_sns("Unsubscribe", SubscriptionArn=subscription)
        except BuslineError:
            pass  # see above

    def _arn_beside(self, queue_arn: str) -> str:
        """The ARN of our topic, in the same account as the queue."""
        _, partition, _, region, account, _ = queue_arn.split(":", 5)
        return f"arn:{partition}:sns:{region}:{account}:{self._settings.prefix}{NAME}"

    # -- saying ---------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, messages: Sequence[Message]) -> bool:
        """False if nobody listens. Raises what SNS says."""
        listener = await self._register.listener(topic)
        if listener is None:
            return False
        if self._arn is None:
            arn = (await self._queues.attributes(listener.url, listener.name)).get("QueueArn")
            self._arn = self._arn_beside(arn) if arn else None
        if self._arn is None:
            raise ConfigurationError(
                f"events cannot be published at {self._settings.where}: sqs:GetQueueAttributes is not permitted"
            )
        parcels = [parcel(message, limit=MAX_EVENT_WIRE, event=True) for message in messages]
        try:
            await all_of([self._publisher.put(self._arn, "events", each) for each in parcels])
        except Refused as error:
            if error.code != "NotFound":
                raise
            self._arn = None  # the topic was deleted, and with it all subscriptions
            return False
        except QueueNotFound:
            self._arn = None
            return False
        return True

    async def close(self, timeout: float) -> None:
        """Let everything leave that was handed over."""
        await self._publisher.close(timeout)

    async def stop(self) -> None:
        """Drop it."""
        await self._publisher.stop()


def is_meant(letter: Letter, patterns: Iterable[str]) -> bool:
    """Does the event match one of the patterns?"""
    return any(matches(pattern, letter.message.topic) for pattern in patterns)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:  # then it is replaced; SQS takes no other than JSON, so this is nobody's
        return {}
    return found if isinstance(found, dict) else {}
