"""Confirmed publishing on one channel: everything but calls and replies leaves here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.commands import Basic

from busline.errors import BuslineError, ConnectionLost, QueueFull
from busline.transports.amqp.faults import LIBRARY, translate, was_cancelled
from busline.transports.amqp.link import Link, Session

IN_FLIGHT = 512
"""Most messages that wait for their confirmation at once."""


class Outlet:
    """A channel of a link from which messages leave."""

    def __init__(self, link: Link, timeout: float) -> None:
        self._link = link
        self._timeout = timeout
        self._channel: Channel | None = None
        self._session: Session | None = None
        self._room = asyncio.Semaphore(IN_FLIGHT)

    async def up(self, session: Session) -> None:
        """See `Resident`."""
        self._channel = await session.channel(confirms=True)
        self._session = session

    def down(self) -> None:
        """See `Resident`."""
        self._channel = self._session = None

    @property
    def channel(self) -> Channel:
        """Of the current session. Raises ConnectionLost."""
        if self._channel is None:
            raise ConnectionLost(f"the connection to {self._link.where} has just ended")
        return self._channel

    async def close(self) -> None:
        """Close the channel."""
        channel, session = self._channel, self._session
        self.down()
        if channel is not None and session is not None:
            await session.give_up(channel)

    async def put(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: Basic.Properties,
        unroutable: Callable[[], BuslineError] | None,
    ) -> bool:
        """Publish one message and wait until the broker has it.

        `unroutable` makes the error for a message that leads nowhere; None: that is fine, and False is returned.
        Raises QueueFull if a queue takes no more (its text knows the routing key only), ConnectionLost if the message
        was not sent, OutcomeUnknown if it may have been.
        """
        handed_over = False
        try:
            async with self._room:
                channel = self._channel
                if channel is None or (self._session is not None and self._session.blocked is not None):
                    channel = await self._ready()
                handed_over = True
                await channel.basic_publish(
                    body,
                    exchange=exchange,
                    routing_key=key,
                    properties=properties,
                    mandatory=True,
                    timeout=self._timeout,
                    wait=False,
                )
        except PublishError:
            if unroutable is not None:
                raise unroutable() from None
            return False
        except DeliveryError:
            raise QueueFull(key, 0) from None
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            raise translate(error, self._link.where, handed_over=handed_over) from error
        return True

    async def _ready(self) -> Channel:
        """A channel from which a message can leave now. Raises ConnectionLost in time."""
        session = await self._link.session()
        if session.blocked is not None:
            why = session.blocked
            try:
                async with asyncio.timeout(self._timeout):
                    await session.unblocked()
            except TimeoutError:
                raise ConnectionLost(f"{self._link.where} takes no messages now: {why}") from None
        return self.channel
