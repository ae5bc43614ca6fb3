"""The table: making it, and looking whether one that is there will do."""

from __future__ import annotations

import asyncio
from typing import Any

from botocore.exceptions import ClientError

from busline.errors import ConfigurationError, StoreUnavailable
from busline.stores.dynamodb.link import code_of
from busline.stores.dynamodb.url import Settings

_PATIENCE = 120.0
"""Seconds in which a new table becomes usable."""
INDEXES = {"orphans": ("orphan", "lease", "ALL"), "jobs": ("listing", "sent_at", "KEYS_ONLY")} | {
    "topics": ("topic", "sent_at", "KEYS_ONLY")
}
"""Name: hash key, range key, projection. `orphans` has the few claims alone that keep a message."""
_TYPES = {"pk": "S", "orphan": "S", "lease": "N", "listing": "S", "topic": "S", "sent_at": "N"}


async def prepare(client: Any, settings: Settings) -> None:
    """Make the table if it is missing and may be made. Raises ConfigurationError, StoreUnavailable, ClientError."""
    table = await _describe(client, settings.table)
    if table is None:
        if not settings.creates:
            raise ConfigurationError(f"{settings.where} does not exist, and create=no forbids to make it")
        await _create(client, settings.table)
        table = await _described(client, settings)
    found = {index["IndexName"] for index in table.get("GlobalSecondaryIndexes", [])}
    if table["KeySchema"] != [{"AttributeName": "pk", "KeyType": "HASH"}] or not found >= set(INDEXES):
        raise ConfigurationError(f"{settings.where} is a table of something else; name another one by table=")
    if table["TableStatus"] not in ("ACTIVE", "UPDATING"):
        await _described(client, settings)
    if settings.creates:
        await _expire(client, settings.table)


async def _describe(client: Any, table: str) -> Any:
    try:
        return (await client.describe_table(TableName=table))["Table"]
    except ClientError as error:
        if code_of(error) != "ResourceNotFoundException":
            raise
        return None


async def _described(client: Any, settings: Settings) -> Any:
    try:
        async with asyncio.timeout(_PATIENCE):
            while True:
                table = await _describe(client, settings.table)
                if table is not None and table["TableStatus"] == "ACTIVE":
                    return table
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise StoreUnavailable(f"{settings.where} is not usable yet, {_PATIENCE:g} s after it was made") from error


async def _create(client: Any, table: str) -> None:
    indexes = [
        {
            "IndexName": name,
            "KeySchema": [
                {"AttributeName": hashed, "KeyType": "HASH"},
                {"AttributeName": ranged, "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": projection},
        }
        for name, (hashed, ranged, projection) in INDEXES.items()
    ]
    try:
        await client.create_table(
            TableName=table,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": n, "AttributeType": kind} for n, kind in _TYPES.items()],
            GlobalSecondaryIndexes=indexes,
        )
    except ClientError as error:
        if code_of(error) != "ResourceInUseException":  # somebody else was quicker
            raise


async def _expire(client: Any, table: str) -> None:
    """Have DynamoDB delete what has expired."""
    described = await client.describe_time_to_live(TableName=table)
    if described["TimeToLiveDescription"]["TimeToLiveStatus"] in ("ENABLED", "ENABLING"):
        return
    wish = {"Enabled": True, "AttributeName": "ttl"}
    try:
        await client.update_time_to_live(TableName=table, TimeToLiveSpecification=wish)
    except ClientError as error:
        if code_of(error) != "ValidationException":  # somebody else has done it meanwhile
            raise
