"""Which store a bus has, and the door to it, which opens when somebody first needs it."""

from __future__ import annotations

import asyncio
import os
from typing import Literal

from busline.errors import StoreUnavailable
from busline.stores import from_url
from busline.stores.base import Store
from busline.transports.base import HasStore, Transport

STORE_VARIABLE = "BUSLINE_STORE"


def door_to(given: str | Store | Literal[False] | None, transport: Transport) -> StoreDoor | None:
    """The door to the store that was given, else to that of `$BUSLINE_STORE`, else to the transport's own; None if it
    has none. False = none, whatever there is."""
    if given is False:
        return None
    wanted = given if given is not None else os.environ.get(STORE_VARIABLE) or None
    if wanted is not None:
        return StoreDoor(wanted, asked_for=True)
    return StoreDoor(transport.store_url, asked_for=False) if isinstance(transport, HasStore) else None


class StoreDoor:
    """Opens the store for whoever needs it first; once closed it stays closed."""

    def __init__(self, store: str | Store, *, asked_for: bool) -> None:
        self._given = store
        self._store: Store | None = None
        self.asked_for = asked_for
        """The user named this store; it is not only the one that his transport has anyhow."""
        self.is_open = False
        self._opening = asyncio.Lock()
        self._closed = False

    @property
    def store(self) -> Store:
        """The store, open or not. Raises ConfigurationError for a URL of none."""
        if self._store is None:
            self._store = from_url(self._given) if isinstance(self._given, str) else self._given
        return self._store

    async def open(self) -> Store:
        """The store, open. Raises ConfigurationError, StoreUnavailable."""
        store = self.store
        if self.is_open:
            return store
        async with self._opening:
            if self._closed:
                raise StoreUnavailable(f"the store {store.where} was closed with its bus")
            if not self.is_open:
                await store.open()
                self.is_open = True
        return store

    async def aclose(self) -> None:
        """Close the store, if it was opened. Idempotent."""
        self._closed = True
        async with self._opening:
            if self.is_open:
                self.is_open = False
                await self.store.aclose()
