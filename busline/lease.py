"""Keeps running deliveries leased, and tells whoever works on one that it was lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from busline.errors import TransportClosed, TransportError
from busline.message import Delivery
from busline.transports.base import Consumer

RENEWALS_PER_LEASE = 3
"""Two renewals may fail before a lease ends."""


class LeaseKeeper:
    """One per consumer: extends all its running deliveries together, every third of the lease.

    `on_lost` is called once for a delivery that the broker says is no longer ours.
    """

    __slots__ = ("_on_lost", "_sleep", "lease", "running")

    def __init__(
        self,
        lease: float,
        on_lost: Callable[[Delivery], None],
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        self._sleep = sleep
        self.lease = lease
        self._on_lost = on_lost
        self.running: dict[Delivery, Consumer] = {}
        """Deliveries being worked on; slots add and remove them."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._sleep(self.lease / RENEWALS_PER_LEASE)
            for consumer in set(self.running.values()):
                await self._extend(consumer)

    async def _extend(self, consumer: Consumer) -> None:
        mine = [delivery for delivery, owner in self.running.items() if owner is consumer]
        if not mine:
            return  # They ended while another consumer was asked.
        try:
            lost = await consumer.extend(*mine, lease=self.lease)
        except TransportClosed:
            lost = mine
        except TransportError:
            return  # The next turn tries again; a lease that ends meanwhile is reported as lost then.
        for delivery in lost:
            if self.running.pop(delivery, None) is not None:
                self._on_lost(delivery)
