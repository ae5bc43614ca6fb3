"""Finding, making and checking queues at SQS."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from math import ceil, inf

from busline.errors import ConfigurationError, QueueNotFound
from busline.message import Limits, QueueSpec
from busline.structs import value
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.faults import Denied, Refused
from busline.transports.sqs.names import is_fifo, queue_name
from busline.transports.sqs.url import LONGEST_LEASE, Settings
from busline.transports.sqs.wire import LONGEST_DELAY, MAX_BYTES, MAX_WIRE

RETENTION = 14 * 86_400
"""Seconds that SQS keeps a message at most."""
REDRIVE = 40
"""Deliveries after which SQS moves a message to the dead letters by itself: twice what core allows, so that it is
core's letter, which tells the reason, wherever a worker lives to write it."""
REMEMBERED = 10_000
"""URLs of queues that are kept."""


@value
class Known:
    """A queue as it is at SQS."""

    url: str
    attributes: Mapping[str, str]

    def number(self, name: str, default: int) -> int:
        """One of its attributes."""
        value = self.attributes.get(name, "")
        return int(value) if value.isdigit() else default

    @property
    def redrive(self) -> int | None:
        """Deliveries after which SQS moves a message to the dead letters; None: never, as far as is known."""
        return _redrive_count(self.attributes.get("RedrivePolicy", ""))


