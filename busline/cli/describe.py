"""A bus on the command line: its plan, and where it is."""

from __future__ import annotations

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.registry import Plan
from busline.transports import from_url


def plan_of(app: str, bus: Bus) -> Plan:
    """The bus's plan. Raises ConfigurationError, and Failure if there is nothing to serve."""
    plan = bus.plan()
    if not plan.queues:
        raise Failure(
            Exit.NO_HANDLER,
            f"{app} has no handlers and no subscribers: import the modules that declare them where the bus is made, "
            "or include their routers",
        )
    return plan


def where(bus: Bus) -> str:
    """The broker's address, without secrets and without connecting."""
    return from_url(bus.url).where if bus.url else "the transport that the bus was given"
