"""Jobs: an item `j#ID`; who holds a unique name: an item `u#NAME`."""

from __future__ import annotations

import asyncio
from typing import Any

from botocore.exceptions import ClientError

from busline.errors import StoreUnavailable
from busline.stores.base import JobRecord
from busline.stores.dynamodb.claims import Claims, put, seconds
from busline.stores.dynamodb.items import Item, decode, expression
from busline.stores.dynamodb.link import Link, code_of, refusing

_IS_NEW = "attribute_not_exists(#pk) OR #expires <= :now"
_IS_KNOWN = "attribute_exists(#pk) AND #expires > :now"
_NAME_IS_FREE = "attribute_not_exists(#pk) OR #until <= :now OR #id = :dead"
_SPARE_TRIES = 100


class Jobs:
    """Operations on them."""

    def __init__(self, link: Link, claims: Claims) -> None:
        self._link = link
        self._claims = claims

    async def find(self, id: str) -> JobRecord | None:
        """See `Store.job`."""
        item = await self._link.get(f"j#{id}")
        return _record(item) if item and item["expires"] > self._claims.ms() else None

    async def add(self, job: JobRecord, ttl: float, unique: str, unique_for: float) -> JobRecord:
        """See `Store.add_job`."""
        expires = self._claims.ms(ttl)
        item: Item = {
            "pk": f"j#{job.id}",
            "listing": "1",
            "topic": job.topic,
            "sent_at": job.sent_at,
            "message": job.message,
            "claim": job.claim,
            "progress": job.progress,
            "cancel": job.cancel_requested,
            "expires": expires,
            "ttl": seconds(expires),
            "unique": unique,
        }
        if unique:
            return await self._add_unique(job.id, item, unique, self._claims.ms(unique_for))
        texts = expression({"now": self._claims.ms()}, ConditionExpression=_IS_NEW)
        returned = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        try:
            await self._link.write("put_item", Item=put(item), **texts, **returned)
        except ClientError as error:
            item = refusing(error) or item
        return _record(item)

    async def _add_unique(self, id: str, item: Item, unique: str, until: int) -> JobRecord:
        name = {"pk": f"u#{unique}", "id": id, "until": until, "ttl": seconds(until)}
        dead = id
        for _ in range(_SPARE_TRIES):
            try:
                await self._link.write("transact_write_items", TransactItems=self._both(item, name, dead))
            except ClientError as error:
                known, holder = _reasons(error)
            else:
                return _record(item)
            if known is not None:
                return _record(known)
            if holder is None:  # two transactions have met
                await asyncio.sleep(0.01)
                continue
            if other := await self.find(holder["id"]):
                return other
            dead = holder["id"]
        raise StoreUnavailable(f"too many want the unique name {unique!r} at once")

    def _both(self, item: Item, name: Item, dead: str) -> list[dict[str, Any]]:
        values = {"now": self._claims.ms(), "dead": dead}
        returned = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        table = {"TableName": self._link.table}
        is_new = expression(values, ConditionExpression=_IS_NEW)
        is_free = expression(values, ConditionExpression=_NAME_IS_FREE)
        return [
            {"Put": {**table, "Item": put(item), **is_new, **returned}},
            {"Put": {**table, "Item": put(name), **is_free, **returned}},
        ]

    async def drop(self, id: str) -> None:
        """See `Store.drop_job`."""
        item = await self._link.delete(f"j#{id}")
        if item and item["unique"]:
            await self._link.delete(f"u#{item['unique']}", "#id = :id", id=id)

    async def latest(self, limit: int, topic: str) -> list[JobRecord]:
        """See `Store.jobs`."""
        index, hashed = ("topics", "topic") if topic else ("jobs", "listing")
        texts = expression({"value": topic or "1"}, KeyConditionExpression=f"#{hashed} = :value")
        texts["ScanIndexForward"] = False
        jobs: list[JobRecord] = []
        more: dict[str, Any] | None = {}
        while more is not None and len(jobs) < limit:
            page, more = await self._link.page(index, limit, texts | more)
            ids = [each["pk"].removeprefix("j#") for each in page]
            jobs += [job for job in await asyncio.gather(*map(self.find, ids)) if job]
        return jobs[:limit]

    async def change(self, id: str, change: str, condition: str = "", **values: object) -> Item | None:
        """The job afterwards; None if there is none that the condition holds for."""
        condition = f"{_IS_KNOWN} AND {condition}" if condition else _IS_KNOWN
        done, item = await self._link.update(f"j#{id}", change, condition, {"now": self._claims.ms(), **values})
        return item if done else None

    async def point(self, id: str, key: str) -> bool:
        """The job points to this claim from now on; is it to be cancelled?"""
        job = await self.change(id, "SET #claim = :claim", claim=key)
        if job is None:
            return False
        await self._claims.point(key, id, job["expires"] if job["cancel"] else 0)
        return bool(job["cancel"])

    async def request_cancel(self, id: str) -> JobRecord | None:
        """See `Store.request_cancel`. A claim that comes to point here afterwards sees the wish in the job."""
        job = await self.change(id, "SET #cancel = :yes", yes=True)
        if job is None:
            return None
        if job["claim"]:
            await self._claims.point(job["claim"], id, job["expires"])
        return _record(job)


def _reasons(error: ClientError) -> tuple[Item | None, Item | None]:
    """The job of that id which is there already, and who holds the name."""
    reasons: Any = error.response.get("CancellationReasons", [{}, {}])
    if code_of(error) != "TransactionCanceledException":
        raise error
    known, holder = (decode(reason.get("Item")) for reason in reasons)
    return known, holder


def _record(item: Item) -> JobRecord:
    values = (item["pk"].removeprefix("j#"), item["topic"], float(item["sent_at"]), item["message"], item["claim"])
    return JobRecord(*values, item["progress"], bool(item["cancel"]), item["expires"] / 1000)
