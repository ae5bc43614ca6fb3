"""The claims of one worker: taken before a handler runs, kept while it runs, and lost with all that follows from it.

One task renews all of them. Nothing runs without a record: where the store fails, the message is given back and its
queue waits.
"""

from __future__ import annotations

from collections.abc import Iterable

from anyio import CancelScope, create_task_group

from busline import claiming, outcome
from busline.clock import sleep
from busline.errors import BuslineError, ClaimLost, ConfigurationError, StoreUnavailable
from busline.held import Held
from busline.idempotency import PLAIN, UNFINISHED_TTL, Idempotency, KeyMissing, fingerprint, key_of, scoped
from busline.jobs import NO_STORE
from busline.message import Delivery, ToQueue
from busline.orphans import Orphans
from busline.outcome import Effects, Fault, Terms
from busline.parcels import Parcel, pack
from busline.registry import Handler, Plan, QueuePlan
from busline.running import Cancellable
from busline.services import Services
from busline.stores.base import Claimed, ClaimResult, Completed, Failed, InProgress, Mismatch, Orphan, Store
from busline.storing import StoreDoor
from busline.structs import entity, value
from busline.telemetry import Telemetry
from busline.wire import Envelope, new_id
from busline.work import Work

RENEWALS_PER_LEASE = 3
"""Two renewals may fail before a lease ends."""
TRIES = 3
"""How often a claim is tried when something was in its way that we could move."""


@entity
class _Running:
    """A claim that has to be renewed, and whoever has to know if that fails."""

    held: Held
    work: Work
    slot: Cancellable


@value
class _Wanted:
    """What is claimed, and for whom."""

    delivery: Delivery
    envelope: Envelope
    options: Idempotency
    key: str
    keeps: bool
    """The broker is about to forget the message, so the claim keeps it."""

    @property
    def job(self) -> str:
        """The id under which the message may be tracked."""
        return self.envelope.id if self.envelope.key is not None and self.delivery.message.reply_to is None else ""


