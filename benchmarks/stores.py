"""What idempotency costs: claim and complete of one key per message, on each store that this machine has.

Servers are private ones, and durable: PostgreSQL with fsync, Redis with appendfsync always. DynamoDB is ministack, an
emulator in Python: its figures say what the client costs, and nothing of Amazon's.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from benchmarks.measure import Figure, timed
from busline.stores import from_url
from busline.stores.base import Claimed
from tests.store_servers import KINDS, Postgres, private

RESULT = b'{"a": "result of some bytes"}' * 7


class DurablePostgres(Postgres):
    """As it comes: a commit is on the disk."""

    settings = ("fsync=on", *Postgres.settings[1:])


def stores() -> list[str]:
    """Those that can be measured here."""
    found = [kind for kind, server in KINDS.items() if server.program() is not None]
    return ["memory", "sqlite", *found]


@contextmanager
def url_of(store: str, sqlite_url: str) -> Iterator[str]:
    """Of an empty one."""
    if store == "memory":
        yield "memory://"
    elif store == "sqlite":
        yield sqlite_url
    else:
        with private(store, DurablePostgres if store == "postgres" else KINDS[store]) as server:
            url = server.url
            yield f"{url}{'&' if '?' in url else '?'}timeout=60"


def claims(store: str, count: int, width: int) -> Callable[[str], Awaitable[Figure]]:
    """A scenario: `width` messages at a time, each claimed, and completed with a result of 200 bytes."""

    async def run(sqlite_url: str) -> Figure:
        with url_of(store, sqlite_url) as url:
            client = from_url(url)
            await client.open()
            numbers = itertools.count()

            async def one(_: int) -> None:
                claimed = await client.claim(f"shop/card.charge/{next(numbers)}", "0" * 32, lease=10, ttl=3600)
                assert isinstance(claimed, Claimed)
                await client.complete(claimed, RESULT, b"", ttl=3600)

            try:
                return await timed(f"claim + complete, {width} in flight", count, width, one)
            finally:
                await client.aclose()

    return run
