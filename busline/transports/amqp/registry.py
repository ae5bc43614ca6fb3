"""What AMQP cannot tell: which queues there are, and which topics and patterns are bound to them.

One durable queue holds one message, the register, as JSON. Whoever attaches a queue reads it, takes away the bindings
that the queue has had and no longer wants, checks who owns its topics, and writes it anew, holding a lock: an exclusive
queue, which belongs to one connection at a time and vanishes with it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import field
from typing import Any

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from busline.errors import ConnectionLost
from busline.message import QueueSpec
from busline.structs import struct
from busline.transports.amqp.errands import Errands
from busline.transports.amqp.getting import get
from busline.transports.amqp.link import Session
from busline.transports.amqp.properties import header
from busline.transports.amqp.publishing import Outlet
from busline.transports.amqp.url import Kind
from busline.transports.amqp.wire import Declare

REGISTER = "busline.register"
LOCK = "busline.register.lock"
LOCK_TIMEOUT = 30.0
"""Seconds; the lock is held for some milliseconds by each process that starts."""


@struct
class Entry:
    """One queue as it was attached last."""

    service: str = ""
    topics: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    bindings: frozenset[tuple[str, str]] = frozenset()
    """Foreign exchanges and routing keys."""
    ephemeral: bool = False
    kind: Kind | None = None
    max_length: int | None = None
    max_priority: int | None = None

    @classmethod
    def of(cls, spec: QueueSpec, kind: Kind, topics: frozenset[str]) -> Entry:
        """What is recorded of it; it keeps the `topics` that it has had."""
        return cls(
            *(spec.service, spec.topics | topics, spec.patterns, pairs(spec), spec.ephemeral),
            *(kind, spec.max_length, spec.max_priority),
        )


def pairs(spec: QueueSpec) -> frozenset[tuple[str, str]]:
    """Foreign exchanges and routing keys."""
    return frozenset((binding.exchange, binding.routing_key) for binding in spec.bindings)


@struct
class Register:
    """All queues, by name."""

    queues: dict[str, Entry] = field(default_factory=dict)
    tags: list[int] = field(default_factory=list)
    """Of the messages that it was read from, which are to be acked once it is written."""
    changed: bool = False

    def owner(self, topic: str, but: str = "") -> str | None:
        """The queue that owns the topic; `but` is not asked."""
        return next((name for name, entry in self.queues.items() if topic in entry.topics and name != but), None)

    def put(self, name: str, entry: Entry) -> None:
        """Record the queue."""
        if self.queues.get(name) != entry:
            self.queues[name] = entry
            self.changed = True

    def remove(self, name: str) -> None:
        """Forget it."""
        if self.queues.pop(name, None) is not None:
            self.changed = True


class Joint:
    """What those of this process that edit at the same time share: one lock, one reading, one writing."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.opened: asyncio.Future[Register] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self.closing = False
        self._members = 0
        self._left = asyncio.Event()

    def join(self) -> None:
        """There is one more."""
        self._members += 1

    def leave(self) -> None:
        """One has done."""
        self._members -= 1
        self._left.set()

    async def all_left(self) -> None:
        """Until nobody is in it; then nobody can join any more."""
        while self._members:
            self._left.clear()
            await self._left.wait()
        self.closing = True


