"""The way to the server: a pool of connections, the scripts, and errors that are ours."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from busline.errors import ConfigurationError, StoreError, StoreUnavailable
from busline.stores.redis.scripts import texts
from busline.stores.redis.url import Settings

_FAREWELL = 2.0
_FAULTS = (RedisError, OSError, TimeoutError)
_HOPELESS = (AuthenticationError, NoPermissionError)
_MEANINGS: dict[type[BaseException], str] = {
    OutOfMemoryError: "its memory is full; raise maxmemory and try again",
    ReadOnlyError: "it is a replica and takes no writes at the moment",
}


class Link:
    """What asks the server. Nothing is sent twice by itself, but for what only reads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self._scripts: dict[str, Any] = {}

    async def open(self) -> None:
        """Connect and look whether this server will do. Raises ConfigurationError, StoreUnavailable."""
        self._client = self.make_client(socket_timeout=self._settings.timeout)
        self._scripts = {name: self._client.register_script(text) for name, text in texts().items()}
        try:
            async with asyncio.timeout(self._settings.timeout):
                self._check(await self._client.info())
        except _FAULTS as error:
            await self.aclose()
            if isinstance(error, _HOPELESS) or "database index" in str(error) or "DB index" in str(error):
                raise ConfigurationError(f"{self._settings.where} cannot be used: {error}") from None
            raise self.unavailable(error) from None
        except BaseException:
            await self.aclose()
            raise

    def make_client(self, *, socket_timeout: float | None) -> Any:
        """A client with a pool of its own."""
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            self._settings.url,
            max_connections=self._settings.pool,
            timeout=self._settings.timeout,
            socket_timeout=socket_timeout,
            socket_connect_timeout=self._settings.timeout,
            retry=Retry(NoBackoff(), 0),  # what was sent may have happened
        )
        return redis.asyncio.Redis.from_pool(pool)

    async def aclose(self) -> None:
        """End all connections."""
        client, self._client = self._client, None
        if client is not None:
            await farewell(client)

    async def write(self, script: str, *arguments: Any) -> Any:
        """What the script returns. Raises StoreUnavailable."""
        return await self._within(script, arguments, 1)

    async def read(self, script: str, *arguments: Any) -> Any:
        """The same, begun anew, once, if the connection had ended: a server that was restarted has closed all."""
        return await self._within(script, arguments, 2)

    async def _within(self, script: str, arguments: tuple[Any, ...], tries: int) -> Any:
        if self._client is None:
            raise StoreUnavailable(f"the store {self._settings.where} is not open")
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._ask(self._scripts[script], arguments, tries)
        except _FAULTS as error:
            raise self.unavailable(error) from error

    async def _ask(self, script: Any, arguments: tuple[Any, ...], tries: int) -> Any:
        while True:
            tries -= 1
            try:
                return await script(keys=[self._settings.prefix], args=arguments)
            except (ConnectionError, OSError):
                if not tries:
                    raise

    def unavailable(self, error: BaseException) -> StoreError:
        """The same, typed."""
        where = self._settings.where
        if isinstance(error, TimeoutError | RedisTimeoutError):
            return StoreUnavailable(f"{where} did not answer within {self._settings.timeout:g} s")
        meaning = next((text for kind, text in _MEANINGS.items() if isinstance(error, kind)), "")
        said = str(error) or type(error).__name__
        return StoreUnavailable(f"{where}: {meaning} ({said})" if meaning else f"{where}: {said}")

    def _check(self, info: dict[str, Any]) -> None:
        where = self._settings.where
        version = str(info.get("redis_version", "0"))
        if int(version.partition(".")[0]) < 6:
            raise ConfigurationError(f"{where} is Redis {version}; the store needs 6 or later")
        if info.get("cluster_enabled"):
            raise ConfigurationError(f"{where} is a cluster, in which a script cannot reach all keys; use one server")
        policy = info.get("maxmemory_policy", "noeviction")
        if info.get("maxmemory") and policy != "noeviction" and not self._settings.accepts_eviction:
            raise ConfigurationError(
                f"{where} forgets records when its memory is full (maxmemory-policy {policy}), and what was done would"
                " be done again: set noeviction there, or ?eviction=accept here"
            )


async def farewell(client: Any) -> None:
    """Close all its connections, whether the server answers or not."""
    try:
        async with asyncio.timeout(_FAREWELL):
            await client.aclose()
            await client.connection_pool.disconnect()
    except _FAULTS:
        return  # it does not answer, and need not
