"""What PostgreSQL's and asyncpg's errors mean to us."""

from __future__ import annotations

import asyncpg

from busline.errors import ConfigurationError, StoreError, StoreUnavailable

CONFUSED = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What asyncpg raises for a connection that has ended; the second where the end is read while it begins a query."""
LOST = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, *CONFUSED)
"""The connection has ended, or had ended before it was used."""
FAULTS = (asyncpg.PostgresError, *LOST, TimeoutError)
"""Everything that comes from the database or from the way to it."""
_HOPELESS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
)
_MEANINGS: dict[type[BaseException], str] = {
    asyncpg.DiskFullError: "the disk is full; make room and try again",
    asyncpg.TooManyConnectionsError: "the server has no connection left; lower pool= or raise max_connections",
    asyncpg.ReadOnlySQLTransactionError: "the server takes no writes at the moment (a standby?)",
}


def unavailable(error: BaseException, where: str, timeout: float) -> StoreUnavailable:
    """It may pass."""
    if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
        return StoreUnavailable(f"{where} did not answer within {timeout:g} s")
    meaning = next((text for kind, text in _MEANINGS.items() if isinstance(error, kind)), "")
    said = str(error) or type(error).__name__
    return StoreUnavailable(f"{where}: {meaning} ({said})" if meaning else f"{where}: {said}")


def at_startup(error: BaseException, where: str, timeout: float) -> StoreError | ConfigurationError:
    """The same while the store is opened: some things never will work."""
    if isinstance(error, _HOPELESS):
        return ConfigurationError(f"{where} cannot be used: {error}")
    return unavailable(error, where, timeout)
