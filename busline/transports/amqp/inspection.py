"""What people who look after the broker see and do, over AMQP alone.

AMQP tells how many messages of a queue are ready and how many consumers it has, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity
from pamqp import commands

from busline.errors import QueueNotFound
from busline.message import Message, QueueStats
from busline.transports.amqp.getting import get
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.properties import has_expired, message_of, properties
from busline.transports.amqp.publishing import Outlet
from busline.transports.amqp.registry import Entry, Register, Registrar
from busline.transports.amqp.topology import find_queue
from busline.transports.amqp.wire import Declare, Delivered, Purge


class Inspection:
    """See `Inspectable`."""

    def __init__(self, link: Link, registrar: Registrar, outlet: Outlet) -> None:
        self._link = link
        self._registrar = registrar
        self._outlet = outlet

    async def find(self, session: Session, queue: str) -> commands.Queue.DeclareOk:
        """Raises QueueNotFound."""
        return await find_queue(session, queue, self._link.where)

    async def stats(self, session: Session) -> Sequence[QueueStats]:
        """Of the queues in the register that exist; the others are struck out of it."""
        seen: list[QueueStats] = []
        async with self._registrar.edit(session) as register:
            left = sorted(register.queues.items())
            while left:
                left = await self._look(session, left, seen, register)
        return seen

    async def _look(
        self, session: Session, queues: list[tuple[str, Entry]], seen: list[QueueStats], register: Register
    ) -> list[tuple[str, Entry]]:
        """Look at them on one channel, until the broker closes it because of one; returns those that are left."""
        channel = await session.channel(lasting=False)
        for number, (name, entry) in enumerate(queues):
            try:
                found = await channel.rpc(Declare(queue=name, passive=True))
            except ChannelNotFoundEntity:
                register.remove(name)
                return queues[number + 1 :]
            except ChannelLockedResource:  # another process's ephemeral queue
                seen.append(_stats(name, entry, 0, 1))
                return queues[number + 1 :]
            seen.append(_stats(name, entry, found.message_count or 0, found.consumer_count or 0))
        await session.give_up(channel)
        return []

    async def peek(self, session: Session, queue: str, limit: int) -> Sequence[Message]:
        """The first messages that are ready; they are taken, and given back together."""
        await self.find(session, queue)
        async with session.scratch() as channel:
            taken: list[Delivered] = []
            while len(taken) < limit and (delivered := await _next(channel, queue)) is not None:
                taken.append(delivered)
            for delivered in taken:
                await channel.basic_nack(delivered.delivery_tag, requeue=True, wait=False)
        return [message_of(delivered) for delivered in taken]

    async def purge(self, session: Session, queue: str) -> int:
        """Deletes what is ready."""
        await self.find(session, queue)
        async with session.scratch() as channel:
            purged = await channel.rpc(Purge(queue=queue))
        assert isinstance(purged, commands.Queue.PurgeOk)
        return purged.message_count or 0

    async def move(self, session: Session, source: str, to: str, limit: int) -> int:
        """One by one: confirmed at the target, then acked at the source."""
        await self.find(session, source)
        await self.find(session, to)
        moved = 0
        async with session.scratch() as channel:
            while moved < limit and (delivered := await _next(channel, source)) is not None:
                message = message_of(delivered)
                again = properties(message, reply_to=message.reply_to)
                await self._outlet.put("", to, message.body, again, lambda: QueueNotFound(to, self._link.where))
                await channel.basic_ack(delivered.delivery_tag)
                moved += 1
        return moved


async def _next(channel: Channel, queue: str) -> Delivered | None:
    """The first that waits; what has expired and was not the first until now is deleted."""
    while (delivered := await get(channel, queue)) is not None and has_expired(delivered):
        await channel.basic_ack(delivered.delivery_tag, wait=False)
    return delivered


def _stats(name: str, entry: Entry, ready: int, consumers: int) -> QueueStats:
    return QueueStats(name, ready, None, None, consumers, entry.topics, entry.patterns, entry.ephemeral)
