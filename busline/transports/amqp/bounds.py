"""How long a queue may be: kept by who sends, because a bound at the broker would harm others.

A queue with `x-max-length` refuses what the delay queues bring, and those then stand still for everybody. So the bound
stands in the register, and senders look how many messages are ready. Who knows no bound pays nothing: the topics of a
bounded queue are not bound to the exchange, so a sender gets its message back, looks into the register, and sends it
straight to the queue from then on. Of a queue that it names, a sender asks once in a while.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic

from busline.errors import ConfigurationError, QueueFull
from busline.message import Destination, ToQueue, ToTopic
from busline.transports.amqp.registry import Register

FRESH = 30.0
"""Seconds for which a sender believes what it has read."""

Bound = tuple[str, int] | None
"""A queue and how many messages may wait in it."""


class Bounds:
    """What a sender knows of the queues that it sends to."""

    def __init__(
        self,
        own: Callable[[Destination], Bound],
        read: Callable[[], Awaitable[Register]],
        count: Callable[[str], Awaitable[int]],
    ) -> None:
        self._own = own
        self._read = read
        self._count = count
        self._known: dict[Destination, tuple[float, Bound]] = {}

    async def admit(self, to: Destination, number: int) -> Destination:
        """Where so many messages are to be sent. Raises QueueFull."""
        if (bound := self._own(to)) is not None:
            return await self._into(bound, number)
        known = self._known.get(to)
        if known is not None and known[0] > monotonic():
            return to if known[1] is None else await self._into(known[1], number)
        return to if isinstance(to, ToTopic) else await self.find(to, number) or to

    async def find(self, to: Destination, number: int) -> Destination | None:
        """As `admit`, of a destination that is not known; None if it has no bound."""
        try:
            register = await self._read()
        except ConfigurationError:  # a client without the right to read it: what the broker says holds
            return None
        queue = to.queue if isinstance(to, ToQueue) else register.owner(to.topic)
        entry = register.queues.get(queue or "")
        bound = (queue, entry.max_length) if queue and entry is not None and entry.max_length else None
        self._known[to] = (monotonic() + FRESH, bound)
        return None if bound is None else await self._into(bound, number)

    async def _into(self, bound: tuple[str, int], number: int) -> Destination:
        queue, most = bound
        if await self._count(queue) + number > most:
            raise QueueFull(queue, most)
        return ToQueue(queue)
