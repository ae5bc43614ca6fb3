"""What people who look after the queues see and do. SQS lets nobody look without taking: each look is a delivery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from busline.errors import QueueNotFound
from busline.message import Message, QueueStats
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.names import is_fifo, tag_text
from busline.transports.sqs.polling import MOST
from busline.transports.sqs.queues import Queues
from busline.transports.sqs.receipts import SYSTEM_ATTRIBUTES, Receipt, receipt_of
from busline.transports.sqs.register import AT_ONCE, Entry, Register
from busline.transports.sqs.sending import Sender, all_of
from busline.transports.sqs.settling import Settler
from busline.transports.sqs.wire import GROUP, again

HOLD = 30
"""Seconds for which what is looked at is hidden from others, at most."""
DUE = 0.05


class Inspection:
    """Of all queues of this prefix."""

    def __init__(
        self,
        clients: Clients,
        queues: Queues,
        register: Register,
        sender: Sender,
        make_settler: Callable[[str, str], Settler],
    ) -> None:
        self._clients = clients
        self._queues = queues
        self._register = register
        self._sender = sender
        self._make_settler = make_settler

    async def stats(self) -> Sequence[QueueStats]:
        """By name. What is delayed cannot be looked at, so it is not told either, as the contract has it."""
        self._register.forget()
        entries = await self._register.entries()
        gate = asyncio.Semaphore(AT_ONCE)

        async def count(entry: Entry) -> QueueStats | None:
            async with gate:
                try:
                    return await self._count(entry)
                except QueueNotFound:  # deleted since it was listed
                    return None

        found = await asyncio.gather(*(count(entries[name]) for name in sorted(entries)))
        return [stats for stats in found if stats is not None]

    async def _count(self, entry: Entry) -> QueueStats:
        attributes = await self._queues.attributes(entry.url, entry.name)
        return QueueStats(
            entry.name,
            int(attributes.get("ApproximateNumberOfMessages", 0)),
            None,
            int(attributes.get("ApproximateNumberOfMessagesNotVisible", 0)),
            None,
            frozenset(map(tag_text, entry.topics)),
            entry.patterns,
            entry.is_ephemeral,
        )

    async def peek(self, queue: str, limit: int) -> Sequence[Message]:
        """Taken, read and given back."""
        url = await self._queues.find(queue)
        settler = self._make_settler(url, queue)
        seen: list[Receipt] = []
        try:
            async for receipts in self._waiting(url, queue, limit, settler):
                seen += receipts
        finally:
            await settler.show(seen)
            await settler.close(HOLD)
        return [receipt.letter.message for receipt in seen]

    async def purge(self, queue: str) -> int:
        """By taking and deleting: PurgeQueue would delete what is being worked on, too."""
        url = await self._queues.find(queue)
        settler = self._make_settler(url, queue)
        number = 0
        async for receipts in self._waiting(url, queue, 1_000_000, settler):
            await all_of([settler.delete(receipt) for receipt in receipts])
            number += len(receipts)
        await settler.close(HOLD)
        return number

    async def move(self, source: str, to: str, limit: int) -> int:
        """Sent there, confirmed, and then deleted here."""
        url, target = await self._queues.find(source), await self._queues.find(to)
        settler = self._make_settler(url, source)
        number = 0
        async for receipts in self._waiting(url, source, limit, settler):
            copies = [again(each.raw, each.letter, delay=0.0, deliveries=0) for each in receipts]
            groups = [each.letter.message.headers.get(GROUP) for each in receipts]
            sent = [self._sender.put(target, to, copy, group) for copy, group in zip(copies, groups, strict=True)]
            await all_of(sent)
            await all_of([settler.delete(receipt) for receipt in receipts])
            number += len(receipts)
        await settler.close(HOLD)
        return number

    async def _waiting(self, url: str, queue: str, limit: int, settler: Settler) -> AsyncIterator[Sequence[Receipt]]:
        """What could be delivered now, ten at a time; what has expired is deleted, what is delayed hidden again."""
        attributes = await self._queues.attributes(url, queue)
        counted = int(attributes.get("ApproximateNumberOfMessages", 1))
        delayed: list[Receipt] = []
        try:
            async for receipts in self._found(url, queue, limit, counted, settler, delayed):
                yield receipts
        finally:
            await settler.show(delayed)

    async def _found(
        self, url: str, queue: str, limit: int, counted: int, settler: Settler, delayed: list[Receipt]
    ) -> AsyncIterator[Sequence[Receipt]]:
        seen = 0
        while seen < limit:
            found = await self._clients.poll(
                queue,
                QueueUrl=url,
                MaxNumberOfMessages=min(MOST, limit - seen),
                # Only a poll that waits asks all of SQS's servers; where nothing is left by its count, one look does.
                WaitTimeSeconds=1 if seen < counted else 0,
                VisibilityTimeout=HOLD,
                MessageSystemAttributeNames=SYSTEM_ATTRIBUTES,
                MessageAttributeNames=["All"],
            )
            if not found:
                return
            receipts = [receipt_of(raw, HOLD, "") for raw in found]
            counted -= sum(receipt.has_expired for receipt in receipts)
            for receipt in receipts:
                if receipt.has_expired:
                    settler.delete(receipt)
                elif receipt.delay_left > DUE and is_fifo(queue):
                    delayed.append(receipt)
                elif receipt.delay_left > DUE:
                    await settler.release([receipt], receipt.delay_left)
            kept = [each for each in receipts if not each.has_expired and each.delay_left <= DUE]
            seen += len(kept)
            yield kept
