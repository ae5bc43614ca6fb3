"""A transport inside one process, as rude as a broker across the network.

It copies what it is given, leases what it hands out, redelivers what nobody settled, delivers equals in shuffled
order and forgets a client that dies. It passes the checks that every transport passes, so a program that runs on it
has met what it will meet in production, except the network and the power cut: what it holds ends with the process.

`MemoryBroker` holds the queues; each `MemoryTransport` is one client of it, and stands for one process. A broker
belongs to one event loop at a time.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit
from weakref import WeakValueDictionary

from busline.errors import ConfigurationError
from busline.transports.memory.broker import LEASE, MemoryBroker
from busline.transports.memory.transport import MemoryTransport

__all__ = ["MemoryBroker", "MemoryTransport", "from_url"]

_named: WeakValueDictionary[str, MemoryBroker] = WeakValueDictionary()  # so that one URL means one broker


def from_url(url: str) -> MemoryTransport:
    """A client of a new broker (`memory://`), or of the one that this process knows by a name (`memory://name`).

    A named broker lives as long as a transport of it. `?lease=SECONDS` sets how long a delivery stays ours.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    lease = _seconds(options.pop("lease")) if "lease" in options else None
    if options:
        raise ConfigurationError(f"memory:// has no option {', '.join(sorted(options))}; it knows: lease")
    return MemoryTransport(_broker(parts.netloc + parts.path, lease))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0.0:
        raise ConfigurationError(f"memory://?lease={text}: a lease is a number of seconds above 0")
    return seconds


def _broker(name: str, lease: float | None) -> MemoryBroker:
    broker = _named.get(name) if name else None
    if broker is None:
        broker = MemoryBroker(lease=lease or LEASE, name=name)
        if name:
            _named[name] = broker
    elif lease not in (None, broker.lease):
        raise ConfigurationError(f"memory://{name} exists already, with lease={broker.lease:g}, not {lease:g}")
    return broker
