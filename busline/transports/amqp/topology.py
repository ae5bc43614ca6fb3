"""Queues, exchanges and bindings: what is declared, and what an edited option may change.

A queue's arguments cannot be changed at the broker: declaring it with others is refused. So there are few arguments,
most of them constants, and of those that come from an option a difference is tolerated: the queue works on as the
broker has it, and `health()` names the difference. Only another type is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

from aiormq.channel import Channel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp import commands

from busline.errors import ConfigurationError, ConnectionLost, QueueNotFound
from busline.message import Limits, QueueSpec
from busline.transports.amqp.faults import reason
from busline.transports.amqp.ladder import LONGEST
from busline.transports.amqp.link import Session
from busline.transports.amqp.properties import MAX_BYTES, MAX_PRIORITY
from busline.transports.amqp.url import Kind
from busline.transports.amqp.wire import Bind, Declare, Unbind

CALLS = "busline.calls"
EVENTS = "busline.events"
DELIVERY_LIMIT = 40
"""Starts after which the broker itself dead-letters a message: twice core's limit, the last resort."""
NO_DELIVERY_LIMIT = 1_000_000_000
"""For dead letters, which nobody may lose by looking at them, and for what has nowhere to go. RabbitMQ 4 has a limit
of 20 if none is set."""
MAX_NAME_BYTES = 255

_TOLERATED = frozenset(
    {"x-max-priority", "x-max-length", "x-overflow", "x-delivery-limit"}
    | {"x-dead-letter-exchange", "x-dead-letter-routing-key"}
)
_TEXTS = frozenset({"x-overflow", "x-dead-letter-exchange", "x-dead-letter-routing-key"})
_VALUE = re.compile(r"'([^']*)'")
_DIFFERENCE = re.compile(r"inequivalent arg '([^']+)'.*?: received (.*?) but current is (.*)", re.DOTALL)


def check(spec: QueueSpec) -> None:
    """Raises ConfigurationError for what no broker could declare."""
    if not spec.name or len(spec.name.encode()) > MAX_NAME_BYTES:
        raise ConfigurationError(f"queue {spec.name!r}: a name has 1 to {MAX_NAME_BYTES} bytes at RabbitMQ")
    if spec.name.startswith("amq."):
        raise ConfigurationError(f"queue {spec.name!r}: names that begin with amq. are RabbitMQ's own")
    for topic in (*spec.topics, *spec.patterns):
        if len(topic.encode()) > MAX_NAME_BYTES:
            raise ConfigurationError(f"topic {topic!r} is longer than {MAX_NAME_BYTES} bytes")
    if spec.max_priority is not None and not 0 <= spec.max_priority <= MAX_PRIORITY:
        raise ConfigurationError(f"queue {spec.name!r}: max_priority is 0 to {MAX_PRIORITY}, not {spec.max_priority}")
    if spec.max_length is not None and spec.max_length < 1:
        raise ConfigurationError(f"queue {spec.name!r}: max_length is 1 or more, not {spec.max_length}")
    if spec.max_length is not None and (spec.patterns or spec.bindings):
        raise ConfigurationError(
            f"queue {spec.name!r}: max_length is kept by who sends, and at RabbitMQ nobody asks before an event; leave "
            "it out, or set a policy at the broker"
        )
    if spec.max_priority and spec.kind == "quorum":
        raise ConfigurationError(
            f"queue {spec.name!r}: quorum queues know no priorities; leave kind= out, or say kind='classic'"
        )


def kind_of(spec: QueueSpec, default: Kind) -> Kind:
    """Classic where priorities are asked for, because quorum queues of RabbitMQ 3 have none."""
    if spec.kind is not None:
        return spec.kind
    if spec.name.startswith("busline.") and not spec.ephemeral:
        return "quorum"  # ours, and of all services of the broker, whatever each of them has for a default
    return "classic" if spec.max_priority or spec.ephemeral else default


def arguments(spec: QueueSpec, kind: Kind) -> dict[str, Any]:
    """Of the queue's declaration."""
    chosen: dict[str, Any] = {}
    if spec.ephemeral:
        return chosen
    chosen["x-queue-type"] = kind
    moves = spec.dead_letter is not None and not spec.for_dead_letters
    if kind == "quorum":  # what has nowhere to go would be dropped at the limit
        chosen["x-delivery-limit"] = DELIVERY_LIMIT if moves else NO_DELIVERY_LIMIT
    else:
        chosen["x-max-priority"] = MAX_PRIORITY
    if moves:
        chosen |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": spec.dead_letter}
    return chosen


def limits(spec: QueueSpec, kind: Kind, max_lease: float = inf) -> Limits:
    """What such a queue can do. `max_lease`: seconds after which the broker takes back what was not acked."""
    classic = kind == "classic"
    highest = MAX_PRIORITY if spec.max_priority is None else spec.max_priority
    return Limits(
        max_delay=LONGEST,
        max_release_delay=LONGEST,
        lease=None,
        max_lease=max_lease,
        priorities=highest if classic and not spec.ephemeral else 0,
        max_bytes=MAX_BYTES,
        max_batch=256,
        counts_deliveries=not classic,
        counts_releases=False,
        fanout=True,
        ordered=False,
        exact_bounds=False,
    )


