"""Jobs as their senders see them: what became of a message that was sent, how far it is, and its cancelling."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import replace
from math import inf
from typing import Any, Literal, Protocol, TypeVar, overload

from busline.clock import Clock
from busline.codec import decode, decode_as, encode
from busline.errors import (
    CodecError,
    ConfigurationError,
    JobCancelled,
    JobNotFound,
    JobTimeout,
    NoHandler,
)
from busline.idempotency import UNFINISHED_TTL, fingerprint, scoped
from busline.message import Destination, Message, ToQueue
from busline.parcels import Parcel, pack, unpack
from busline.routes import check_seconds
from busline.stores.base import ClaimRecord, JobRecord, Store
from busline.structs import frozen
from busline.topics import RESERVED
from busline.transports.base import Transport
from busline.wire import decode_envelope

T = TypeVar("T")

JobState = Literal["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "CANCELLED"]
"""Waits in its queue; a worker has it; waits for its next attempt; the last three are the end of it."""
ENDED: frozenset[JobState] = frozenset({"SUCCESS", "FAILURE", "CANCELLED"})
LONGEST_WAIT = 30.0
"""Seconds after which a job is looked at although the store told of no change."""
NO_STORE = (
    "needs a store, and this bus has none: give it Bus(store='redis://localhost/0') or set $BUSLINE_STORE "
    "(sqlite:// and memory:// buses have one of their own)"
)


class Door(Protocol):
    """Where an open store is had."""

    async def open(self) -> Store: ...


@frozen()
class Progress:
    """What a handler said of how far it is."""

    current: float
    total: float | None = None
    note: str = ""
    at: float = 0.0
    """When it said so, seconds since the epoch."""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None where no total is known."""
        return min(1.0, self.current / self.total) if self.total else None

    def encode(self) -> bytes:
        """As the store keeps it."""
        return encode({"current": self.current, "total": self.total, "note": self.note, "at": self.at})

    @classmethod
    def decode(cls, kept: bytes) -> Progress | None:
        """What the store kept; None where nothing was said yet. Raises CodecError."""
        if not kept:
            return None
        try:
            return cls(**decode(kept))
        except TypeError as error:
            raise CodecError(f"what the store kept is no progress: {error}") from error


@frozen()
class JobInfo:
    """All that is known of a job at one moment."""

    id: str
    topic: str
    state: JobState
    sent_at: float
    """Seconds since the epoch."""
    attempts: int
    """Claims of its key so far."""
    progress: Progress | None
    key: str
    """Its idempotency key as the store knows it; "" while no worker has begun with it."""
    result: bytes = b""
    """JSON; of a job that succeeded."""
    error: bytes = b""
    """JSON, with type, message and details; of one that failed."""

    @property
    def ended(self) -> bool:
        """Nothing more comes of it, unless it is retried."""
        return self.state in ENDED


@frozen()
class Tracking:
    """How a message is tracked as a job. Times are seconds."""

    ttl: float
    unique: str = ""
    unique_for: float = 0.0

    def fields(self) -> dict[str, Any]:
        """As plain data."""
        return {"ttl": self.ttl, "unique": self.unique, "unique_for": self.unique_for}


def tracking_of(message: Message, unique_for: float | None, unique_key: str | None) -> Tracking:
    """How a message is tracked that is about to be sent. Raises ConfigurationError."""
    ttl = UNFINISHED_TTL + message.delay + (message.ttl or 0.0)
    if unique_for is None:
        if unique_key is not None:
            raise ConfigurationError("unique_key= says what is unique; unique_for= says for how many seconds")
        return Tracking(ttl)
    said = unique_key if unique_key is not None else fingerprint(message.topic, message.body)
    return Tracking(ttl, scoped("", message.topic, said), check_seconds("unique_for", unique_for))


def state_of(job: JobRecord, claim: ClaimRecord | None) -> JobState | None:
    """The state that follows from the two; None where the result has expired."""
    if not job.claim:
        return "CANCELLED" if job.cancel_requested else "PENDING"
    if claim is None:
        return None
    match claim.state:
        case "PROCESSING":
            return "STARTED"
        case "COMPLETED":
            return "SUCCESS"
        case "FAILED":
            return "FAILURE"
        case "CANCELLED":
            return "CANCELLED"
        case "PENDING":  # the next worker that gets its message sees the wish, and doesn't run it
            return "CANCELLED" if job.cancel_requested else "RETRY" if claim.attempt else "PENDING"


