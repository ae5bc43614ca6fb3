"""What a URL says: the store's own options, and what asyncpg is to connect with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from busline.errors import ConfigurationError
from busline.stores.urls import DEFAULT_TIMEOUT, count, options, seconds, without_secrets

_OWN = {"schema": "public", "pool": "10", "timeout": f"{DEFAULT_TIMEOUT:g}"}
_ASYNCPG = ("host", "port", "user", "passfile", "application_name", "target_session_attrs")
_TLS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslnegotiation")
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one store. `dsn` has the password in it."""

    dsn: str = field(repr=False)
    where: str
    schema: str
    pool: int
    timeout: float


def read(url: str) -> Settings:
    """Raises ConfigurationError for what is no URL of a database, without telling its password."""
    where = without_secrets(url)
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if not (parts.hostname or "host" in query):
        raise ConfigurationError(
            f"{where} names no server; write postgresql://user:password@host/database, or ?host=/folder/of/its/socket"
        )
    known = dict.fromkeys((*_ASYNCPG, *_TLS), "")
    chosen = options(url, {**known, **_OWN})
    if not _SCHEMA.fullmatch(chosen["schema"]):
        raise ConfigurationError(f"{where}: schema {chosen['schema']!r} is not a plain name")
    theirs = urlencode({name: chosen[name] for name in known if chosen[name]})
    return Settings(
        dsn=urlunsplit(("postgresql", parts.netloc, parts.path, theirs, "")),
        where=where,
        schema=chosen["schema"],
        pool=count(url, "pool", chosen["pool"]),
        timeout=seconds(url, "timeout", chosen["timeout"]),
    )
