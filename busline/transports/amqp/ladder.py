"""Delays without a plugin: a ladder of queues, each of which keeps its messages for a constant time.

A delay is a number of ticks of 0.1 s. Level n holds a message for 2**n ticks; a message visits the levels of the bits
that are set, from the highest down. As all messages of one queue wait equally long, none blocks another. The bits
stand in the routing key and are read by topic exchanges, so copies carry no expiration and nothing of ours has to run:

    exchange busline.delay.7 ─(bit 7 is 1)→ queue busline.delay.7 ─(after 12.8 s)→ exchange busline.delay.6 …
                             └(bit 7 is 0)→ exchange busline.delay.6 …          … → exchange busline.delayed → queue

The queues are quorum queues that hand over at least once: a level forgets a message when the next has it.
"""

from __future__ import annotations

import hashlib
from math import ceil
from typing import TYPE_CHECKING

from aiormq.channel import Channel
from pamqp.common import FieldValue

from busline.errors import ConfigurationError
from busline.transports.amqp.keeping import Keeper
from busline.transports.amqp.properties import LADDER
from busline.transports.amqp.wire import Bind, Declare

if TYPE_CHECKING:
    from busline.transports.amqp.link import Session

TICK = 0.1
"""Seconds; the resolution of short delays."""
LEVELS = 25
SIGNIFICANT = 8
"""Bits that a delay keeps, so that it takes few steps: it is up to 1/128 longer than asked for, never shorter."""
LONGEST = 30 * 86400.0
"""Seconds; the ladder reaches 38 days."""
DELAYED = "busline.delayed"


def ticks(delay: float) -> int:
    """The delay in ticks, rounded up to what the ladder offers."""
    number = ceil(delay / TICK - 1e-9)
    rough = max(0, number.bit_length() - SIGNIFICANT)
    return ceil(number / (1 << rough)) << rough


def entrance(number: int) -> str:
    """The exchange where a delay of so many ticks begins."""
    return _name(number.bit_length() - 1)


def routing_key(number: int, queue: str) -> str:
    """The bits, highest level first, and the destination."""
    return ".".join(format(number, f"0{LEVELS}b")) + "." + address(queue)


def address(queue: str) -> str:
    """The destination as one word of bounded length."""
    return hashlib.sha256(queue.encode()).hexdigest()[:32]


def check(delay: float, topic: str) -> None:
    """Raises ConfigurationError for what the ladder cannot do."""
    if not delay <= LONGEST:
        raise ConfigurationError(f"a delay of {delay:g} s of {topic!r} is longer than {LONGEST:g} s")


class Ladder:
    """Declares levels and destinations when they are first needed. Lives on the link that publishes."""

    def __init__(self) -> None:
        self._levels: set[int] = set()
        self._exchanges = -1
        self._destinations: set[str] = set()
        self._keeper = Keeper()

    async def up(self, session: Session) -> None:
        """Nothing to do: levels are durable, and declared anew when next used."""

    def down(self) -> None:
        """The broker may come back without them."""
        self._levels.clear()
        self._destinations.clear()
        self._exchanges = -1

    def is_ready(self, number: int, queue: str) -> bool:
        """Will a message of so many ticks find its way to the queue?"""
        ready = number.bit_length() - 1 <= self._exchanges and queue in self._destinations
        return ready and not self._missing(number)

    def _missing(self, number: int) -> list[int]:
        return [level for level in range(LEVELS) if number >> level & 1 and level not in self._levels]

    async def prepare(self, session: Session, number: int, queue: str) -> None:
        """Declare what it needs for that."""
        missing = self._missing(number)
        top = number.bit_length() - 1
        async with session.scratch() as channel:
            if self._exchanges < 0:
                await channel.exchange_declare(DELAYED, exchange_type="topic", durable=True)
            for level in range(self._exchanges + 1, top + 1):
                await _declare_exchange(channel, level)
            self._exchanges = max(self._exchanges, top)
            if missing:
                await self._build(session, channel, missing)
            if queue not in self._destinations:
                await channel.rpc(Bind(queue=queue, exchange=DELAYED, routing_key=f"#.{address(queue)}"))
                self._destinations.add(queue)

    async def _build(self, session: Session, channel: Channel, levels: list[int]) -> None:
        """A message finds the way into a level only when the broker would not forget it, whoever made the level."""
        for level in levels:
            await _declare_level(channel, level)
        await self._keeper.keep(session)
        for level in levels:
            await channel.rpc(Bind(queue=_name(level), exchange=_name(level), routing_key=_pattern(level, 1)))
        self._levels.update(levels)


def _pattern(level: int, bit: int) -> str:
    return "*." * (LEVELS - 1 - level) + f"{bit}.#"


def _name(level: int) -> str:
    """Of its queue and of its exchange."""
    return f"{LADDER}{level}"


def _below(level: int) -> str:
    return _name(level - 1) if level else DELAYED


async def _declare_exchange(channel: Channel, level: int) -> None:
    await channel.exchange_declare(_name(level), exchange_type="topic", durable=True)
    await channel.exchange_bind(destination=_below(level), source=_name(level), routing_key=_pattern(level, 0))


async def _declare_level(channel: Channel, level: int) -> None:
    arguments: dict[str, FieldValue] = {
        "x-queue-type": "quorum",
        "x-message-ttl": round(TICK * 1000) << level,
        "x-dead-letter-exchange": _below(level),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    await channel.rpc(Declare(queue=_name(level), durable=True, arguments=arguments))
