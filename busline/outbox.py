"""Messages ready to leave, and the outbox in which a handler's wait until it has succeeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from busline.errors import NoHandler
from busline.message import Destination, Job, Message, ToQueue
from busline.transports.base import Transport


@dataclass(slots=True)
class Departure:
    """One message, validated and encoded, and where it goes; `to` is None for an event."""

    message: Message
    to: Destination | None
    job: Job
    fallback: str | None = None
    """The queue that takes it if nobody owns its topic."""
    on_left: Callable[[BaseException | None], None] | None = None
    """Told that the broker has it, or why not."""

    async def leave(self, transport: Transport) -> None:
        """Hand it to the broker. Raises as `Transport.send`."""
        if self.on_left is None:
            await self._hand_over(transport)
            return
        try:
            await self._hand_over(transport)
        except BaseException as error:
            self.on_left(error)
            raise
        self.on_left(None)

    async def _hand_over(self, transport: Transport) -> None:
        if self.to is None:
            await transport.publish(self.message.topic, self.message)
            return
        try:
            await transport.send(self.to, self.message)
        except NoHandler:
            if self.fallback is None or isinstance(self.to, ToQueue):
                raise
            await transport.send(ToQueue(self.fallback), self.message)


class Outbox:
    """What a handler sent and published through its context, in order; gone with the attempt if it fails."""

    __slots__ = ("_departures",)

    def __init__(self) -> None:
        self._departures: list[Departure] = []

    def add(self, departure: Departure) -> None:
        """Keep it until the handler has succeeded."""
        self._departures.append(departure)

    def __len__(self) -> int:
        return len(self._departures)

    async def flush(self, transport: Transport) -> None:
        """Let everything leave, in order. What left before an error has left: a next attempt sends it again."""
        for departure in self._departures:
            await departure.leave(transport)
        self._departures.clear()
