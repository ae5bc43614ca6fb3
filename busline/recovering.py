"""Ending orphans by hand, without consuming anything."""

from __future__ import annotations

from anyio import sleep

from busline.orphans import Orphans
from busline.registry import Plan
from busline.services import Services
from busline.settling import Settlement, terms_of
from busline.stores.base import Store


async def recover(store: Store, plan: Plan, services: Services) -> int:
    """End those that belong to the queues of `plan`; how many. Raises StoreUnavailable."""
    orphans = Orphans(services.clock, services.telemetry, max_deliveries=services.settings.max_deliveries)
    for name, queue in plan.queues.items():
        orphans.queues[name] = Settlement(queue, terms_of(queue, services), services, sleep)
    return await orphans.recover(store)
