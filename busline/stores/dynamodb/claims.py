"""Claims: an item `c#KEY`. Instants are whole milliseconds of this machine's clock, in `lease` and `expires`.

`ttl` is when DynamoDB may delete the item, in seconds; one that keeps a message has none. Since it deletes late, every
condition looks at the clock itself. `cancel_until` is set by who wants a job cancelled, as long as that job is
kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from typing import Any

from busline.errors import ClaimLost, StoreUnavailable
from busline.stores.base import (
    Claimed,
    ClaimRecord,
    ClaimResult,
    Completed,
    Failed,
    InProgress,
    Mismatch,
    Orphan,
    in_scopes,
)
from busline.stores.dynamodb.items import Item, encode, expression
from busline.stores.dynamodb.link import Link
from busline.structs import value

_LIVES = "(#expires > :now OR #lease > :now OR attribute_exists(#message))"
_IN_FORCE = f"#state = :processing AND #token = :token AND #fence = :fence AND {_LIVES}"
_IS_OVER = (
    "attribute_not_exists(#pk) OR (#expires <= :now AND (attribute_not_exists(#lease) OR #lease <= :now)"
    " AND attribute_not_exists(#message))"
)
_HOLD = (
    "SET #state = :processing, #fingerprint = :fingerprint, #token = :token, #lease = :lease, #expires = :expires,"
    " #until = :until, #fence = if_not_exists(#fence, :zero) + :one, #attempt = "
)
_KEEP = ", #message_id = :message_id, #message = :message, #orphan = :yes REMOVE #ttl, #result, #error, #outgoing"
_KEEP_NOT = ", #ttl = :until REMOVE #message_id, #message, #orphan, #result, #error, #outgoing"
_LET_GO = " REMOVE #token, #lease, #message_id, #message, #orphan"
_SPARE_TRIES = 100


@value
class Wish:
    """What `Store.claim` was asked for."""

    key: str
    fingerprint: str
    lease: float
    ttl: float
    message_id: str
    message: bytes
    replaces: str


class Claims:
    """Operations on them."""

    def __init__(self, link: Link, now: Callable[[], float]) -> None:
        self._link = link
        self._now = now

    def ms(self, after: float = 0.0) -> int:
        """The instant so many seconds from now."""
        return round((self._now() + after) * 1000)

    async def claim(self, wish: Wish) -> ClaimResult:
        """See `Store.claim`; the job is somebody else's matter."""
        token = secrets.token_hex(16)
        looked = bool(wish.replaces)
        found = await self._link.get(f"c#{wish.key}") if looked else None
        for _ in range(_SPARE_TRIES):
            now = self.ms()
            there = found if found and lives(found, now) else None
            if looked and (refusal := refused(there, wish, now)):
                return refusal
            taken, found = await self._take(wish, token, there, now)
            if taken and found:
                cancelled = found.get("cancel_until", 0) > now
                return Claimed(wish.key, token, found["fence"], found["attempt"], cancelled)
            looked = True
        raise StoreUnavailable(f"the record of {wish.key!r} changes too fast")

    async def _take(self, wish: Wish, token: str, there: Item | None, now: int) -> tuple[bool, Item | None]:
        lease = self.ms(wish.lease)
        expires = max(lease, self.ms(wish.ttl), there["expires"] if there else 0)
        values = {
            "now": now,
            "token": token,
            "fingerprint": wish.fingerprint,
            "lease": lease,
            "expires": expires,
            "until": seconds(expires),
            "message_id": wish.message_id,
            "message": wish.message,
            "replaces": wish.replaces,
            **_CONSTANTS,
        }
        change = _HOLD + ("#attempt + :one" if there else ":one") + (_KEEP if wish.message else _KEEP_NOT)
        condition = _IS_OVER
        if there:  # as it was when we looked, or somebody else was quicker
            values |= {"was": there["state"], "before": there["fence"]}
            condition = f"#state = :was AND #fence = :before AND #fingerprint = :fingerprint AND {_LIVES}"
            if there["state"] == "PROCESSING":
                condition += " AND #lease <= :now"
            condition += " AND #message_id = :replaces" if wish.replaces else " AND attribute_not_exists(#message)"
        return await self._link.update(f"c#{wish.key}", change, condition, values)

    async def extend(self, claim: Claimed, lease: float) -> bool:
        """See `Store.extend`."""
        until = self.ms(lease)
        item = await self._guarded(claim, "SET #lease = :lease", lease=until)
        if item.get("ttl", seconds(until)) < seconds(until):  # it must not be deleted under us
            await self._guarded(claim, "SET #ttl = :until", until=seconds(until))
        return bool(item.get("cancel_until", 0) > self.ms())

    async def finish(
        self, claim: Claimed, state: str, ttl: float, *, result: bytes = b"", error: bytes = b"", outgoing: bytes = b""
    ) -> None:
        """See `Store.complete` and `Store.fail`."""
        expires = self.ms(ttl)
        change = (
            "SET #state = :state, #result = :result, #error = :error, #outgoing = :outgoing, #expires = :expires,"
            " #until = :until, #ttl = :until" + _LET_GO
        )
        values = {"result": result, "error": error, "outgoing": outgoing}
        await self._guarded(claim, change, state=state, expires=expires, until=seconds(expires), **values)

    async def release(self, claim: Claimed) -> None:
        """See `Store.release`."""
        await self._guarded(claim, "SET #state = :pending, #ttl = #until" + _LET_GO)

    async def _guarded(self, claim: Claimed, change: str, **values: object) -> Item:
        guard = {"token": claim.token, "fence": claim.fence, "now": self.ms(), **_CONSTANTS}
        done, item = await self._link.update(f"c#{claim.key}", change, _IN_FORCE, guard | values)
        if not done or item is None:
            raise ClaimLost(claim.key)
        return item

    async def reopen(self, key: str) -> frozenset[str] | None:
        """See `Store.reopen`: the ids of jobs that pointed to it; None if there is nothing to reopen."""
        values = {"now": self.ms(), "failed": "FAILED", "cancelled": "CANCELLED", **_CONSTANTS}
        done, item = await self._link.update(
            f"c#{key}",
            "SET #state = :pending, #attempt = :zero REMOVE #error, #cancel_until",
            "#state IN (:failed, :cancelled) AND #expires > :now",
            values,
        )
        return frozenset(item.get("jobs", ())) if done and item else None

    async def point(self, key: str, id: str, cancel_until: int) -> None:
        """A job points here, and whoever works on it is to be cancelled until then (0: is not)."""
        name, values = f"c#{key}", {"jobs": frozenset({id}), "until": cancel_until}
        add, exists = "ADD #jobs :jobs", "attribute_exists(#pk)"
        if cancel_until:
            is_longer = "(attribute_not_exists(#cancel_until) OR #cancel_until < :until)"
            done, item = await self._link.update(
                name, f"SET #cancel_until = :until {add}", f"{exists} AND {is_longer}", values
            )
            if done or item is None:
                return
        await self._link.update(name, add, exists, values)

    async def read(self, key: str) -> ClaimRecord | None:
        """See `Store.read`."""
        item = await self._link.get(f"c#{key}")
        if item is None or not lives(item, self.ms()):
            return None
        held = (key, item["state"], item["fingerprint"], item["attempt"], item.get("lease", 0) / 1000)
        return ClaimRecord(*held, item.get("result", b""), item.get("error", b""))

    async def orphans(self, limit: int, scopes: Collection[str]) -> list[Orphan]:
        """See `Store.orphans`."""
        texts = expression({"yes": "1", "now": self.ms()}, KeyConditionExpression="#orphan = :yes AND #lease <= :now")
        found: list[Orphan] = []
        more: dict[str, Any] | None = {}
        while more is not None and len(found) < limit:
            page, more = await self._link.page("orphans", limit, texts | more)
            keyed = ((item["pk"].removeprefix("c#"), item) for item in page)
            found += [_orphan(key, item) for key, item in keyed if in_scopes(key, scopes)]
        return found[:limit]


