"""Stores by URL scheme. A scheme's module is imported only when a URL asks for it.

Third parties add a scheme by an entry point in the group `busline.stores`: its name is the scheme, its object a
callable that takes the URL and returns a `busline.stores.base.Store`, unopened.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from busline.errors import ConfigurationError
from busline.stores.base import Store

ENTRY_POINT_GROUP = "busline.stores"

_BUILT_IN = {
    "memory": "busline.stores.memory:from_url",
    "sqlite": "busline.stores.sqlite:from_url",
    "redis": "busline.stores.redis:from_url",
    "rediss": "busline.stores.redis:from_url",
    "postgresql": "busline.stores.postgres:from_url",
    "postgres": "busline.stores.postgres:from_url",
    "dynamodb": "busline.stores.dynamodb:from_url",
}


def from_url(url: str) -> Store:
    """The store that serves `url`, unopened. Raises ConfigurationError for a scheme that nobody provides."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        what = "what is given" if "@" in url else repr(url)  # it may have a password in it
        raise ConfigurationError(f"{what} is not a URL of a store; write for example redis://localhost/0")
    return _factory(scheme)(url)


def _factory(scheme: str) -> Callable[[str], Store]:
    if target := _BUILT_IN.get(scheme):
        module, _, name = target.partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]  # one of those above
    from importlib.metadata import entry_points  # which is slow to import

    third_party = entry_points(group=ENTRY_POINT_GROUP)
    for entry in third_party.select(name=scheme):
        return entry.load()  # type: ignore[no-any-return]  # what an entry point loads is the installer's promise
    known = sorted({*_BUILT_IN, *third_party.names})
    raise ConfigurationError(f"no store is installed for {scheme}://; installed are {', '.join(known)}")
