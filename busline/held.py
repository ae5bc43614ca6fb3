"""A claim that this worker holds, for as long as it works on one message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from anyio import CancelScope, move_on_after, sleep

from busline.clock import Clock
from busline.errors import ClaimLost, ConfigurationError, StoreUnavailable
from busline.stores.base import Claimed, Store, Transactional

RECORDING = (0.1, 1.0)
"""First and longest pause between attempts to record an outcome while the claim is ours, seconds."""
ROLLBACK_TIMEOUT = 5.0
"""Seconds that undoing a transaction may take."""


class Held:
    """The claim, and the transaction of its handler's own writes, if it has begun one."""

    __slots__ = (
        "_clock",
        "_connection",
        "_ended",
        "_transaction",
        "claim",
        "lease",
        "lost",
        "sent",
        "store",
        "ttl",
        "until",
    )

    def __init__(self, store: Store, claim: Claimed, clock: Clock, *, lease: float, ttl: float, since: float) -> None:
        self.store = store
        self.claim = claim
        self.lease = lease
        self.ttl = ttl
        """Seconds for which the outcome is kept."""
        self.until = since + lease
        """Until when it is ours, by our own clock, if nothing is heard of the store."""
        self.lost = False
        self.sent = 0
        """Messages that the handler has sent through its context in this attempt."""
        self._clock = clock
        self._ended = False
        self._transaction: AbstractAsyncContextManager[Any] | None = None
        self._connection: Any = None

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.time()

    async def complete(self, result: bytes, outgoing: bytes) -> None:
        """Record the result, together with the handler's own writes. Raises ClaimLost, StoreUnavailable."""
        if self.lost:
            raise ClaimLost(self.claim.key)
        if self._transaction is not None:
            await self._commit(result, outgoing)
            self._ended = True
            return
        # What was done must be recorded, so it is tried for as long as nobody else can have begun with it.
        pause, longest = RECORDING
        while True:
            try:
                await self.store.complete(self.claim, result, outgoing, ttl=self.ttl)
            except StoreUnavailable:
                if self._clock.time() + pause >= self.until:
                    raise
                await sleep(pause)
                pause = min(longest, pause * 2)
            else:
                self._ended = True
                return

    async def _commit(self, result: bytes, outgoing: bytes) -> None:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        assert isinstance(self.store, Transactional)
        try:
            await self.store.complete_in(self._connection, self.claim, result, outgoing, ttl=self.ttl)
        except BaseException as error:
            await _undo(transaction, error)
            raise
        await transaction.__aexit__(None, None, None)

    async def fail(self, error: bytes, *, cancelled: bool = False) -> None:
        """Record that there is no further attempt. Raises ClaimLost, StoreUnavailable."""
        await self.undo()
        if self.lost:
            raise ClaimLost(self.claim.key)
        await self.store.fail(self.claim, error, ttl=self.ttl, cancelled=cancelled)
        self._ended = True

    async def let_go(self) -> None:
        """Somebody else may take the key; nothing where it is not ours any more, or its outcome is recorded."""
        await self.undo()
        if self._ended or self.lost:
            return
        self._ended = True
        try:
            await self.store.release(self.claim)
        except ClaimLost:
            self.lost = True

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """For `Context.transaction`: committed by `complete`, undone by everything else."""
        if not isinstance(self.store, Transactional):
            raise ConfigurationError(f"the store {self.store.where} is no database that a handler can write to")
        if self._transaction is not None:
            raise ConfigurationError("a message has one transaction: do everything inside one block")
        transaction = self.store.transaction()
        connection = await transaction.__aenter__()
        try:
            yield connection
        except BaseException as error:
            await _undo(transaction, error)
            raise
        self._transaction, self._connection = transaction, connection

    async def begin_again(self) -> None:
        """The next attempt follows at once, under the same claim."""
        self.sent = 0
        await self.undo()

    async def undo(self) -> None:
        """Roll back what the handler has written and was not committed."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await _undo(transaction, asyncio.CancelledError())


async def _undo(transaction: AbstractAsyncContextManager[Any], error: BaseException) -> None:
    with CancelScope(shield=True), move_on_after(ROLLBACK_TIMEOUT):
        try:
            await transaction.__aexit__(type(error), error, error.__traceback__)
        except BaseException as again:
            if again is not error:
                raise
