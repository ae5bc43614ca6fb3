"""The store contract: claims on idempotency keys, and jobs. Stores implement it, core is its only caller, and
`busline.testing` checks it.

A **claim** is the right to run the handler for one key, for as long as its lease lasts. One record per key: state,
fingerprint, token, fence, lease, attempt, result or error, what the handler sent, the message where it must be sent
again. A **job** is what is known of one tracked message, by its id; it points to the claim that it became part of, and
its state follows from the two.

Rules that hold for every method:

* **Atomic**: each is one step that happened or did not; of any number of claimants one wins.
* **Guarded**: what takes a `Claimed` acts only while that claim is in force (token *and* fence; a record that was
  deleted and made anew begins its fences at 1 again), and raises `ClaimLost` otherwise. A claim whose lease has ended
  and that nobody has taken over is still in force.
* **Time** is the store's own clock where it has one, else `Clock.time()`. Expiry is logical: a record whose `ttl` has
  passed does not exist, whether it was deleted yet or not. A claim that keeps a message has no end before it is
  completed, failed or released: nobody else has that message.
* **Errors**: `ClaimLost`; `StoreUnavailable` for everything that may pass (down, slow, locked, full), also where it is
  not known whether it happened; `ConfigurationError` for what never will work. Nothing else leaves a store.
* **Silence**: stores do not log. **Tasks** that a store starts have ended when `aclose()` returns.
* **Bytes** are opaque; keys and ids are any UTF-8 of up to 1,024 bytes, also with NUL in it (`check_text`).
* A message is **kept** where `claim` was given a `message` that is not empty.
* Every operation ends within the store's `timeout` (seconds, default 5).
"""

# A method of a Protocol is its docstring; pyright would have it return something all the same.
# pyright: reportReturnType=false
from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, runtime_checkable

from busline.errors import ConfigurationError
from busline.structs import value

MAX_TEXT = 1024
"""Bytes of a key, an id or a `unique`."""

ClaimState = Literal["PENDING", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED"]
"""PENDING: released, to be tried again. The last three are final until their `ttl`, or until `reopen`."""


@value
class Claimed:
    """The key is ours."""

    key: str
    token: str
    """Random, of this claim alone."""
    fence: int
    """Grows with each claim on the key."""
    attempt: int = 1
    """How often the key has been claimed since it was made or reopened; releases keep it."""
    cancel_requested: bool = False
    """Somebody wants the job cancelled: it must not run."""


@value
class InProgress:
    """Somebody else has it."""

    seconds: float
    """Until his lease ends, unless he renews it; 0.0 = what was to be replaced is not kept any more."""


@value
class Completed:
    """It was done."""

    result: bytes
    outgoing: bytes


@value
class Failed:
    """It failed for good, or was cancelled."""

    error: bytes
    cancelled: bool = False


@value
class Mismatch:
    """The key belongs to another payload; the record is untouched."""


@value
class Orphan:
    """A claim whose lease has ended and that keeps a message which the broker has already forgotten.

    A hint: it is settled by claiming `key` with `replaces=message_id`.
    """

    key: str
    fingerprint: str
    message_id: str
    message: bytes
    attempt: int


ClaimResult = Claimed | InProgress | Completed | Failed | Mismatch | Orphan


@value
class ClaimRecord:
    """A claim as it is now, for people and for the state of jobs."""

    key: str
    state: ClaimState
    fingerprint: str
    attempt: int
    lease_until: float
    """0.0 where nobody holds it."""
    result: bytes = b""
    error: bytes = b""


@value
class JobRecord:
    """What is known of one tracked message. Instants are seconds since the epoch."""

    id: str
    topic: str
    sent_at: float
    message: bytes
    """The message, so that it can be sent again by hand."""
    claim: str = ""
    """Key of the claim that it became part of; "" while no worker has begun with it."""
    progress: bytes = b""
    """What its handler said last; kept over its attempts."""
    cancel_requested: bool = False
    expires_at: float = 0.0


def looks(job: JobRecord | None, claim: ClaimRecord | None) -> tuple[object, ...]:
    """What `Store.changed` compares: all that people see of a job, and nothing that a mere renewal of a lease moves."""
    return (
        job and (job.claim, job.progress, job.cancel_requested),
        claim and (claim.state, claim.attempt),
    )


def in_scopes(key: str, scopes: Collection[str]) -> bool:
    """What `Store.orphans` asks of a key."""
    return not scopes or key.partition("/")[0] in scopes


def check_text(what: str, text: str, limit: int = MAX_TEXT) -> None:
    """Raise ConfigurationError for a key or id that is no UTF-8 or has more than `limit` bytes."""
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"the {what} {text[:80]!r} is not text that UTF-8 can carry") from error
    if size > limit:
        raise ConfigurationError(f"the {what} {text[:80]!r}… has {size} bytes, and a store takes {limit}")


