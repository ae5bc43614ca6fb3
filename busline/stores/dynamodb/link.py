"""The way to DynamoDB: one client, requests within a time limit, and errors that are ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import cache
from typing import Any, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)
from botocore.loaders import create_loader

from busline.errors import ConfigurationError, StoreError, StoreUnavailable
from busline.stores.dynamodb.items import Item, decode, expression
from busline.stores.dynamodb.url import Settings

T = TypeVar("T")

FAULTS = (BotoCoreError, ClientError, OSError, TimeoutError)
_HOPELESS = (NoCredentialsError, NoRegionError, PartialCredentialsError)
_HOPELESS_CODES = {
    "AccessDeniedException",
    "IncompleteSignature",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "ResourceNotFoundException",
    "UnrecognizedClientException",
    "ValidationException",
}
_NOT_DONE = {"ProvisionedThroughputExceededException", "RequestLimitExceeded", "ThrottlingException"}
"""Codes that promise that nothing has happened: it is tried again, for as long as there is time."""

_BREATH = 0.02
"""Seconds in which the client notices that the server has closed the other kept connections, too."""


def code_of(error: BaseException) -> str:
    """DynamoDB's own; "" for what does not come from there."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


@cache
def _loader(path: str | None) -> Any:
    """What knows the service's API: a megabyte of JSON that is read once."""
    return create_loader(path)


def refusing(error: ClientError) -> Item | None:
    """The item that did not meet the condition; None if there is none."""
    response: Any = error.response  # which has it in this case alone
    return decode(response.get("Item"))


class Link:
    """What asks the table. Nothing is sent twice unless it is known that it was not done, but for reads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._client: Any = None

    @property
    def table(self) -> str:
        """Its name."""
        return self._settings.table

    async def open(self) -> Any:
        """Make the client, and return it. Raises ConfigurationError."""
        settings = self._settings
        config = AioConfig(
            connect_timeout=settings.timeout,
            read_timeout=settings.timeout,
            max_pool_connections=settings.pool,
            parameter_validation=False,  # by the server alone; doing it twice is a sixth of a request's work
            retries={"total_max_attempts": 1},  # what was sent may have happened
        )
        session = get_session()
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        try:
            context = session.create_client(
                "dynamodb",
                region_name=settings.region or None,
                endpoint_url=settings.endpoint_url or None,
                aws_access_key_id=settings.access_key or None,
                aws_secret_access_key=settings.secret_key or None,
                config=config,
            )
            self._client = await self._stack.enter_async_context(context)
        except (*FAULTS, ValueError) as error:
            raise ConfigurationError(f"{settings.where} cannot be used: {error}") from error
        return self._client

    async def aclose(self) -> None:
        """End all connections."""
        self._client = None
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def get(self, pk: str) -> Item | None:
        """The item as it is now."""
        answer = await self.read("get_item", Key={"pk": {"S": pk}}, ConsistentRead=True)
        return decode(answer.get("Item"))

    async def page(self, index: str, limit: int, texts: dict[str, Any]) -> tuple[list[Item], dict[str, Any] | None]:
        """Some of what the index has for these expressions, and what to add to them for more; None: that is all."""
        answer = await self.read("query", IndexName=index, Limit=limit, **texts)
        last = answer.get("LastEvaluatedKey")
        items = [item for each in answer["Items"] if (item := decode(each))]
        return items, {"ExclusiveStartKey": last} if last else None

    async def update(
        self, pk: str, change: str, condition: str, values: Mapping[str, object]
    ) -> tuple[bool, Item | None]:
        """True and the new item; or False and the one that is there, which the condition refuses."""
        texts = expression(values, UpdateExpression=change, ConditionExpression=condition)
        returned = {"ReturnValues": "ALL_NEW", "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        try:
            answer = await self.write("update_item", Key={"pk": {"S": pk}}, **texts, **returned)
        except ClientError as error:
            return False, refusing(error)
        return True, decode(answer.get("Attributes"))

    async def delete(self, pk: str, condition: str = "", **values: object) -> Item | None:
        """The item that was deleted; None if there is none that the condition holds for."""
        texts = expression(values, ConditionExpression=condition) if condition else {}
        try:
            answer = await self.write("delete_item", Key={"pk": {"S": pk}}, **texts, ReturnValues="ALL_OLD")
        except ClientError:
            return None
        return decode(answer.get("Attributes"))

    async def write(self, operation: str, **arguments: Any) -> Any:
        """One request. Raises StoreUnavailable, ConfigurationError, and ClientError where a condition does not hold."""
        return await self._within(lambda: self._once(operation, arguments))

    async def read(self, operation: str, **arguments: Any) -> Any:
        """One request, begun anew, once, if the connection had ended."""

        async def ask() -> Any:
            try:
                return await self._once(operation, arguments)
            except (HTTPClientError, ConnectionError):
                await asyncio.sleep(_BREATH)
                return await self._once(operation, arguments)

        return await self._within(ask)

    async def _once(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        if self._client is None:
            raise StoreUnavailable(f"the store {self._settings.where} is not open")
        named = {} if operation == "transact_write_items" else {"TableName": self._settings.table}
        return await getattr(self._client, operation)(**named, **arguments)

    async def _within(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._patiently(ask)
        except FAULTS as error:
            if code_of(error) in ("ConditionalCheckFailedException", "TransactionCanceledException"):
                raise
            raise self.fault(error) from error

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        pause = 0.05
        while True:
            try:
                return await ask()
            except ClientError as error:
                if code_of(error) not in _NOT_DONE:
                    raise
            await asyncio.sleep(random.uniform(0.0, pause))
            pause = min(1.0, pause * 2)

    def fault(self, error: BaseException) -> StoreError | ConfigurationError:
        """The same, typed."""
        where = self._settings.where
        if isinstance(error, TimeoutError):
            return StoreUnavailable(f"{where} did not answer within {self._settings.timeout:g} s")
        if isinstance(error, _HOPELESS) or code_of(error) in _HOPELESS_CODES:
            return ConfigurationError(f"{where}: {error}")
        return StoreUnavailable(f"{where}: {error}")
