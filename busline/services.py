"""What handling a message takes, beside the message; shared by all queues of a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anyio import CapacityLimiter

from busline.clock import Clock
from busline.context import Verbs
from busline.events import Events
from busline.message import Delivery
from busline.registry import ErrorRegistry
from busline.structs import entity, value
from busline.telemetry import Telemetry
from busline.transports.base import Transport
from busline.wheel import Wheel

if TYPE_CHECKING:
    from busline.claims import Claims
    from busline.work import Work

Alarm = Callable[[], None]


@value
class Settings:
    """The bus's own limits, as given to its constructor."""

    max_body_bytes: int
    max_deliveries: int
    unknown_grace: float
    max_clock_skew: float
    result_ttl: float = 3600.0


@entity
class Services:
    """Made by the bus when a worker starts."""

    bus: Verbs
    transport: Transport
    clock: Clock
    errors: ErrorRegistry
    telemetry: Telemetry
    events: Events
    settings: Settings
    alarms: Wheel[Alarm]
    """Time limits."""
    notices: Wheel[Delivery]
    """Calls whose callers should be told after a while that they have been started."""
    threads: CapacityLimiter
    on_stuck: Callable[[str], None]
    """A handler cannot be ended: its process should be replaced."""
    claims: Claims | None = None
    """Of idempotency keys; None where the bus has no store."""
    on_message: Callable[[], None] | None = None
    """Told of each message that is taken."""
    before: Callable[[Work], None] | None = None
    """Called before each attempt; what it raises counts as raised by the handler. For tests."""
