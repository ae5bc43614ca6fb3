"""What a URL says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from busline.errors import ConfigurationError
from busline.stores.urls import DEFAULT_TIMEOUT, count, options, seconds, without_secrets

_OWN = {"table": "busline", "endpoint_url": "", "create": "yes", "pool": "50", "timeout": f"{DEFAULT_TIMEOUT:g}"}
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one store. Without keys here, the machine's own AWS credentials are used."""

    where: str
    region: str
    table: str
    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    creates: bool
    pool: int
    timeout: float


def read(url: str) -> Settings:
    """Raises ConfigurationError, without telling a key."""
    parts = urlsplit(url)
    chosen = options(url, _OWN)
    shown = without_secrets(url)
    if not _TABLE.fullmatch(chosen["table"]):
        raise ConfigurationError(f"{shown}: {chosen['table']!r} is no name of a table")
    if chosen["create"] not in ("yes", "no"):
        raise ConfigurationError(f"{shown}: create is {chosen['create']!r}, and must be yes or no")
    if parts.path.strip("/"):
        raise ConfigurationError(f"{shown}: write dynamodb://REGION?table=NAME")
    if bool(parts.username) != bool(parts.password):
        raise ConfigurationError(f"{shown}: an access key needs its secret, and the other way round")
    return Settings(
        where=f"dynamodb://{parts.hostname or ''}/{chosen['table']}",
        region=parts.hostname or "",
        table=chosen["table"],
        endpoint_url=chosen["endpoint_url"],
        access_key=unquote(parts.username or ""),
        secret_key=unquote(parts.password or ""),
        creates=chosen["create"] == "yes",
        pool=count(url, "pool", chosen["pool"]),
        timeout=seconds(url, "timeout", chosen["timeout"]),
    )
