"""The consumers that one process has of one queue at the broker, each with a prefetch of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pamqp import commands
from pamqp.common import FieldValue

from busline.transports.amqp.wire import Consume, Delivered, Lane

Arrived = Callable[[Delivered], None]


class Subscriptions:
    """Their tags, on one channel at a time."""

    def __init__(self, queue: str, prefetch: int, arrived: Arrived) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._arrived = arrived
        self.arguments: dict[str, FieldValue] = {}
        """Of those that begin from now on."""
        self._number = 0
        self.tags: list[str] = []

    def __len__(self) -> int:
        return len(self.tags)

    async def round_trip(self, lane: Lane) -> None:
        """Whatever was asked of the channel before has been done, and how much each that begins now may fetch is
        said."""
        await lane.channel.basic_qos(prefetch_count=self._prefetch)

    async def add(self, lane: Lane) -> None:
        """One more. What the broker has against it, it says by closing the channel."""
        self._number += 1
        stem = self._queue[:200] if self._queue.isascii() else "busline"
        tag = f"{stem}/{self._number}"
        lane.subscribe(tag, self._arrived)
        self.tags.append(tag)
        consume = Consume(queue=self._queue, consumer_tag=tag, nowait=True, arguments=self.arguments)
        await lane.channel.rpc(consume)

    async def remove(self, lane: Lane, tags: Sequence[str]) -> None:
        """All in one go, and one round trip in which whatever was on its way to them arrives."""
        for tag in tags:
            if tag in self.tags:
                self.tags.remove(tag)
                await lane.channel.rpc(commands.Basic.Cancel(consumer_tag=tag, nowait=True))
        if tags:
            await self.round_trip(lane)
            for tag in tags:
                lane.unsubscribe(tag)

    def taken_away(self, tag: str | None) -> None:
        """By the broker."""
        if tag in self.tags:
            self.tags.remove(tag)

    def idle_first(self, busy: Iterable[Delivered]) -> list[str]:
        """The tags, those last to which a message came that is `busy`."""
        return sorted(self.tags, key={delivered.consumer_tag for delivered in busy}.__contains__)
