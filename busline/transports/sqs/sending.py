"""SendMessageBatch, one batcher for each queue; entries that fail are dealt with one by one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from secrets import token_hex
from typing import Any

from busline.errors import BuslineError, MessageTooLarge
from busline.transports.sqs.batching import Batcher, Item
from busline.transports.sqs.clients import PAUSE, Clients
from busline.transports.sqs.faults import Throttled, refusal
from busline.transports.sqs.names import is_fifo
from busline.transports.sqs.wire import MAX_WIRE, Parcel

REMEMBERED = 1_000
"""Queues whose batchers are kept; beyond, idle ones are dropped, the longest unused first."""


class Sender:
    """Sends to any queue, by its URL. `name` is what errors call it."""

    def __init__(self, clients: Clients, where: str, timeout: float) -> None:
        self._clients = clients
        self._where = where
        self._timeout = timeout
        self._batchers: OrderedDict[str, Batcher] = OrderedDict()

    def put(self, url: str, name: str, parcel: Parcel, group: str | None = None) -> asyncio.Future[None]:
        """Hand it over; the future ends when SQS has it. Raises nothing itself."""
        entry: dict[str, Any] = {"MessageBody": parcel.body}
        if parcel.attributes:
            entry["MessageAttributes"] = parcel.attributes
        if is_fifo(url):
            # The same id in each repetition of this very request, so that SQS knows them as one message.
            entry["MessageDeduplicationId"] = token = token_hex(16)
            entry["MessageGroupId"] = group or token
        elif parcel.delay:
            entry["DelaySeconds"] = parcel.delay
        return self._batcher(url, name).put(entry, parcel.size)

    def _batcher(self, url: str, name: str) -> Batcher:
        batcher = self._batchers.get(url)
        if batcher is None:
            if len(self._batchers) >= REMEMBERED:
                self._forget_idle()
            batcher = self._batchers[url] = self._new_batcher(url, name)
        self._batchers.move_to_end(url)
        return batcher

    def _new_batcher(self, url: str, name: str) -> Batcher:
        # In a FIFO queue the second request must not overtake the first.
        at_once = 1 if is_fifo(url) else 8
        send = partial(self._send, url, name)
        return Batcher(send, name=f"send {name}", most_bytes=MAX_WIRE, most_at_once=at_once)

    def _forget_idle(self) -> None:
        for url in [url for url, batcher in self._batchers.items() if batcher.is_idle][: REMEMBERED // 2]:
            del self._batchers[url]

    async def _send(self, url: str, name: str, items: Sequence[Item]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        pause, longest = PAUSE
        left = list(items)
        while True:
            left = await self._try(url, name, left, last=loop.time() + pause >= end)
            if not left:
                return
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    async def _try(self, url: str, name: str, items: list[Item], *, last: bool) -> list[Item]:
        """One request; returns the entries that should be tried again: refused for now, and certainly not taken."""
        entries = [{"Id": str(number), **item.entry} for number, item in enumerate(items)]
        try:
            answer = await self._ask(url, name, entries)
        except BuslineError as error:
            if len(items) > 1 and isinstance(error, MessageTooLarge):
                for item in items:  # together they were too long, or one was: each for itself tells
                    await self._try(url, name, [item], last=True)
                return []
            raise
        for taken in answer.get("Successful") or []:
            items[int(taken["Id"])].end()
        again: list[Item] = []
        for failed in answer.get("Failed") or []:
            item = items[int(failed["Id"])]
            failure = self._failure(failed, name)
            if isinstance(failure, Throttled) and not last and not is_fifo(url):
                again.append(item)
            else:
                item.end(failure)
        return again

    async def _ask(self, url: str, name: str, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return await self._clients.ask("SendMessageBatch", queue=name, handed_over=True, QueueUrl=url, Entries=entries)

    def _failure(self, failed: dict[str, Any], name: str) -> BuslineError:
        code, text = str(failed.get("Code", "")), str(failed.get("Message", ""))
        if not failed.get("SenderFault"):
            return Throttled(f"{self._where} could not take a message for {name!r}: {code} {text}")
        return refusal(code, text, self._where, "sqs:SendMessage", queue=name)

    async def close(self, timeout: float) -> None:
        """Let everything leave that was handed over."""
        await asyncio.gather(*(batcher.drain(timeout) for batcher in self._batchers.values()))
        self._batchers.clear()

    async def stop(self) -> None:
        """Drop everything."""
        await asyncio.gather(*(batcher.stop() for batcher in self._batchers.values()))
        self._batchers.clear()


async def all_of(futures: Sequence[asyncio.Future[None]]) -> None:
    """Until every one has ended; then the first error is raised."""
    if len(futures) == 1:
        await futures[0]
        return
    if futures:
        await asyncio.wait(futures)
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