def info_of(job: JobRecord, claim: ClaimRecord | None) -> JobInfo | None:
    """The two as one; None where the result has expired."""
    state = state_of(job, claim)
    if state is None:
        return None
    attempts, result, error = (claim.attempt, claim.result, claim.error) if claim else (0, b"", b"")
    progress = Progress.decode(job.progress)
    return JobInfo(job.id, job.topic, state, job.sent_at, attempts, progress, job.claim, result, error)


def hand_over(
    transport: Transport, message: Message, to: Destination | None, fallback: str | None
) -> Awaitable[object]:
    """Hand a message to the broker: an event (`to` is None) or a job, which `fallback` takes if nobody owns it."""
    if to is None:
        return transport.publish(message.topic, message)
    if fallback is None or isinstance(to, ToQueue):
        return transport.send(to, message)
    return _hand_over_somewhere(transport, message, to, fallback)


async def _hand_over_somewhere(transport: Transport, message: Message, to: Destination, fallback: str) -> None:
    try:
        await transport.send(to, message)
    except NoHandler:
        await transport.send(ToQueue(fallback), message)


class Jobs:
    """The jobs that one open bus can see. `error_of` makes an error of what the store kept, and a topic."""

    def __init__(
        self, door: Door | None, transport: Transport, error_of: Callable[[bytes, str], Exception], clock: Clock
    ) -> None:
        self._door = door
        self._transport = transport
        self._error_of = error_of
        self.now = clock.time

    def tracks(self, wanted: bool) -> bool:
        """Jobs can be tracked here. Raises ConfigurationError where they cannot and somebody wants it."""
        if self._door is None and wanted:
            raise ConfigurationError(f"track= or unique_for= {NO_STORE}")
        return self._door is not None

    async def store(self, what: str) -> Store:
        """The open store. Raises ConfigurationError where there is none, for `what`."""
        if self._door is None:
            raise ConfigurationError(f"{what} {NO_STORE}")
        return await self._door.open()

    async def add(self, id: str, sent_at: float, parcel: Parcel, tracking: Tracking) -> JobRecord:
        """Track the message that is about to leave, or the job that holds its `unique` already."""
        store = await self.store("a tracked job")
        record = JobRecord(id, parcel.message.topic, sent_at, pack(parcel))
        return await store.add_job(record, ttl=tracking.ttl, unique=tracking.unique, unique_for=tracking.unique_for)

    async def drop(self, id: str) -> None:
        """Its message could not be sent."""
        await (await self.store("a tracked job")).drop_job(id)

    async def read(self, id: str) -> tuple[JobRecord, ClaimRecord | None]:
        """What the store has. Raises JobNotFound."""
        store = await self.store("asking for a job")
        job = await store.job(id)
        if job is None:
            raise JobNotFound(id)
        return job, (await store.read(job.claim) if job.claim else None)

    async def list(self, limit: int = 50, *, topic: str = "") -> list[JobInfo]:
        """Up to `limit`, latest sent first; those whose result has expired are left out."""
        store = await self.store("listing jobs")
        found = [
            info_of(job, await store.read(job.claim) if job.claim else None)
            for job in await store.jobs(limit, topic=topic)
            if not job.topic.startswith(RESERVED)
        ]
        return [info for info in found if info is not None]

    async def send_again(self, job: JobRecord) -> None:
        """As it was sent first: a first attempt, at once, with the same id and key."""
        [parcel] = unpack(job.message)
        now = self.now()
        envelope = replace(decode_envelope(parcel.message, now), attempt=1, due_at=now, expires_at=None)
        message = replace(parcel.message, meta=envelope.encode(), delay=0.0, ttl=None)
        await hand_over(self._transport, message, parcel.to, parcel.fallback)

    def result_of(self, info: JobInfo, returns: Any) -> Any:
        """The result of a job that has ended; raises what its handler raised, or JobCancelled."""
        if info.state == "CANCELLED":
            raise JobCancelled(info.id)
        if info.state == "FAILURE":
            raise self._error_of(info.error, info.topic)
        return decode(info.result) if returns is None else decode_as(returns, info.result)