_CONSTANTS = {"processing": "PROCESSING", "pending": "PENDING", "zero": 0, "one": 1, "yes": "1"}


def seconds(ms: int) -> int:
    """When DynamoDB may delete what has expired then: never earlier."""
    return ms // 1000 + 1


def lives(item: Item, now: int) -> bool:
    """Does it exist, as far as people are concerned?"""
    return bool(item["expires"] > now or item.get("lease", 0) > now or "message" in item)


def refused(item: Item | None, wish: Wish, now: int) -> ClaimResult | None:
    """Why the key is not to be had; None if it is."""
    if item is None:
        return InProgress(0.0) if wish.replaces else None
    if item["fingerprint"] != wish.fingerprint:
        return Mismatch()
    if item["state"] == "COMPLETED":
        return Completed(item.get("result", b""), item.get("outgoing", b""))
    if item["state"] in ("FAILED", "CANCELLED"):
        return Failed(item.get("error", b""), item["state"] == "CANCELLED")
    if wish.replaces and item.get("message_id") != wish.replaces:
        return InProgress(0.0)
    if item.get("lease", 0) > now:
        return InProgress((item["lease"] - now) / 1000)
    return _orphan(wish.key, item) if "message" in item and not wish.replaces else None


def _orphan(key: str, item: Item) -> Orphan:
    return Orphan(key, item["fingerprint"], item["message_id"], item["message"], item["attempt"])


def put(item: Item) -> dict[str, Any]:
    """All of an item, as DynamoDB writes it."""
    return {name: encode(value) for name, value in item.items()}
