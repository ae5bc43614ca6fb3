"""All checks of the whole product, for whoever runs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from busline.testing import (
    checks_bus_calls,
    checks_bus_control,
    checks_bus_events,
    checks_bus_idempotency,
    checks_bus_jobs,
    checks_bus_limits,
    checks_bus_observing,
    checks_bus_semantics,
    checks_bus_tracking,
    checks_bus_workers,
)
from busline.testing.harness import Harness

BusCheck = Callable[[Harness], Awaitable[str | None]]


def all_bus_checks() -> Sequence[BusCheck]:
    """Every `check_…` of the bus modules, in the order in which they stand there."""
    modules = (
        *(checks_bus_calls, checks_bus_jobs, checks_bus_events, checks_bus_workers),
        *(checks_bus_semantics, checks_bus_limits, checks_bus_control, checks_bus_observing),
        *(checks_bus_idempotency, checks_bus_tracking),
    )
    return [value for module in modules for name, value in vars(module).items() if name.startswith("check_")]


def stored_bus_checks() -> Sequence[BusCheck]:
    """Those of them that need a store."""
    modules = (checks_bus_idempotency.__name__, checks_bus_tracking.__name__)
    return [check for check in all_bus_checks() if check.__module__ in modules]


def control_bus_checks() -> Sequence[BusCheck]:
    """Those of them that ask and direct workers."""
    return [check for check in all_bus_checks() if check.__module__ == checks_bus_control.__name__]
