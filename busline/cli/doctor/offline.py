"""What can be found without a broker: in the declarations alone."""

from __future__ import annotations

from collections.abc import Iterator

from busline.bus import Bus
from busline.cli.doctor.findings import Finding, finding
from busline.errors import ConfigurationError
from busline.registry import Declaration, Handler, Plan


def examine(bus: Bus) -> tuple[Plan, list[Finding]]:
    """The plan of all that can be served, and what is wrong with the rest: one refusal does not hide the others."""
    found: list[Finding] = []
    plan = bus.plan_of(())
    for declaration in bus.declarations:
        try:
            plan.add(declaration)
        except ConfigurationError as error:
            code = "two_owners" if _is_claimed(plan, declaration) else "cannot_serve"
            found.append(finding(code, f"{declaration.name} ({declaration.topic})", str(error)))
    found += _memory(bus)
    found += _store(bus, plan)
    return plan, found


def _is_claimed(plan: Plan, declaration: Declaration) -> bool:
    return not declaration.subscriber and any(declaration.topic in queue.handlers for queue in plan.queues.values())


def _store(bus: Bus, plan: Plan) -> Iterator[Finding]:
    names = [handler.declaration.name for handler in needing_store(plan)]
    try:
        if names and bus.store_door() is None:
            yield finding("no_store", ", ".join(names), "idempotency= keeps its keys in a store, and the bus has none")
    except ConfigurationError as error:
        yield finding("broker_refused", "broker", str(error))


def needing_store(plan: Plan) -> list[Handler]:
    """The handlers with idempotency=."""
    found = []
    for queue in plan.queues.values():
        handlers = [queue.subscriber] if queue.subscriber is not None else queue.handlers.values()
        found += [handler for handler in handlers if handler.idempotency is not None]
    return found


def _memory(bus: Bus) -> Iterator[Finding]:
    if bus.url.startswith("memory:"):
        yield finding("memory_broker", bus.url, f"{bus.url} is only within one process, and forgets what waits there")