class Claims:
    """Made by the bus when a worker starts, if it has a store."""

    def __init__(self, door: StoreDoor, plan: Plan, services: Services, orphans: Orphans) -> None:
        self._door = door
        self._clock = services.clock
        self._telemetry: Telemetry = services.telemetry
        self._result_ttl = services.settings.result_ttl
        self._running: dict[Held, _Running] = {}
        self._pause, self._longest = claiming.TROUBLE
        self.orphans = orphans
        self._tick = min((each.lease for each in _declared(plan)), default=PLAIN.lease) / RENEWALS_PER_LEASE

    # -- before the handler -------------------------------------------------------------------------------------

    async def begin(self, work: Work, slot: Cancellable, terms: Terms) -> Effects | None:
        """Claim the message's key for `work`; None if it may run, else what to do instead."""
        handler, body = work.handler, work.delivery.message.body
        try:
            key = key_of(
                handler.idempotency, work.envelope, body, lambda: handler.binding.payload_arguments(work.payload)
            )
        except KeyMissing as error:
            fault = Fault("invalid", "busline.invalid", str(error), {})
            effects = outcome.final(work.delivery, work.envelope, fault, terms, now=self._clock.time())
            return await self.unrun(effects, work.delivery, work.envelope, None, terms)
        wanted = self._wanted(work.delivery, work.envelope, handler, key)
        found = await self._claim(wanted)
        if not isinstance(found, Held):
            return await self._instead(wanted, found, terms)
        work.held = found
        if found.claim.cancel_requested:
            self._telemetry.cancelled(work.delivery, work.envelope)
            return claiming.cancelled(work.delivery)
        self._running[found] = _Running(found, work, slot)
        return None

    async def unrun(
        self, effects: Effects, delivery: Delivery, envelope: Envelope, handler: Handler | None, terms: Terms
    ) -> Effects:
        """A message with a key never runs, for `effects`: its job has failed, unless the key was done meanwhile."""
        try:
            key = key_of(handler.idempotency if handler else None, envelope, delivery.message.body, dict)
        except KeyMissing:
            key = envelope.key or envelope.id
        wanted = self._wanted(delivery, envelope, handler, key)
        found = await self._claim(wanted)
        if not isinstance(found, Held):
            return await self._instead(wanted, found, terms)
        await self._record(found, claiming.error_of(effects, None, envelope))
        return effects

    def _wanted(self, delivery: Delivery, envelope: Envelope, handler: Handler | None, key: str) -> _Wanted:
        options = (handler.idempotency if handler else None) or PLAIN
        full = scoped(delivery.queue, delivery.message.topic, key)
        return _Wanted(delivery, envelope, options, full, handler is not None and handler.options.ack == "early")

    async def _claim(self, wanted: _Wanted) -> Held | ClaimResult | StoreUnavailable:
        since = self._clock.time()
        found: ClaimResult | None = None
        try:
            store = await self._door.open()
            with CancelScope(shield=True):  # a claim that is taken and not known of would be in everybody's way
                found = await self._find(store, wanted)
        except StoreUnavailable as error:
            return error
        assert found is not None, "a shielded scope is left only with its result"
        self._pause = claiming.TROUBLE[0]
        if not isinstance(found, Claimed):
            return found
        return Held(store, found, self._clock, lease=wanted.options.lease, ttl=self._ttl(wanted), since=since)

    def _ttl(self, wanted: _Wanted) -> float:
        """A job that is only tracked needs its result for a while; a key has to be remembered for longer."""
        tracked_only = wanted.options is PLAIN and not wanted.envelope.key
        return self._result_ttl if tracked_only else wanted.options.ttl

    async def _find(self, store: Store, wanted: _Wanted) -> ClaimResult:
        """Claim, after moving out of the way what can be moved."""
        replaces = ""
        found = await self._ask(store, wanted, replaces)
        for _ in range(TRIES):
            if isinstance(found, Orphan):
                if self.orphans.is_earlier_attempt(found, wanted.envelope):
                    replaces = found.message_id
                else:
                    await self.orphans.end(store, found)
            elif claiming.reopens(found, wanted.envelope):
                await store.reopen(wanted.key)
            else:
                break
            found = await self._ask(store, wanted, replaces)
        return found

    async def _ask(self, store: Store, wanted: _Wanted, replaces: str) -> ClaimResult:
        message = wanted.delivery.message
        kept = pack(Parcel(message, ToQueue(wanted.delivery.queue))) if wanted.keeps else b""
        return await store.claim(
            wanted.key,
            fingerprint(message.topic, message.body),
            lease=wanted.options.lease,
            ttl=max(wanted.options.ttl, UNFINISHED_TTL),
            job=wanted.job,
            message_id=new_id() if kept else "",
            message=kept,
            replaces=replaces,
        )

    async def _instead(self, wanted: _Wanted, found: ClaimResult | StoreUnavailable, terms: Terms) -> Effects:
        delivery, envelope = wanted.delivery, wanted.envelope
        if isinstance(found, StoreUnavailable):
            self._telemetry.store_failed(self._door.store.where, found)
            pause, self._pause = self._pause, min(self._longest, self._pause * 2)
            return claiming.store_failed(pause)
        if isinstance(found, InProgress | Orphan):
            self._telemetry.already_claimed(delivery, envelope, wanted.key)
        elif isinstance(found, Completed | Failed):
            how = "done" if isinstance(found, Completed) else "failed or cancelled"
            self._telemetry.repeated(delivery, envelope, wanted.key, how)
        keyed = claiming.Keyed(delivery, envelope, wanted.key, wanted.options.on_conflict)
        effects = claiming.instead(keyed, found, terms, now=self._clock.time())
        if isinstance(found, Mismatch):
            await self._fail_alone(wanted, effects)
        return effects

    async def _fail_alone(self, wanted: _Wanted, effects: Effects) -> None:
        """Its key belongs to another payload, so its job fails under a key of its own."""
        if not wanted.job:
            return
        alone = scoped(wanted.delivery.queue, wanted.delivery.message.topic, f"{wanted.envelope.id}/mismatch")
        options = Idempotency(ttl=self._result_ttl)
        found = await self._claim(_Wanted(wanted.delivery, wanted.envelope, options, alone, keeps=False))
        if isinstance(found, Held):
            await self._record(found, claiming.error_of(effects, None, wanted.envelope))

    async def _record(self, held: Held, error: bytes) -> None:
        try:
            await held.fail(error)
        except (StoreUnavailable, ClaimLost) as trouble:  # the message's own end matters more than what is told of it
            self._telemetry.store_failed(self._door.store.where, trouble)

    # -- while it runs ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the claims, and look for orphans, until cancelled."""
        async with create_task_group() as side:
            side.start_soon(self.orphans.run, self._door, name="busline orphans")
            while True:
                await sleep(self._clock, self._tick)
                async with create_task_group() as renewals:
                    for running in self._due():
                        renewals.start_soon(self._renew, running, name="busline renewal")

    def _due(self) -> list[_Running]:
        # A renewal that comes a little early is cheaper than one that comes after the lease has ended.
        now = self._clock.time() + self._tick / 2
        return [
            each
            for held, each in self._running.items()
            if now >= held.until - held.lease * (1 - 1 / RENEWALS_PER_LEASE)
        ]

    async def _renew(self, running: _Running) -> None:
        held, since = running.held, self._clock.time()
        try:
            cancelled = await held.store.extend(held.claim, lease=held.lease)
        except ClaimLost:
            self._lose(running)
        except BuslineError:  # the next turn tries again, until the claim may have been taken over
            if self._clock.time() >= held.until:
                self._lose(running)
        else:
            held.until = since + held.lease
            if cancelled and not running.work.over:
                running.slot.cancel("cancelled")

    def _lose(self, running: _Running) -> None:
        if self._running.pop(running.held, None) is None:
            return  # it ended while the store was asked
        running.held.lost = True
        self._telemetry.claim_lost(running.work.delivery, running.held.claim.key)
        if not running.work.over:
            running.slot.cancel("claim_lost")

    # -- afterwards ---------------------------------------------------------------------------------------------

    async def end(self, held: Held) -> None:
        """The message has been settled, or could not be: the claim is not renewed any more."""
        self._running.pop(held, None)
        await held.undo()


def _handlers(queue: QueuePlan) -> Iterable[Handler]:
    return queue.handlers.values() if queue.subscriber is None else (queue.subscriber,)


def _declared(plan: Plan) -> Iterable[Idempotency]:
    for queue in plan.queues.values():
        for handler in _handlers(queue):
            yield handler.idempotency or PLAIN


async def claims_of(door: StoreDoor | None, plan: Plan, services: Services) -> Claims | None:
    """The claims of a worker that serves `plan`, with the store open if it is known to be needed; None without a store.

    Raises ConfigurationError if a handler needs one and there is none, or it cannot be used; StoreUnavailable.
    """
    handlers = [handler for queue in plan.queues.values() for handler in _handlers(queue)]
    wanting = [handler.declaration for handler in handlers if handler.idempotency is not None]
    if door is None:
        if wanting:
            raise ConfigurationError(f"idempotency= of {wanting[0].name} ({wanting[0].topic}) {NO_STORE}")
        return None
    if wanting or door.asked_for or any(handler.options.ack == "early" for handler in handlers):
        await door.open()
    orphans = Orphans(services.clock, services.telemetry, max_deliveries=services.settings.max_deliveries)
    return Claims(door, plan, services, orphans)
