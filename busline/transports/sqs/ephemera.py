"""Queues that live as long as a process: it says now and then that it lives, and others clean up after it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import time

from busline.errors import BuslineError, QueueNotFound
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.faults import Denied
from busline.transports.sqs.names import REPLIES, last_part
from busline.transports.sqs.register import ALIVE, KIND, PREFIX, Register
from busline.transports.sqs.url import Settings

ROUND = 10
"""Signs of life between two looks for queues whose owners have gone."""
LOOK = 50
"""Queues of others that one look reads, chosen at random: with many processes, each need not see all."""


class Ephemera:
    """Those of this process."""

    def __init__(self, clients: Clients, register: Register, settings: Settings) -> None:
        self._clients = clients
        self._register = register
        self._settings = settings
        self._mine: dict[str, tuple[str, Callable[[], None] | None]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def names(self) -> list[str]:
        """Of the queues that go with this process."""
        return [name for name, _ in self._mine.values()]

    def tags(self, kind: str) -> dict[str, str]:
        """With which such a queue is made."""
        return {KIND: kind, PREFIX: self._settings.prefix, ALIVE: str(int(time()))}

    def add(self, url: str, name: str, on_missing: Callable[[], None] | None = None) -> None:
        """Keep it alive. `on_missing` is called when somebody has deleted it."""
        self._mine[url] = (name, on_missing)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="busline sqs signs of life")

    def drop(self, url: str) -> None:
        """It is none of these any more."""
        self._mine.pop(url, None)

    async def delete(self, url: str) -> None:
        """Delete it at SQS; one that is gone already is fine, and so is one that others will have to delete."""
        name, _ = self._mine.pop(url, (last_part(url), None))
        try:
            await self._clients.ask("DeleteQueue", queue=name, QueueUrl=url)
        except BuslineError:
            pass  # gone already, or its owner is soon gone for others, who delete it then

    async def _run(self) -> None:
        turn = random.randrange(ROUND)
        while True:
            await asyncio.sleep(self._settings.heartbeat * random.uniform(0.8, 1.0))
            for url in list(self._mine):
                await self._sign(url)
            turn += 1
            if turn % ROUND == 0:
                await self._reap()

    async def _sign(self, url: str) -> None:
        name, on_missing = self._mine.get(url, ("", None))
        try:
            await self._clients.ask("TagQueue", queue=name, QueueUrl=url, Tags={ALIVE: str(int(time()))})
        except QueueNotFound:
            if on_missing is not None and url in self._mine:
                on_missing()
        except BuslineError:
            pass  # the next sign may come through; ten must fail before anybody believes it

    async def _reap(self) -> None:
        """Delete queues for replies whose owners have gone."""
        try:
            urls = await self._register.urls(self._settings.prefix + REPLIES)
            others = [url for url in urls if url not in self._mine]
            for url in random.sample(others, min(LOOK, len(others))):
                await self._reap_one(url)
        except BuslineError:
            pass  # nothing depends on it, and others look, too

    async def _reap_one(self, url: str) -> None:
        try:
            answer = await self._clients.ask("ListQueueTags", queue=last_part(url), QueueUrl=url)
            alive = (answer.get("Tags") or {}).get(ALIVE, "")
            if alive.isdigit() and time() - int(alive) > self._settings.gone_after:
                await self._clients.ask("DeleteQueue", queue=last_part(url), QueueUrl=url)
        except (QueueNotFound, Denied):
            pass  # somebody else was faster, or it is left to somebody who may

    async def close(self) -> None:
        """Delete them all."""
        await self.stop()
        await asyncio.gather(*map(self.delete, list(self._mine)))

    async def stop(self) -> None:
        """No further sign of life."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