class Job:
    """A message that was sent and that nobody waits for.

    `id` and `topic` are there always; everything else needs a store, and a message that was sent with `track=True`,
    an idempotency key or `unique_for`. Methods raise ConfigurationError where the bus has no store, JobNotFound for a
    job that was not tracked or is remembered no more, and StoreUnavailable.
    """

    __slots__ = ("_jobs", "id", "topic")

    def __init__(self, id: str, topic: str, jobs: Jobs) -> None:
        self.id = id
        """The message's id."""
        self.topic = topic
        """Where it was sent; "" for a job that was found by its id."""
        self._jobs = jobs

    def __repr__(self) -> str:
        return f"Job({self.id!r}, {self.topic!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def tracked(self, sent_at: float, parcel: Parcel, tracking: Tracking) -> JobRecord:
        """For whoever sends it: track it, or find who holds its `unique`."""
        return await self._jobs.add(self.id, sent_at, parcel, tracking)

    async def untracked(self) -> None:
        """For whoever could not send it: forget it."""
        await self._jobs.drop(self.id)

    async def info(self) -> JobInfo:
        """All that is known of it now."""
        info = info_of(*await self._jobs.read(self.id))
        if info is None:
            raise JobNotFound(self.id)
        return info

    async def status(self) -> JobState:
        """PENDING, STARTED, RETRY, SUCCESS, FAILURE or CANCELLED."""
        return (await self.info()).state

    @overload
    async def result(self, timeout: float | None = None, *, returns: type[T]) -> T: ...
    @overload
    async def result(self, timeout: float | None = None, *, returns: None = None) -> Any: ...
    async def result(self, timeout: float | None = None, *, returns: Any = None) -> Any:
        """Wait until it has ended, at most `timeout` seconds (None: as long as it takes), and return what its handler
        returned: plain JSON data, or of the type `returns`. Raises JobTimeout, JobCancelled, and the handler's error
        as `Bus.call` does: RemoteError, or the registered class itself."""
        async for info in self._watch(timeout):
            if info is None:
                raise JobTimeout(self.id, timeout or 0.0)
            if info.ended:
                return self._jobs.result_of(info, returns)
        raise JobNotFound(self.id)

    async def watch(self) -> AsyncIterator[JobInfo]:
        """How it is now, and then each change, until it has ended; the end is the last that comes."""
        async for info in self._watch(None):
            if info is not None:
                yield info

    async def _watch(self, timeout: float | None) -> AsyncIterator[JobInfo | None]:
        """As `watch`; None when the time is over."""
        store = await self._jobs.store("watching a job")
        end, last = inf if timeout is None else self._jobs.now() + timeout, None
        while True:
            job, claim = await self._jobs.read(self.id)
            info = info_of(job, claim)
            if info is None:
                raise JobNotFound(self.id)
            if info != last:
                yield info
                last = info
            if info.ended:
                return
            left = end - self._jobs.now()
            if left <= 0:
                yield None
                return
            await store.changed(job, claim, min(left, LONGEST_WAIT))

    def progress(self) -> Watching:
        """`await job.progress()` is what its handler said last, or None; `async for each in job.progress()` also
        waits for each time that it says more, until the job has ended."""
        return Watching(self)

    async def cancel(self) -> bool:
        """Ask for it to be cancelled. What waits in its queue will not run; what runs is cancelled in its worker, an
        async handler where it awaits, at its worker's next sign of life (a third of its claim's lease). False if it
        had ended already."""
        if (await self.info()).ended:
            return False
        store = await self._jobs.store("cancelling a job")
        return await store.request_cancel(self.id) is not None

    async def retry(self) -> None:
        """Send it again, under the same id and key, after it has failed or was cancelled. Raises ConfigurationError
        for a job that has not, and what sending raises."""
        job, claim = await self._jobs.read(self.id)
        state = state_of(job, claim)
        # PENDING without an attempt: a retry before this one has opened the key, and could not send the message.
        opened = claim is not None and claim.state == "PENDING" and not claim.attempt
        if claim is None or (state not in ("FAILURE", "CANCELLED") and not opened):
            raise ConfigurationError(
                f"job {self.id} is {state}; what is retried has failed, or was cancelled and taken"
            )
        store = await self._jobs.store("retrying a job")
        if await store.reopen(claim.key) or opened:
            await self._jobs.send_again(job)


class Watching:
    """The progress of a job: to be awaited, or iterated."""

    __slots__ = ("_job",)

    def __init__(self, job: Job) -> None:
        self._job = job

    def __await__(self) -> Generator[Any, None, Progress | None]:
        return self._now().__await__()

    async def _now(self) -> Progress | None:
        return (await self._job.info()).progress

    async def __aiter__(self) -> AsyncIterator[Progress]:
        last = None
        async for info in self._job.watch():
            if info.progress is not None and info.progress != last:
                last = info.progress
                yield last