class Registrar:
    """Reads and writes the register."""

    def __init__(self, outlet: Outlet, where: str) -> None:
        self._outlet = outlet
        self._mine = asyncio.Lock()  # the broker's lock is the connection's, so it does not keep our own tasks apart
        self._errands = Errands(where)
        self._joint: Joint | None = None

    @asynccontextmanager
    async def edit(self, session: Session) -> AsyncIterator[Register]:
        """The register, to be changed in place by a block that does so without an await, at its end: others of this
        process may edit it at the same time. It is written when all have ended, before this returns.

        To be used in an errand only, which no user can cancel half way.
        """
        joint = self._join(session)
        assert joint.task is not None
        try:
            yield await asyncio.shield(joint.opened)
        finally:
            joint.leave()
        await self._errands.wait(joint.task)

    def _join(self, session: Session) -> Joint:
        joint = self._joint
        if joint is None or joint.closing or joint.session is not session:
            joint = self._joint = Joint(session)
            joint.task = self._errands.start(self._keep(joint))
        joint.join()
        return joint

    async def _keep(self, joint: Joint) -> None:
        try:
            async with self._mine, self._locked(joint.session), joint.session.scratch() as channel:
                register = await _read(channel)
                joint.opened.set_result(register)
                await joint.all_left()
                await self._put_back(register, channel)
        except BaseException as error:
            joint.closing = True
            if not joint.opened.done():
                cancelled = isinstance(error, asyncio.CancelledError)
                joint.opened.set_exception(ConnectionLost("the connection has ended") if cancelled else error)
                joint.opened.exception()  # seen: whoever waited for it may have gone
            raise

    async def _put_back(self, register: Register, channel: Channel) -> None:
        if register.changed or len(register.tags) != 1:
            await self._write(register)
            for tag in register.tags:
                await channel.basic_ack(tag)
        else:
            await channel.basic_nack(register.tags[0], requeue=True)

    async def aclose(self) -> None:
        """Nothing is edited any more."""
        await self._errands.end(0.0)

    async def look(self, session: Session) -> Register:
        """As it is now."""
        async with self.edit(session) as register:
            return register

    @asynccontextmanager
    async def _locked(self, session: Session) -> AsyncIterator[None]:
        until = asyncio.get_running_loop().time() + LOCK_TIMEOUT
        try:
            while not await _take(session):
                if asyncio.get_running_loop().time() > until:
                    raise ConnectionLost(f"another client has held {LOCK!r} for {LOCK_TIMEOUT:g} s")
                await asyncio.sleep(random.uniform(0.005, 0.05))
            yield
        finally:
            await _give_back(session)

    async def _write(self, register: Register) -> None:
        text = json.dumps({name: _plain(entry) for name, entry in sorted(register.queues.items())})
        await self._outlet.put("", REGISTER, text.encode(), header(), lambda: ConnectionLost("the register is gone"))


async def _take(session: Session) -> bool:
    try:
        async with session.scratch(patient=False) as channel:
            await channel.queue_declare(LOCK, exclusive=True)
    except ChannelLockedResource:
        return False
    return True


async def _give_back(session: Session) -> None:
    """The lock, which we have, or may have when taking it failed. Where that cannot be done its connection ends, and
    the lock with it; else nobody could attach a queue for as long as this process lives."""
    if session.broken.done():
        return
    try:
        async with session.scratch(patient=False) as channel:
            await channel.queue_delete(LOCK)
    except (ChannelLockedResource, ChannelAccessRefused):  # it is another's, or not for us: we have not got it
        return
    except BaseException as error:
        session.fail(error)
        raise


async def _read(channel: Channel) -> Register:
    # Classic: reading gives the message back, which a quorum queue would count until it drops it.
    await channel.rpc(Declare(queue=REGISTER, durable=True, arguments={"x-queue-type": "classic"}))
    register = Register()
    while (delivered := await get(channel, REGISTER)) is not None:
        register.tags.append(delivered.delivery_tag)
        register.queues |= _entries(delivered.body)
    return register


def _entries(body: bytes) -> dict[str, Entry]:
    """What anybody can have written is read without trust."""
    try:
        found = json.loads(body)
        return {str(name): _entry(plain) for name, plain in found.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}


def _entry(plain: Mapping[str, Any]) -> Entry:
    pairs = frozenset((str(exchange), str(key)) for exchange, key in plain.get("bindings", ()))
    topics, patterns = (frozenset(map(str, plain.get(each, ()))) for each in ("topics", "patterns"))
    kind = plain.get("kind")
    return Entry(
        *(str(plain["service"]), topics, patterns, pairs, bool(plain.get("ephemeral"))),
        kind if kind in ("quorum", "classic") else None,
        *(int(plain[each]) if each in plain else None for each in ("max_length", "max_priority")),
    )


def _plain(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = {"service": entry.service, "topics": sorted(entry.topics)}
    if entry.patterns:
        plain["patterns"] = sorted(entry.patterns)
    if entry.bindings:
        plain["bindings"] = sorted(entry.bindings)
    if entry.ephemeral:
        plain["ephemeral"] = True
    options = {"kind": entry.kind, "max_length": entry.max_length, "max_priority": entry.max_priority}
    return plain | {name: value for name, value in options.items() if value is not None}