class Queues:
    """By our names."""

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients = clients
        self._settings = settings
        self._urls: OrderedDict[str, str] = OrderedDict()

    def called(self, name: str) -> str:
        """What `name` is called at SQS."""
        return queue_name(name, self._settings.prefix)

    async def url(self, name: str) -> str:
        """Raises QueueNotFound. Believed once it was found, until somebody `forget`s it."""
        url = self._urls.get(name)
        return url if url is not None else await self.find(name)

    async def find(self, name: str) -> str:
        """Ask SQS for it."""
        return await self.find_called(self.called(name), name)

    async def find_called(self, called: str, name: str) -> str:
        """The same by its name at SQS; errors speak of `name`."""
        try:
            url = str((await self._clients.ask("GetQueueUrl", queue=name, QueueName=called))["QueueUrl"])
        except QueueNotFound as error:
            self.forget(name)
            raise QueueNotFound(name, f"{self._settings.where} (there it would be {called})") from error
        except Refused as error:  # a name that is none
            raise QueueNotFound(name, self._settings.where) from error
        self._remember(name, url)
        return url

    async def url_called(self, called: str) -> str:
        """Of a queue by its name at SQS, such as an inbox of somebody's."""
        url = self._urls.get(called)
        return url if url is not None else await self.find_called(called, called)

    def _remember(self, name: str, url: str) -> None:
        self._urls[name] = url
        if len(self._urls) > REMEMBERED:
            self._urls.popitem(last=False)

    def forget(self, name: str) -> None:
        """It is not there any more."""
        self._urls.pop(name, None)

    async def look(self, name: str) -> Known:
        """As it is. Raises QueueNotFound."""
        url = await self.find(name)
        return Known(url, await self.attributes(url, name))

    async def attributes(self, url: str, name: str) -> dict[str, str]:
        """All of them. Nothing where they may not be read."""
        try:
            answer = await self._clients.ask("GetQueueAttributes", queue=name, QueueUrl=url, AttributeNames=["All"])
        except Denied:
            return {}
        return answer.get("Attributes") or {}

    # -- making ---------------------------------------------------------------------------------------------------

    def may_make(self, spec: QueueSpec) -> bool:
        """Do the settings allow it?"""
        return self._settings.create == "all" or (self._settings.create == "ephemeral" and spec.ephemeral)

    def _not_made(self, spec: QueueSpec, missing: QueueNotFound) -> QueueNotFound:
        create = "false" if self._settings.create == "none" else self._settings.create
        hint = ": say create=ephemeral" if spec.ephemeral else ""
        return QueueNotFound(spec.name, f"{missing.where}, and create={create} forbids to make it{hint}")

    async def declare(self, spec: QueueSpec, tags: Mapping[str, str]) -> Known:
        """Find it or, where that is allowed, make it. Raises QueueNotFound."""
        try:
            known = await self.look(spec.name)
        except QueueNotFound as error:
            if not self.may_make(spec):
                raise self._not_made(spec, error) from error
            attributes = await self._wanted(spec)
            url = await self.make(self.called(spec.name), spec.name, attributes, tags)
            self._remember(spec.name, url)
            return Known(url, await self.attributes(url, spec.name))
        if self.may_make(spec):
            await self._add_redrive(spec, known)
            await self._raise_visibility(spec, known)
        return known

    async def make(self, called: str, name: str, attributes: dict[str, str], tags: Mapping[str, str]) -> str:
        """CreateQueue, with tags if that is permitted."""
        largest = {"MaximumMessageSize": str(MAX_WIRE)}
        for more, labels in ((largest, tags), ({}, tags), ({}, {})):
            try:
                made = await self._clients.ask(
                    "CreateQueue", queue=name, QueueName=called, Attributes={**attributes, **more}, tags=dict(labels)
                )
            except Denied:
                if not labels:
                    raise
            except Refused as error:  # a place that takes smaller messages only
                if not more or "MaximumMessageSize" not in str(error):
                    raise
            else:
                return str(made["QueueUrl"])
        raise AssertionError("the last of them returns or raises")

    async def _wanted(self, spec: QueueSpec) -> dict[str, str]:
        attributes = {
            "VisibilityTimeout": str(self._visibility(spec)),
            "MessageRetentionPeriod": str(RETENTION),
        }
        if is_fifo(spec.name):
            attributes["FifoQueue"] = "true"
        if (policy := await self._redrive(spec)) is not None:
            attributes["RedrivePolicy"] = policy
        return attributes

    def _visibility(self, spec: QueueSpec) -> int:
        """For clients that don't say another with each receipt, as we do. Where messages are acked before they run, a
        client that does not is given twice the time that it may take."""
        work = spec.work
        if work is not None and work.early and work.longest < inf:
            return min(LONGEST_LEASE, max(self._settings.lease, ceil(2 * work.longest)))
        return self._settings.lease

    async def _redrive(self, spec: QueueSpec) -> str | None:
        """The policy, once there is a queue for it; a FIFO queue's must be one, too, else it has none."""
        if spec.dead_letter is None or is_fifo(spec.dead_letter) != is_fifo(spec.name):
            return None
        letters = QueueSpec(spec.dead_letter, spec.service, for_dead_letters=True)
        arn = (await self.declare(letters, {})).attributes.get("QueueArn")
        if arn is None:
            return None
        return json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": REDRIVE})

    async def _add_redrive(self, spec: QueueSpec, known: Known) -> None:
        """To a queue that was there without; somebody's own policy stays."""
        if known.attributes.get("RedrivePolicy") or not known.attributes:
            return
        if (policy := await self._redrive(spec)) is None:
            return
        try:
            await self._clients.ask(
                "SetQueueAttributes", queue=spec.name, QueueUrl=known.url, Attributes={"RedrivePolicy": policy}
            )
        except Denied:
            pass  # It is a backstop behind core's own dead letters, and works without.

    def lacking_visibility(self, spec: QueueSpec, known: Known) -> int | None:
        """The visibility timeout that the queue should have, seconds; None if what it has will do."""
        wanted = self._visibility(spec)
        if wanted <= self._settings.lease or known.number("VisibilityTimeout", wanted) >= wanted:
            return None
        return wanted

    async def _raise_visibility(self, spec: QueueSpec, known: Known) -> None:
        wanted = self.lacking_visibility(spec, known)
        if wanted is None:
            return
        try:
            await self._clients.ask(
                "SetQueueAttributes", queue=spec.name, QueueUrl=known.url, Attributes={"VisibilityTimeout": str(wanted)}
            )
        except Denied:
            pass  # We receive with a visibility timeout of our own; it is for others.

    # -- checking -------------------------------------------------------------------------------------------------

    def check(self, spec: QueueSpec, *, fanout: bool) -> None:
        """Raises ConfigurationError for what no queue at SQS can be."""
        name = spec.name
        if spec.kind is not None:
            raise ConfigurationError(f"queue {name!r}: kind={spec.kind!r} is of RabbitMQ; SQS has FIFO queues by name")
        if spec.bindings:
            raise ConfigurationError(f"queue {name!r}: SQS has no exchanges that could feed it")
        if spec.max_priority:
            raise ConfigurationError(f"queue {name!r}: SQS knows no priorities: use a queue for each urgency")
        if spec.max_length is not None:
            raise ConfigurationError(f"queue {name!r}: SQS cannot bound a queue, so max_length has no effect there")
        if spec.patterns and is_fifo(name):
            raise ConfigurationError(f"queue {name!r}: SNS does not bring events to a FIFO queue; name another")
        if is_fifo(name) and not self._settings.renew:
            raise ConfigurationError(
                f"queue {name!r}: what a FIFO queue is given back keeps its place by ChangeMessageVisibility, which "
                "renew=0 forbids"
            )
        if spec.patterns and not fanout:
            raise ConfigurationError(
                f"queue {name!r} cannot listen to events at {self._settings.where}, where SNS may not be used"
            )

    def _check_work(self, spec: QueueSpec, known: Known) -> None:
        """Raises ConfigurationError for what would run twice, or be taken away before it was tried as often as said."""
        work, lease = spec.work, self._settings.lease
        if work is None:
            return
        if not self._settings.renew and not work.early and work.longest > lease:
            limit = "without a time limit" if work.longest == inf else f"for {work.longest:g} s"
            raise ConfigurationError(
                f"handlers of queue {spec.name!r} may run {limit}, and with renew=0 a message is handed out again "
                f"after {lease} s: give them a time_limit below that, raise lease=, or say ack='early'"
            )
        redrive = known.redrive
        if redrive is not None and redrive < min(work.attempts, REDRIVE):  # each attempt is a copy, counted anew
            raise ConfigurationError(
                f"SQS moves messages of queue {spec.name!r} away after {redrive} deliveries, and its handlers want up "
                f"to {work.attempts} attempts: raise maxReceiveCount in its RedrivePolicy, best to {REDRIVE}"
            )

    def limits(self, spec: QueueSpec, known: Known, *, fanout: bool) -> Limits:
        """What this queue can do. Raises ConfigurationError for one whose messages might get lost."""
        retention = known.number("MessageRetentionPeriod", RETENTION)
        if retention < LONGEST_DELAY:
            raise ConfigurationError(
                f"queue {spec.name!r} keeps its messages for {retention} s only, and a delayed one may have to "
                f"wait for {LONGEST_DELAY} s: raise its MessageRetentionPeriod"
            )
        self._check_work(spec, known)
        fifo, settings = is_fifo(spec.name), self._settings
        room = MAX_WIRE - known.number("MaximumMessageSize", MAX_WIRE)
        return Limits(
            max_delay=inf,
            max_release_delay=LONGEST_LEASE - 3600.0 if fifo else inf,
            lease=float(settings.lease) if settings.renew else None,
            max_lease=float(LONGEST_LEASE if settings.renew else settings.lease),
            priorities=0,
            max_bytes=MAX_BYTES - room,
            max_batch=10,
            counts_deliveries=True,
            counts_releases=fifo,
            fanout=fanout and not fifo,
            ordered=False,
        )


def _redrive_count(policy: str) -> int | None:
    """`maxReceiveCount` of a policy."""
    try:
        return int(json.loads(policy)["maxReceiveCount"]) if policy else None
    except (
        ValueError,
        KeyError,
        TypeError,
    ):  # of another form than today's: SQS has checked it
        return None
