"""Replies leave on a channel without confirmations: they are at most once, and nobody waits for the broker's word."""

from __future__ import annotations

from busline.errors import BuslineError, ConnectionLost
from busline.transports.amqp.faults import LIBRARY, translate, was_cancelled
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.wire import Header, Lane


class ReplyOutlet:
    """Lives on the link that publishes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lane: Lane | None = None

    async def up(self, session: Session) -> None:
        """See `Resident`."""
        self._lane = await session.lane()

    def down(self) -> None:
        """See `Resident`."""
        self._lane = None

    async def put(self, address: str, body: bytes, header: Header) -> bool:
        """It leaves the process before the ack which follows does, so that a crash cannot part them the wrong way.

        Not mandatory: before RabbitMQ 4.2 a delivered reply is returned as unroutable all the same.
        """
        try:
            (await self._ready()).publish("", address, header, body)
        except BuslineError:
            raise
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            raise translate(error, self._link.where) from error
        return True

    async def _ready(self) -> Lane:
        if self._lane is None:
            await self._link.session()
        lane = self._lane
        if lane is None:
            raise ConnectionLost(f"the connection to {self._link.where} has just ended")
        if lane.is_full:
            await lane.room()
        return lane