class Store(Protocol):
    """One client of one store. The constructor only stores; `open` connects."""

    @property
    def where(self) -> str:
        """The store in words for people, without secrets."""

    async def open(self) -> None:
        """Connect and make what is missing (tables, scripts). Idempotent, safe from many processes at once. Raises
        `ConfigurationError`, `StoreUnavailable`."""

    async def aclose(self) -> None:
        """Idempotent, safe when never opened."""

    async def claim(
        self,
        key: str,
        fingerprint: str,
        *,
        lease: float,
        ttl: float,
        job: str = "",
        message_id: str = "",
        message: bytes = b"",
        replaces: str = "",
    ) -> ClaimResult:
        """Take the key for `lease` seconds, unless it is done, taken, or of another payload.

        A record that does not exist, is PENDING, or whose lease has ended is taken: new token, fence + 1, attempt + 1.
        The record lives for `ttl` seconds from now at least, a PROCESSING one never less than its lease. With `message`
        the claim keeps it, under `message_id`, until it is completed, failed or released: the broker is about to
        forget it. A key whose lease has ended *and* which keeps a message is given only to who names that message by
        `replaces`; others get the `Orphan`. With `replaces`, and that message not kept (any more), nothing is taken:
        `InProgress(0.0)`, or what became of the key.
        `job`: if there is a job of that id it points to this key from now on, in any result but `Mismatch`.
        """

    async def extend(self, claim: Claimed, *, lease: float) -> bool:
        """Ours for `lease` seconds from now. True if a cancel was requested of a job that points here."""

    async def complete(self, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        """Done: kept for `ttl` seconds for whoever asks again; the kept message is let go of."""

    async def fail(self, claim: Claimed, error: bytes, *, ttl: float, cancelled: bool = False) -> None:
        """Failed for good, or cancelled: as `complete`."""

    async def release(self, claim: Claimed) -> None:
        """Not done and to be tried again: PENDING, the attempts kept, the kept message let go of."""

    async def reopen(self, key: str) -> bool:
        """A record that FAILED or was CANCELLED becomes PENDING with no attempts, and the wish to cancel jobs that
        point to it is forgotten. False if there is none such."""

    async def read(self, key: str) -> ClaimRecord | None:
        """The record as it is."""

    async def orphans(self, limit: int, *, scopes: Collection[str] = ()) -> Sequence[Orphan]:
        """Up to `limit`, longest ended first. With `scopes`, only those whose key has one of them before its first "/":
        any number of others hide none of these."""

    async def add_job(self, job: JobRecord, *, ttl: float, unique: str = "", unique_for: float = 0.0) -> JobRecord:
        """Keep it for `ttl` seconds and return it. While another job holds `unique` (for `unique_for` seconds from its
        adding), nothing is added and that other one is returned. Adding the same id again is silent."""

    async def drop_job(self, id: str) -> None:
        """Forget it and free its `unique`: its message could not be sent. Unknown ids are silent."""

    async def job(self, id: str) -> JobRecord | None:
        """The record as it is."""

    async def jobs(self, limit: int, *, topic: str = "") -> Sequence[JobRecord]:
        """Up to `limit`, latest sent first."""

    async def set_progress(self, id: str, progress: bytes) -> None:
        """What the handler says. An unknown id is silent."""

    async def request_cancel(self, id: str) -> JobRecord | None:
        """Ask that it be cancelled: `extend` and `claim` tell whoever works on it. None if unknown."""

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        """Wait until the job is not as it was when it was read as `job`, and its claim as `claim` (None: it has none);
        at once if that is so already; at most `timeout` seconds. What counts is what `looks` shows. Notified where the
        store can, else it looks with a growing pause of at most 1 s. A hint, which may come too often: look again."""

    async def sweep(self, limit: int) -> int:
        """Delete up to `limit` records whose time is over, where the store does not by itself; how many."""


@runtime_checkable
class Transactional(Protocol):
    """A store in a database that a handler can write to as well."""

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """A connection inside a transaction of the store's database. Committed when the block is left normally, rolled
        back otherwise."""

    async def complete_in(self, connection: Any, claim: Claimed, result: bytes, outgoing: bytes, *, ttl: float) -> None:
        """As `complete`, within that transaction: both happen, or neither. Raises `ClaimLost`."""
