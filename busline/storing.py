"""Which store a bus has, and the door to it, which opens when somebody first needs it."""

from __future__ import annotations

import asyncio
import os

from busline.errors import StoreUnavailable
from busline.stores import from_url
from busline.stores.base import Store
from busline.transports.base import HasStore, Transport

STORE_VARIABLE = "BUSLINE_STORE"


def store_of(given: str | Store | None, transport: Transport) -> tuple[Store | None, bool]:
    """The store that was given, else that of `$BUSLINE_STORE`, else the transport's own, else None; and whether
    somebody asked for it."""
    wanted = given if given is not None else os.environ.get(STORE_VARIABLE) or None
    if wanted is not None:
        return (from_url(wanted) if isinstance(wanted, str) else wanted), True
    return (from_url(transport.store_url) if isinstance(transport, HasStore) else None), False


class StoreDoor:
    """Opens the store for whoever needs it first; once closed it stays closed."""

    def __init__(self, store: Store, *, asked_for: bool) -> None:
        self.store = store
        self.asked_for = asked_for
        """The user named this store; it is not only the one that his transport has anyhow."""
        self.is_open = False
        self._opening = asyncio.Lock()
        self._closed = False

    async def open(self) -> Store:
        """The store, open. Raises ConfigurationError, StoreUnavailable."""
        if self.is_open:
            return self.store
        async with self._opening:
            if self._closed:
                raise StoreUnavailable(f"the store {self.store.where} was closed with its bus")
            if not self.is_open:
                await self.store.open()
                self.is_open = True
        return self.store

    async def aclose(self) -> None:
        """Close the store, if it was opened. Idempotent."""
        self._closed = True
        async with self._opening:
            if self.is_open:
                self.is_open = False
                await self.store.aclose()
