"""Confirmed publishing on one channel: everything but calls and replies leaves here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from busline.errors import BuslineError, ConnectionLost, QueueFull
from busline.transports.amqp.faults import LIBRARY, translate, was_cancelled
from busline.transports.amqp.link import Link, Session
from busline.transports.amqp.wire import Header, Lane, Outcome

IN_FLIGHT = 512
"""Most messages that wait for their confirmation at once."""


class Outlet:
    """A channel of a link from which messages leave."""

    def __init__(self, link: Link, timeout: float) -> None:
        self._link = link
        self._timeout = timeout
        self._lane: Lane | None = None
        self._session: Session | None = None
        self._room = asyncio.Semaphore(IN_FLIGHT)

    async def up(self, session: Session) -> None:
        """See `Resident`."""
        self._lane = await session.lane(confirms=True)
        self._session = session

    def down(self) -> None:
        """See `Resident`."""
        self._lane = self._session = None

    @property
    def lane(self) -> Lane:
        """Of the current session. Raises ConnectionLost."""
        if self._lane is None:
            raise ConnectionLost(f"the connection to {self._link.where} has just ended")
        return self._lane

    async def close(self) -> None:
        """Close the channel."""
        lane, session = self._lane, self._session
        self.down()
        if lane is not None and session is not None:
            await session.give_up(lane.channel)

    async def put(
        self, exchange: str, key: str, body: bytes, header: Header, unroutable: Callable[[], BuslineError] | None
    ) -> bool:
        """Publish one message and wait until the broker has it.

        `unroutable` makes the error for a message that leads nowhere; None: that is fine, and False is returned.
        Raises QueueFull if a queue takes no more (its text knows the routing key only), ConnectionLost if the message
        was not sent, OutcomeUnknown if it may have been.
        """
        handed_over = False
        try:
            async with self._room:
                lane = self._lane
                if lane is None or lane.is_full or (self._session is not None and self._session.blocked is not None):
                    lane = await self._ready()
                confirmation = lane.publish_confirmed(exchange, key, header, body, self._timeout)
                handed_over = True
                outcome = await confirmation
        except LIBRARY as error:
            if was_cancelled(error):
                raise
            raise translate(error, self._link.where, handed_over=handed_over) from error
        if outcome is Outcome.REFUSED:
            raise QueueFull(key, 0)
        if outcome is Outcome.RETURNED and unroutable is not None:
            raise unroutable()
        return outcome is Outcome.CONFIRMED

    async def _ready(self) -> Lane:
        """One from which a message can leave now. Raises ConnectionLost in time."""
        session = await self._link.session()
        why = session.blocked or "it is behind with what was sent"
        try:
            async with asyncio.timeout(self._timeout):
                await session.unblocked()
                await self.lane.room()
        except TimeoutError:
            raise ConnectionLost(f"{self._link.where} takes no messages now: {why}") from None
        return self.lane
