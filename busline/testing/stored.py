"""Buses with a store, for the bus checks: the transport's own, one that the harness brings, or one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from busline.bus import Bus
from busline.errors import StoreUnavailable
from busline.idempotency import fingerprint, scoped
from busline.message import Message, ToQueue
from busline.parcels import Parcel, pack
from busline.stores.base import Claimed, Store
from busline.stores.memory import MemoryStore, MemoryVault
from busline.testing.harness import Harness
from busline.transports.base import HasStore, Transport
from busline.wire import new_id


@runtime_checkable
class BringsStore(Protocol):
    """A harness whose buses are to use a store of its own."""

    def store(self) -> Store: ...


class HarnessWithStore:
    """The transport of one harness, and the store of another."""

    def __init__(self, harness: Harness, store: Callable[[], Store], name: str) -> None:
        self._harness = harness
        self.store = store
        self.name = f"{harness.name}+{name}"
        self.takeover = harness.takeover

    def transport(self) -> Transport:
        """As the other one."""
        return self._harness.transport()

    def unique(self, prefix: str) -> str:
        """As the other one."""
        return self._harness.unique(prefix)

    async def kill(self, transport: Transport) -> None:
        """As the other one."""
        await self._harness.kill(transport)

    async def pass_time(self, seconds: float) -> None:
        """As the other one."""
        await self._harness.pass_time(seconds)


_vaults: WeakKeyDictionary[Harness, MemoryVault] = WeakKeyDictionary()


def store_of(h: Harness) -> Store | None:
    """A new client of the harness's one store; None where its transports have their own."""
    return None if not isinstance(h, BringsStore) and isinstance(h.transport(), HasStore) else own_store(h)


def own_store(h: Harness) -> Store:
    """A new client of the harness's one store, or of one in memory for it."""
    return h.store() if isinstance(h, BringsStore) else MemoryStore(_vaults.setdefault(h, MemoryVault()))


def keeping(h: Harness, **options: Any) -> Bus:
    """A bus of the harness, with its store."""
    return Bus(h.transport(), **{"store": store_of(h), **options})


async def open_store(bus: Bus) -> Store:
    """The store of an open bus."""
    door = bus._open_session.door
    assert door is not None
    return await door.open()


async def abandon(
    store: Store, queue: str, message: Message, key: str, *, job: str = "", lease: float = 0.1
) -> Claimed:
    """Leave behind what a worker does that dies after it has acked a message early: a claim that keeps it."""
    claim = await store.claim(
        scoped(queue, message.topic, key),
        fingerprint(message.topic, message.body),
        lease=lease,
        ttl=600,
        job=job,
        message_id=new_id(),
        message=pack(Parcel(message, ToQueue(queue))),
    )
    assert isinstance(claim, Claimed), claim
    await asyncio.sleep(lease * 1.5)
    return claim


class Failing:
    """A store that can be told to fail: each name in `down` is a method that does not work now, and `did` lists what
    was asked of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.down: dict[str, Exception] = {}
        self.did: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def ask(*arguments: Any, **options: Any) -> Any:
            self.did.append(name)
            if (error := self.down.get(name)) is not None:
                raise error
            return await found(*arguments, **options)

        return ask

    def fail(self, *methods: str) -> None:
        """These are unavailable from now on."""
        for method in methods:
            self.down[method] = StoreUnavailable("it was told to fail")
