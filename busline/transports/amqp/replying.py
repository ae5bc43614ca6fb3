"""Replies leave on a channel without confirmations: they are at most once, and nobody waits for the broker's word."""

from __future__ import annotations

from aiormq.channel import Channel
from pamqp.commands import Basic

from busline.errors import BuslineError, ConnectionLost
from busline.transports.amqp.faults import LIBRARY, translate, was_cancelled
from busline.transports.amqp.link import Link, Session


class ReplyOutlet:
    """Lives on the link that publishes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: Channel | None = None

    async def up(self, session: Session) -> None:
        """See `Resident`."""
        self._channel = await session.channel()

    def down(self) -> None:
        """See `Resident`."""
        self._channel = None

    async def put(self, address: str, body: bytes, properties: Basic.Properties) -> bool:
        """Returns once it has left the process, so that the ack which follows cannot overtake it by a crash.

        Not mandatory: before RabbitMQ 4.2 a delivered reply is returned as unroutable all the same.
        """
        channel = self._channel
        try:
            if channel is None:
                await self._link.session()
                channel = self._channel
                if channel is None:
                    raise ConnectionLost(f"the connection to {self._link.where} has just ended")
            await channel.basic_publish(body, routing_key=address, properties=properties)
        except BuslineError:
            raise
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            raise translate(error, self._link.where) from error
        return True