async def declare_queue(session: Session, spec: QueueSpec, kind: Kind, where: str) -> str:
    """Declare it; returns "" or, in words, the differences that were tolerated. Raises ConfigurationError."""
    chosen = arguments(spec, kind)
    tolerated: dict[str, str] = {}
    while True:
        try:
            async with session.scratch(patient=False) as channel:
                await channel.rpc(_declaration(spec, chosen))
            return f"queue {spec.name!r}: {', '.join(tolerated.values())}" if tolerated else ""
        except ChannelPreconditionFailed as error:
            argument, current, text = difference(error)
            if argument not in _TOLERATED or argument in tolerated:
                raise ConfigurationError(
                    f"queue {spec.name!r} exists at {where} with other properties: {text}. "
                    "Delete it when it is empty, or change what is asked for"
                ) from error
        except ChannelLockedResource as error:
            text = f"queue {spec.name!r} at {where} belongs to another connection"
            # One of ours may be dead, and the broker not know it yet: trying again helps.
            raise (ConnectionLost if spec.ephemeral else ConfigurationError)(text) from error
        # As the broker has it: what else differs is seen only when this does not.
        tolerated[argument] = text
        chosen.pop(argument, None)
        if current is not None:
            chosen[argument] = current


def _declaration(spec: QueueSpec, chosen: dict[str, Any]) -> Declare:
    return Declare(queue=spec.name, durable=not spec.ephemeral, exclusive=spec.ephemeral, arguments=chosen)


async def find_queue(session: Session, name: str, where: str) -> commands.Queue.DeclareOk:
    """What the broker says of it. Raises QueueNotFound."""
    try:
        async with session.scratch(patient=False) as channel:
            found = await channel.rpc(Declare(queue=name, passive=True))
    except ChannelNotFoundEntity:
        raise QueueNotFound(name, where) from None
    assert isinstance(found, commands.Queue.DeclareOk)
    return found


async def exists(session: Session, name: str) -> bool:
    """Is there a queue of this name, be it another connection's?"""
    try:
        await find_queue(session, name, "")
    except QueueNotFound:
        return False
    except ChannelLockedResource:
        return True
    return True


def difference(error: ChannelPreconditionFailed) -> tuple[str, int | str | None, str]:
    """The argument that differs, what the broker has (None: not set), and both in words."""
    text = reason(error).removeprefix("PRECONDITION_FAILED - ")
    found = _DIFFERENCE.search(text)
    if found is None:
        return "", None, text
    value = _VALUE.search(found[3])
    current: int | str | None = None if value is None else value[1]
    if value is not None and value[1].isdigit() and found[1] not in _TEXTS:
        current = int(value[1])
    return found[1], current, f"{found[1]} is {found[3]} there, asked for is {found[2]}"


async def declare_exchanges(session: Session) -> None:
    """The two that everything goes through. Looking first, because declaring takes a right that a caller may lack."""
    for name, kind in ((CALLS, "direct"), (EVENTS, "topic")):
        try:
            async with session.scratch() as channel:
                await channel.exchange_declare(name, exchange_type=kind, passive=True)
        except ChannelNotFoundEntity:
            try:
                async with session.scratch() as channel:
                    await channel.exchange_declare(name, exchange_type=kind, durable=True)
            except ChannelAccessRefused as refused:
                raise ConfigurationError(
                    f"there is no {kind} exchange {name!r} yet, and {reason(refused)}: let a user who may connect first"
                ) from refused


async def bind(channel: Channel, spec: QueueSpec) -> None:
    """Whatever feeds the queue. To a bounded one nobody sends without having looked; see bounds.py."""
    for topic in sorted(spec.topics) if spec.max_length is None else ():
        await channel.rpc(Bind(queue=spec.name, exchange=CALLS, routing_key=topic))
    for pattern in sorted(spec.patterns):
        await channel.rpc(Bind(queue=spec.name, exchange=EVENTS, routing_key=pattern))
    for foreign in spec.bindings:
        await channel.exchange_declare(foreign.exchange, exchange_type=foreign.type, durable=True)
        await channel.rpc(Bind(queue=spec.name, exchange=foreign.exchange, routing_key=foreign.routing_key))


async def unbind(channel: Channel, queue: str, bindings: Mapping[str, frozenset[str]]) -> None:
    """Take away, by exchange, these routing keys; what is not there is silent."""
    for exchange, keys in bindings.items():
        for key in sorted(keys):
            await channel.rpc(Unbind(queue=queue, exchange=exchange, routing_key=key))


def without(spec: QueueSpec, topics: frozenset[str]) -> QueueSpec:
    """The same queue, these topics moved away."""
    return replace(spec, topics=spec.topics - topics)
