"""The queues that this process has attached: declared now, and again in each session."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from aiormq.exceptions import ChannelAccessRefused
from pamqp.common import FieldValue

from busline.errors import BuslineError, ConfigurationError
from busline.message import Destination, Limits, QueueSpec, ToQueue
from busline.transports.amqp import patience, topology
from busline.transports.amqp.bounds import Bound
from busline.transports.amqp.faults import LIBRARY, reason, translate, was_cancelled
from busline.transports.amqp.keeping import Keeper
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.registry import Entry, Register, Registrar, pairs
from busline.transports.amqp.topology import CALLS, EVENTS
from busline.transports.amqp.url import Kind, Settings
from busline.transports.amqp.wire import Delete
from busline.transports.base import Remark

_DELIVERY_LIMIT = re.compile(r"x-delivery-limit is the value '(\d+)'")

Bindings = Mapping[str, frozenset[str]]
"""Routing keys by exchange."""


class Attached:
    """Lives on the link that consumes."""

    def __init__(self, link: Link, registrar: Registrar, settings: Settings) -> None:
        self._link = link
        self._registrar = registrar
        self._default: Kind = settings.kind
        self._consumer_timeout = settings.consumer_timeout
        self._keeper = Keeper()
        self._specs: dict[str, QueueSpec] = {}
        self._claims: list[tuple[QueueSpec, asyncio.Event]] = []
        """What is being claimed now."""
        self.differences: dict[str, str] = {}
        """What a queue at the broker has otherwise than was asked for, in words."""

    def __contains__(self, queue: str) -> bool:
        return queue in self._specs

    def sole_topic(self, queue: str) -> str:
        """The one topic that the queue owns; "" if it owns none, or several."""
        spec = self._specs.get(queue)
        return next(iter(spec.topics)) if spec is not None and len(spec.topics) == 1 else ""

    def owner(self, topic: str) -> str | None:
        """The queue of ours that owns the topic."""
        return next((name for name, spec in self._specs.items() if topic in spec.topics), None)

    def bound(self, to: Destination) -> Bound:
        """That of our own queue; None if it has none, or is not ours."""
        spec = self._specs.get((to.queue if isinstance(to, ToQueue) else self.owner(to.topic)) or "")
        return (spec.name, spec.max_length) if spec is not None and spec.max_length else None

    def check_priority(self, queue: str, priority: int) -> None:
        """Raises ConfigurationError if we know that the queue knows no such priority."""
        spec = self._specs.get(queue)
        if spec is None or (spec.passive and spec.kind is None):
            return
        if priority > (highest := topology.limits(spec, self._kind(spec)).priorities):
            raise ConfigurationError(f"priority {priority} at queue {queue!r}, whose highest is {highest}")

    def consumer_arguments(self, queue: str, version: tuple[int, ...]) -> dict[str, FieldValue]:
        """Of consumers of the queue at a broker of this version."""
        spec = self._specs.get(queue)
        return {} if spec is None else patience.wish(self._certain_kind(spec), version, self._consumer_timeout)

    def _limits(self, spec: QueueSpec, version: tuple[int, ...]) -> Limits:
        most = patience.longest(self._certain_kind(spec), version, self._consumer_timeout)
        return topology.limits(spec, self._kind(spec), most)

    def _certain_kind(self, spec: QueueSpec) -> Kind | None:
        """None for a queue of somebody else's that is not in the register: AMQP does not tell its kind."""
        return None if spec.passive and spec.kind is None else self._kind(spec)

    def _kind(self, spec: QueueSpec) -> Kind:
        return topology.kind_of(spec, self._default)

    # -- as a resident ------------------------------------------------------------------------------------------

    async def up(self, session: Session) -> None:
        """Declare and bind again; what one queue refuses concerns that queue alone."""
        for spec in list(self._specs.values()):
            if spec.passive:
                continue
            try:
                await self._declare(session, spec, is_known=True)
                async with session.scratch() as channel:
                    await topology.bind(channel, spec)
            except BuslineError as error:
                self.differences[spec.name] = str(error)
            except LIBRARY as error:
                if was_cancelled(error) or session.broken.done():
                    raise
                self.differences[spec.name] = str(translate(error, self._link.where))

    def down(self) -> None:
        """See `Resident`."""

    # -- the verbs ----------------------------------------------------------------------------------------------

    async def attach(self, session: Session, spec: QueueSpec, *, create: bool) -> Limits:
        """See `Transport.attach`."""
        topology.check(spec)
        if spec.passive or not create:
            await topology.find_queue(session, spec.name, self._link.where)
            spec = await self._verify(session, spec)
            if not create:
                return self._limits(spec, session.version)
        else:
            await self._make(session, spec)
        self._specs[spec.name] = spec
        return self._limits(spec, session.version)

    async def _make(self, session: Session, spec: QueueSpec) -> None:
        try:
            async with self._registrar.edit(session) as register, self._alone(spec):
                await self._claim(session, spec, register)
        except ChannelAccessRefused as refused:
            # Dead letters are put there by us, so it is enough that somebody has made a place for them.
            if spec.for_dead_letters and await topology.exists(session, spec.name):
                return
            raise ConfigurationError(
                f"{self._link.where} refuses: {reason(refused)}. A worker that declares its queues needs the rights to "
                "configure, write and read them and what begins with busline.; else have them declared by somebody "
                "who may, and use them with Queue(name, passive=True)"
            ) from refused

    async def _verify(self, session: Session, spec: QueueSpec) -> QueueSpec:
        """The spec with what the register knows of the queue. Raises ConfigurationError if a passive one differs.

        What comes to a queue that is not in the register is its owner's business, so any topic may be handled there.
        """
        try:
            entry = (await self._registrar.look(session)).queues.get(spec.name)
        except ChannelAccessRefused:  # a user without the right to read the register: nothing is known of the queue
            entry = None
        if spec.passive and (unlike := _unlike(spec, entry or Entry(topics=spec.topics))):
            raise ConfigurationError(
                f"queue {spec.name!r} is passive, so it cannot be given what its owner did not give it: {unlike}"
            )
        if entry is None:
            return spec
        return replace(spec, kind=entry.kind, max_length=entry.max_length, max_priority=entry.max_priority)

    @asynccontextmanager
    async def _alone(self, spec: QueueSpec) -> AsyncIterator[None]:
        """Nobody else of this process claims the queue, or one of its topics, at the same time."""
        while others := [ended for other, ended in self._claims if _meet(spec, other)]:
            await others[0].wait()
        claim = spec, asyncio.Event()
        self._claims.append(claim)
        try:
            yield
        finally:
            self._claims.remove(claim)
            claim[1].set()

    async def examine(self, session: Session, spec: QueueSpec, max_deliveries: int) -> list[Remark]:
        """See `Examinable.examine`. Declaring a queue that exists changes nothing."""
        await topology.find_queue(session, spec.name, self._link.where)
        try:
            if spec.passive:
                await self._verify(session, spec)
                return []
            text = await topology.declare_queue(session, spec, self._kind(spec), self._link.where)
        except ConfigurationError as error:
            return [Remark("queue_refused", str(error))]
        remarks = [Remark("queue_differs", text)] if text else []
        found = _DELIVERY_LIMIT.search(text)
        most = int(found[1]) if found is not None else topology.DELIVERY_LIMIT
        if self._kind(spec) == "quorum" and most <= max_deliveries:
            told = f"the broker gives a message up after {most} starts, and busline only after {max_deliveries}"
            remarks.append(Remark("redrive", told))
        return remarks

    async def _claim(self, session: Session, spec: QueueSpec, register: Register) -> None:
        moved = await self._moved(session, spec, register)
        before = register.queues.get(spec.name)
        await self._declare(session, spec, is_known=before is not None)
        async with session.scratch(patient=False) as channel:
            for queue, topics in moved.items():
                await topology.unbind(channel, queue, {CALLS: topics})
            entry = Entry.of(spec, self._kind(spec), before.topics if before is not None else frozenset())
            await topology.unbind(channel, spec.name, _stale(before, entry))
            await topology.bind(channel, replace(spec, topics=entry.topics))
        for queue, topics in moved.items():
            entry = register.queues[queue]
            register.put(queue, replace(entry, topics=entry.topics - topics))
            if queue in self._specs:
                self._specs[queue] = topology.without(self._specs[queue], topics)
        register.put(spec.name, entry)

    async def _moved(self, session: Session, spec: QueueSpec, register: Register) -> dict[str, frozenset[str]]:
        """Topics that other queues own, by queue. Raises ConfigurationError if one is another service's."""
        moved: dict[str, frozenset[str]] = {}
        for name, entry in list(register.queues.items()):
            topics = entry.topics & spec.topics
            if name == spec.name or not topics:
                continue
            if not await topology.exists(session, name):
                register.remove(name)
            elif entry.service != spec.service:
                raise ConfigurationError(
                    f"topic {min(topics)!r} is owned by queue {name!r} of service {entry.service!r} at "
                    f"{self._link.where}; one topic has one owner"
                )
            else:
                moved[name] = topics
        return moved

    async def _declare(self, session: Session, spec: QueueSpec, *, is_known: bool) -> None:
        """`is_known`: somebody has attached it before, which does not say that it is still there."""
        self.differences.pop(spec.name, None)
        kind = self._kind(spec)
        is_new = kind == "quorum" and not (is_known and await topology.exists(session, spec.name))
        if difference := await topology.declare_queue(session, spec, kind, self._link.where):
            self.differences[spec.name] = difference
        if is_new:
            await self._keeper.keep(session)

    async def detach(self, session: Session, queue: str, *, delete: bool) -> None:
        """See `Transport.detach`."""
        self._specs.pop(queue, None)
        self.differences.pop(queue, None)
        if not delete:
            return
        async with self._registrar.edit(session) as register:
            async with session.scratch() as channel:
                await channel.rpc(Delete(queue=queue))
            register.remove(queue)


def _meet(one: QueueSpec, other: QueueSpec) -> bool:
    return one.name == other.name or not one.topics.isdisjoint(other.topics)


def _unlike(spec: QueueSpec, entry: Entry) -> str:
    """What the spec asks for that the queue has not, as far as the register tells; AMQP tells no more."""
    asked: Iterable[object] = (spec.topics - entry.topics) | (spec.patterns - entry.patterns)
    asked = [*asked, *(pairs(spec) - entry.bindings)]
    options = ("ephemeral", "kind", "max_length", "max_priority")
    wrong = [each for each in options if getattr(spec, each) not in (None, False, getattr(entry, each))]
    return ", ".join([*sorted(map(str, asked)), *(f"{each}={getattr(spec, each)!r}" for each in wrong)])


def _stale(before: Entry | None, now: Entry) -> Bindings:
    """What the queue was bound to and is not to be any more. Topics stay, for a newer worker may serve them, unless
    there is a bound now: then every sender is to look first."""
    if before is None:
        return {}
    stale = {EVENTS: before.patterns - now.patterns}
    if now.max_length is not None:
        stale[CALLS] = before.topics
    for exchange, key in before.bindings - now.bindings:
        stale[exchange] = stale.get(exchange, frozenset()) | {key}
    return stale
