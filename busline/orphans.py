"""Messages that were acked early and whose worker has died. Only their claims still have them; every worker looks for
those of its own queues, and of all that find one, one ends it.

Ending it keeps the message under a new name first, so that whoever else had found it is told that there is nothing to
replace any more; then what becomes of it is done, and then the claim lets go. A crash in between leaves an orphan.
"""

from __future__ import annotations

import random
from typing import Protocol

import anyio

from busline import claiming
from busline.clock import Clock
from busline.errors import BuslineError, CodecError
from busline.held import Held
from busline.idempotency import PLAIN, UNFINISHED_TTL, Idempotency, scope_of
from busline.message import Delivery, ToQueue
from busline.outcome import ACK, Effects, LetGo, Resend, Terms, later
from busline.parcels import unpack
from busline.registry import QueuePlan
from busline.stores.base import Claimed, Orphan, Store
from busline.storing import StoreDoor
from busline.telemetry import Telemetry, log
from busline.wire import Envelope, decode_envelope, new_id

PERIOD = 2.0
"""Seconds between looks, give or take a half, so that workers do not all look at once."""
SWEEP_PERIOD = 60.0
LIMIT = 1000
"""Most orphans, and most expired records, that one look deals with."""
LEASE = 10.0
"""Seconds for ending one."""


class Settles(Protocol):
    """What ending an orphan needs of whoever settles the messages of its queue."""

    @property
    def plan(self) -> QueuePlan: ...
    @property
    def terms(self) -> Terms: ...
    async def settle_orphan(self, effects: Effects, delivery: Delivery, envelope: Envelope, held: Held) -> None: ...


class Orphans:
    """Those of one worker's queues."""

    def __init__(self, clock: Clock, telemetry: Telemetry, *, max_deliveries: int) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._max_deliveries = max_deliveries
        self.queues: dict[str, Settles] = {}
        """By name."""

    def is_earlier_attempt(self, orphan: Orphan, envelope: Envelope) -> bool:
        """Its worker died between sending this next attempt and letting go of the claim."""
        kept = self._read(orphan)
        return kept is not None and kept[1].id == envelope.id and kept[1].attempt < envelope.attempt

    def _read(self, orphan: Orphan) -> tuple[Delivery, Envelope] | None:
        """What its claim keeps: the message, as it was delivered."""
        try:
            [parcel] = unpack(orphan.message)
            envelope = decode_envelope(parcel.message, self._clock.time())
        except (CodecError, ValueError) as error:
            log.error("an orphan cannot be read: %s", error, extra={"event": "orphan_unreadable", "key": orphan.key})
            return None
        queue = parcel.to.queue if isinstance(parcel.to, ToQueue) else ""
        return Delivery(parcel.message, queue, None), envelope

    async def run(self, door: StoreDoor) -> None:
        """Look again and again, once the store is open, until cancelled."""
        sweep_at = self._clock.time() + SWEEP_PERIOD
        while True:
            await anyio.sleep(PERIOD * random.uniform(0.5, 1.5))
            if not door.is_open:
                continue
            try:
                await self.recover(door.store)
                if self._clock.time() >= sweep_at:
                    sweep_at = self._clock.time() + SWEEP_PERIOD
                    await door.store.sweep(LIMIT)
            except BuslineError as error:  # the next look is the next attempt
                log.warning("looking for orphans failed: %s", error, extra={"event": "orphans_failed"})

    async def recover(self, store: Store) -> int:
        """End those of our queues that there are now; how many."""
        ended = 0
        for orphan in await store.orphans(LIMIT, scopes=[scope_of(queue) for queue in self.queues]):
            ended += await self.end(store, orphan)
        return ended

    async def end(self, store: Store, orphan: Orphan) -> bool:
        """End this one, if it is of one of our queues and nobody else has."""
        kept = self._read(orphan)
        queue = self.queues.get(kept[0].queue) if kept is not None else None
        if kept is None or queue is None:
            return False
        delivery, envelope = kept
        since = self._clock.time()
        claim = await store.claim(
            orphan.key,
            orphan.fingerprint,
            lease=LEASE,
            ttl=UNFINISHED_TTL,
            message_id=new_id(),
            message=orphan.message,
            replaces=orphan.message_id,
        )
        if not isinstance(claim, Claimed):
            return False
        options = self._options(queue, delivery)
        held = Held(store, claim, self._clock, lease=LEASE, ttl=options.ttl, since=since)
        effects = self._effects(queue, options, delivery, envelope, claim)
        self._telemetry.orphaned(delivery, envelope, again=type(effects[0]) is Resend)
        await queue.settle_orphan(effects, delivery, envelope, held)
        return True

    def _options(self, queue: Settles, delivery: Delivery) -> Idempotency:
        handler = queue.plan.find(delivery.message.topic)
        return (handler.idempotency if handler is not None else None) or PLAIN

    def _effects(
        self, queue: Settles, options: Idempotency, delivery: Delivery, envelope: Envelope, claim: Claimed
    ) -> Effects:
        now = self._clock.time()
        if claim.cancel_requested:
            return tuple(effect for effect in claiming.cancelled(delivery) if effect is not ACK)
        # The claim that ends it counts, too: what kills its worker again and again has an end.
        if options.orphans == "resend" and claim.attempt // 2 < self._max_deliveries:
            return (Resend(later(delivery, envelope, delay=0.0, now=now)), LetGo())
        return claiming.orphaned(delivery, envelope, queue.terms, now=now)
