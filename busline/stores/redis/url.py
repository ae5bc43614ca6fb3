"""What a URL says: the store's own options, and what redis-py is to connect with."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit, urlunsplit

from busline.errors import ConfigurationError
from busline.stores.urls import DEFAULT_TIMEOUT, count, options, seconds, without_secrets

_OWN = {"prefix": "busline:", "pool": "10", "timeout": f"{DEFAULT_TIMEOUT:g}", "eviction": "refuse"}
_TLS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one store. `url` has the password in it."""

    url: str = field(repr=False)
    where: str
    prefix: str
    pool: int
    timeout: float
    accepts_eviction: bool


def read(url: str) -> Settings:
    """Raises ConfigurationError for what is no URL of a Redis server, without telling its password."""
    where = without_secrets(url)
    parts = urlsplit(url)
    if not parts.hostname:
        raise ConfigurationError(f"{where} names no server; write redis://:password@host:6379/0")
    if not (parts.path.strip("/") or "0").isdecimal():
        raise ConfigurationError(f"{where}: the database is {parts.path.strip('/')!r}, and must be a number")
    known = dict.fromkeys(_TLS, "")
    chosen = options(url, {**known, **_OWN})
    if chosen["eviction"] not in ("refuse", "accept"):
        raise ConfigurationError(f"{where}: eviction is {chosen['eviction']!r}, and must be refuse or accept")
    theirs = urlencode({name: chosen[name] for name in known if chosen[name]})
    return Settings(
        url=urlunsplit((parts.scheme, parts.netloc, parts.path, theirs, "")),
        where=where,
        prefix=chosen["prefix"],
        pool=count(url, "pool", chosen["pool"]),
        timeout=seconds(url, "timeout", chosen["timeout"]),
        accepts_eviction=chosen["eviction"] == "accept",
    )
