"""Transports by URL scheme. A scheme's module is imported only when a URL asks for it.

Third parties add a scheme by an entry point in the group `busline.transports`: its name is the scheme, its object a
callable that takes the URL and returns a `busline.transports.base.Transport`, unopened.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from busline.errors import ConfigurationError
from busline.transports.base import Transport

ENTRY_POINT_GROUP = "busline.transports"

_BUILT_IN = {
    "amqp": "busline.transports.amqp:from_url",
    "amqps": "busline.transports.amqp:from_url",
    "memory": "busline.transports.memory:from_url",
    "sqlite": "busline.transports.sqlite:from_url",
    "sqs": "busline.transports.sqs:from_url",
}


def from_url(url: str) -> Transport:
    """The transport that serves `url`, unopened. Raises ConfigurationError for a scheme that nobody provides."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        what = "what is given" if "@" in url else repr(url)  # it may have a password in it
        raise ConfigurationError(f"{what} is not a URL; write for example sqlite:///busline.db or memory://")
    return _factory(scheme)(url)


def _factory(scheme: str) -> Callable[[str], Transport]:
    if target := _BUILT_IN.get(scheme):
        module, _, name = target.partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]  # one of the two above
    from importlib.metadata import entry_points  # which is slow to import

    third_party = entry_points(group=ENTRY_POINT_GROUP)
    for entry in third_party.select(name=scheme):
        return entry.load()  # type: ignore[no-any-return]  # what an entry point loads is the installer's promise
    known = sorted({*_BUILT_IN, *third_party.names})
    raise ConfigurationError(f"no transport is installed for {scheme}://; installed are {', '.join(known)}")
