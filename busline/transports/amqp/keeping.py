"""New quorum queues that the broker would find again if it were killed now.

RabbitMQ keeps the names of its quorum queues in a file of their own, by way of a cache that it writes about a second
after the last change. Killed before, it comes back with the queue, but not with the name under which the queue's
messages lie, and begins it empty: what it had confirmed is gone. It writes the cache at once when it looks for a name
that is not in it, and it looks for the name of every quorum queue that is declared. So one more queue, whose name
nobody has had, makes all those safe that were declared before.
"""

from __future__ import annotations

import asyncio
from secrets import token_hex

from pamqp.common import FieldValue

from busline.transports.amqp.link import Session
from busline.transports.amqp.properties import LADDER
from busline.transports.amqp.wire import Declare, Delete

NAMES = f"{LADDER}kept."
"""How the names of such queues begin: whoever declares queues or sends with a delay has the right to these, too."""
EXPIRES = 60.0
"""Seconds after which the broker drops one that we could not delete."""


class Keeper:
    """Those who ask while another is served are served together."""

    def __init__(self) -> None:
        self._asked = 0
        self._kept = 0
        self._alone = asyncio.Lock()

    async def keep(self, session: Session) -> None:
        """Until each quorum queue declared before is safe."""
        self._asked += 1
        number = self._asked
        async with self._alone:
            if self._kept < number:
                number = self._asked
                await _come_and_go(session)
                self._kept = number


async def _come_and_go(session: Session) -> None:
    name = NAMES + token_hex(16)
    arguments: dict[str, FieldValue] = {"x-queue-type": "quorum", "x-expires": round(EXPIRES * 1000)}
    async with session.scratch(patient=False) as channel:
        await channel.rpc(Declare(queue=name, durable=True, arguments=arguments))
        await channel.rpc(Delete(queue=name))
