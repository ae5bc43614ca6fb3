"""Messages ready to leave, and the outbox in which a handler's wait until it has succeeded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from anyio import CancelScope, move_on_after

from busline.errors import StoreUnavailable
from busline.jobs import Job, Tracking, hand_over
from busline.message import Destination, Message
from busline.parcels import Parcel, pack
from busline.structs import struct
from busline.telemetry import log
from busline.transports.base import Transport
from busline.wire import decode_envelope

DROPPING = 5.0
"""Seconds that forgetting a job may take whose message could not be sent."""


@struct
class Departure:
    """One message, validated and encoded, and where it goes; `to` is None for an event."""

    message: Message
    to: Destination | None
    job: Job
    fallback: str | None = None
    """The queue that takes it if nobody owns its topic."""
    on_left: Callable[[BaseException | None], None] | None = None
    """Told that the broker has it, or why not."""
    tracking: Tracking | None = None
    """How it is tracked as a job; None where it is not."""

    def leave(self, transport: Transport) -> Awaitable[object]:
        """Hand it to the broker, when awaited. Raises as `Transport.send`. Each coroutine that is around that one would
        cost a message more than its envelope does."""
        leaving = hand_over if self.tracking is None else partial(self._hand_over, self.tracking)
        handed = leaving(transport, self.message, self.to, self.fallback)
        return handed if self.on_left is None else _told(handed, self.on_left)

    async def _hand_over(
        self, tracking: Tracking, transport: Transport, message: Message, to: Destination | None, fallback: str | None
    ) -> None:
        if not await self._track(tracking):
            return
        try:
            await hand_over(transport, message, to, fallback)
        except BaseException:
            await self._forget()
            raise

    async def _track(self, tracking: Tracking) -> bool:
        """False if it is not to be sent, because its `unique` belongs to another job, which `job` now is."""
        sent_at = decode_envelope(self.message, 0.0).sent_at
        kept = await self.job.tracked(sent_at, self.parcel(), tracking)
        unsent, self.job.id = self.job.id, kept.id
        return kept.id == unsent

    async def _forget(self) -> None:
        """So that nobody waits for a job that never was, and its `unique` is free."""
        with CancelScope(shield=True), move_on_after(DROPPING):
            try:
                await self.job.untracked()
            except StoreUnavailable as error:  # what kept the message from leaving is what its sender must know
                log.warning("job %s is still tracked: %s", self.job.id, error, extra={"event": "job_not_dropped"})

    def parcel(self) -> Parcel:
        """As it is kept in a store."""
        return Parcel(self.message, self.to, self.fallback, self.tracking.fields() if self.tracking else None)


async def _told(handed: Awaitable[object], on_left: Callable[[BaseException | None], None]) -> None:
    try:
        await handed
    except BaseException as error:
        on_left(error)
        raise
    on_left(None)


def departure_of(parcel: Parcel, job: Callable[[str], Job]) -> Departure:
    """What was kept in a store, ready to leave once more; `job` finds a job by its id."""
    tracking = Tracking(**parcel.job) if parcel.job is not None else None
    kept = job(decode_envelope(parcel.message, 0.0).id)
    return Departure(parcel.message, parcel.to, kept, parcel.fallback, tracking=tracking)


class Outbox:
    """What a handler sent and published through its context, in order; gone with the attempt if it fails."""

    __slots__ = ("_departures",)

    def __init__(self) -> None:
        self._departures: list[Departure] = []

    def add(self, departure: Departure) -> None:
        """Keep it until the handler has succeeded."""
        self._departures.append(departure)

    @property
    def departures(self) -> tuple[Departure, ...]:
        """What waits."""
        return tuple(self._departures)

    def pack(self) -> bytes:
        """All of it as bytes."""
        return pack(*(departure.parcel() for departure in self._departures))

    def __len__(self) -> int:
        return len(self._departures)

    async def flush(self, transport: Transport) -> None:
        """Let everything leave, in order. What left before an error has left: a next attempt sends it again."""
        for departure in self._departures:
            await departure.leave(transport)
        self._departures.clear()
