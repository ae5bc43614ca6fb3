"""Another process for the checks of stores: `python -m busline.testing.store_rival URL race PREFIX KEYS TASKS`, or
`… hold KEY LEASE`, or `… finish KEY`. It says "ready", waits for a line, does it, and says what came of it, in JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from busline.stores import from_url
from busline.stores.base import Claimed, Store

_LONG = 86400.0
"""Seconds: no lease ends while the others still ask."""


async def race(store: Store, prefix: str, keys: int, tasks: int) -> list[int]:
    """Let `tasks` tasks each ask for all keys; the numbers of those that were given to one of them.

    All in the same order, so that they meet at each key: who wins one is held up by that, and the others catch up.
    """
    won: list[int] = []

    async def ask() -> None:
        for number in range(keys):
            result = await store.claim(f"{prefix}{number}", "", lease=_LONG, ttl=_LONG)
            won.extend([number] if isinstance(result, Claimed) else [])

    await asyncio.gather(*(ask() for _ in range(tasks)))
    return won


async def hold(store: Store, key: str, lease: float) -> bool:
    """Claim the key."""
    return isinstance(await store.claim(key, "", lease=lease, ttl=_LONG), Claimed)


async def finish(store: Store, key: str) -> bool:
    """Claim and complete it, with the key as its result."""
    claimed = await store.claim(key, "", lease=_LONG, ttl=_LONG)
    assert isinstance(claimed, Claimed)
    await store.complete(claimed, key.encode(), b"outgoing", ttl=_LONG)
    return True


async def main(url: str, deed: str, key: str, *numbers: str) -> None:
    """Do the deed, say what came of it, and stay until somebody ends us."""
    store = from_url(url)
    await store.open()
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    if deed == "race":
        _say(await race(store, key, int(numbers[0]), int(numbers[1])))
    elif deed == "hold":
        _say(await hold(store, key, float(numbers[0])))
    else:
        _say(await finish(store, key))
    await asyncio.to_thread(sys.stdin.readline)
    await store.aclose()


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
