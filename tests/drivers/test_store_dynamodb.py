"""What the DynamoDB store does beyond the checks of stores: its table, what is too large, errors at startup."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from busline.errors import ConfigurationError
from busline.stores import from_url
from busline.stores.base import Claimed, Completed, Transactional
from busline.stores.dynamodb import DynamoStore
from tests.store_servers import PASSWORD, Dynamo

LONG = 600.0


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[DynamoStore]:
    store = from_url(url)
    assert isinstance(store, DynamoStore)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def own_url(server: Dynamo) -> str:
    return f"{server.url}&timeout=20&table=test-{uuid.uuid4().hex}"


async def test_the_table_is_made_with_expiry_and_without_reserved_capacity(dynamo: Dynamo) -> None:
    async with opened(own_url(dynamo)) as store:
        client, table = store._link._client, store._link.table
        made = (await client.describe_table(TableName=table))["Table"]
        assert made["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        assert {index["IndexName"] for index in made["GlobalSecondaryIndexes"]} == {"orphans", "jobs", "topics"}
        expiry = (await client.describe_time_to_live(TableName=table))["TimeToLiveDescription"]
        assert (expiry["TimeToLiveStatus"], expiry["AttributeName"]) == ("ENABLED", "ttl")


async def test_a_missing_table_is_made_only_if_that_is_wanted(dynamo: Dynamo) -> None:
    url = own_url(dynamo)
    with pytest.raises(ConfigurationError, match="create=no forbids"):
        await from_url(f"{url}&create=no").open()
    async with opened(url), opened(f"{url}&create=no") as store:
        assert isinstance(await store.claim("key", "", lease=LONG, ttl=LONG), Claimed)


async def test_a_table_of_something_else_is_refused(dynamo: Dynamo) -> None:
    async with opened(own_url(dynamo)) as store:
        other = f"other-{uuid.uuid4().hex}"
        await store._link._client.create_table(
            TableName=other,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        )
    with pytest.raises(ConfigurationError, match="table of something else"):
        await from_url(f"{dynamo.url}&table={other}").open()


async def test_what_an_item_cannot_hold_is_refused_and_the_claim_stays(dynamo: Dynamo) -> None:
    async with opened(own_url(dynamo)) as store:
        claimed = await store.claim("key", "", lease=LONG, ttl=LONG)
        assert isinstance(claimed, Claimed)
        with pytest.raises(ConfigurationError, match=r"(?i)item size"):
            await store.complete(claimed, bytes(500_000), b"", ttl=LONG)
        await store.complete(claimed, b"a reference", b"", ttl=LONG)
        assert await store.claim("key", "", lease=LONG, ttl=LONG) == Completed(b"a reference", b"")


async def test_dynamodb_is_told_when_it_may_delete_an_item_and_never_one_that_keeps_a_message(dynamo: Dynamo) -> None:
    async with opened(own_url(dynamo)) as store:

        async def ttl() -> int | None:
            item = await store._link.get("c#key")
            assert item is not None
            assert item.get("ttl") is None or item["ttl"] * 1000 > item["expires"] > 0
            return item.get("ttl")

        claimed = await store.claim("key", "", lease=1, ttl=10, message_id="m", message=b"m")
        assert isinstance(claimed, Claimed)
        assert await ttl() is None
        await store.extend(claimed, lease=LONG)
        assert await ttl() is None
        await store.release(claimed)
        assert await ttl() is not None
        claimed = await store.claim("key", "", lease=1, ttl=1)
        assert isinstance(claimed, Claimed)
        before = await ttl()
        await store.extend(claimed, lease=LONG)
        after = (await store._link.get("c#key") or {})["ttl"]
        assert before is not None
        assert after > before + 500, "it is not deleted under a lease"


async def test_dynamodb_claims_no_transactions_with_other_data(dynamo: Dynamo) -> None:
    assert not isinstance(from_url(dynamo.url), Transactional)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("dynamodb://eu-west-1?table=a", "no name of a table"),
        ("dynamodb://eu-west-1/busline", "REGION"),
        ("dynamodb://eu-west-1?create=maybe", "yes or no"),
        ("dynamodb://key@eu-west-1", "needs its secret"),
        ("dynamodb://key:s3cret-w0rd@eu-west-1?speed=1", "no option 'speed'"),
    ],
)
def test_urls_are_checked(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as raised:
        from_url(url)
    assert PASSWORD not in str(raised.value)


def test_urls_are_shown_without_keys() -> None:
    store = from_url(f"dynamodb://AKIA:{PASSWORD}@eu-west-1?table=app-jobs")
    assert store.where == "dynamodb://eu-west-1/app-jobs"
    assert PASSWORD not in repr(store) + repr(store.__dict__)
