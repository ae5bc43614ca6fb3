"""Telling SQS what became of the messages of one queue: deleted, kept for longer, given back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from math import ceil
from secrets import token_hex
from time import monotonic, time
from typing import Any

from busline.errors import BuslineError, ConnectionLost, LeaseLost, MessageTooLarge, QueueNotFound
from busline.message import Delivery
from busline.transports.sqs.batching import MOST, Batcher, Item
from busline.transports.sqs.clients import PAUSE, Clients
from busline.transports.sqs.faults import NOT_OURS, Refused, Throttled, code_of
from busline.transports.sqs.names import is_fifo
from busline.transports.sqs.receipts import Done, Receipt, counted
from busline.transports.sqs.sending import Sender, all_of
from busline.transports.sqs.wire import Parcel, again


class Settler:
    """Of one queue, known by `url` and called `name`."""

    def __init__(self, clients: Clients, sender: Sender, url: str, name: str, done: Done, *, renew: bool) -> None:
        self._clients = clients
        self._sender = sender
        self.url = url
        self.name = name
        self._done = done
        self._renew = renew
        self._token = token_hex(4)
        self._deletes = Batcher(self._delete_batch, name=f"delete {name}")

    async def probe(self) -> None:
        """Raises Denied if messages could not be received here, or be received and not be settled: better now than
        with the first one."""
        nobodys = {"Id": "0", "ReceiptHandle": "busline-probe"}
        asked: dict[str, dict[str, Any]] = {
            "ReceiveMessage": {"MaxNumberOfMessages": 0, "WaitTimeSeconds": 0},
            "DeleteMessageBatch": {"Entries": [nobodys]},
        }
        if self._renew:
            asked["ChangeMessageVisibilityBatch"] = {"Entries": [{**nobodys, "VisibilityTimeout": 0}]}
        for action, request in asked.items():
            try:
                await self._clients.ask(action, queue=self.name, QueueUrl=self.url, **request)
            except Refused:
                continue  # as it should be: no messages cannot be asked for, and there is no such receipt handle

    # -- deleting -------------------------------------------------------------------------------------------------

    def delete(self, receipt: Receipt) -> asyncio.Future[None]:
        """Begin to delete it. What cannot be deleted is remembered, and deleted when it comes again."""
        ended = self._deletes.put({"ReceiptHandle": receipt.handle, "until": receipt.until})
        ended.add_done_callback(partial(self._note, receipt))
        return ended

    def discard(self, handle: str) -> None:
        """Delete a message of a queue that is this process's own; what stays goes with the queue."""
        self._deletes.put({"ReceiptHandle": handle, "until": 0.0})

    def _note(self, receipt: Receipt, ended: asyncio.Future[None]) -> None:
        if ended.cancelled() or ended.exception() is not None:
            self._done.add(receipt.message_id)

    async def _delete_batch(self, items: Sequence[Item]) -> None:
        left = list(items)
        pause, longest = PAUSE
        while left:
            left = await self._try_delete(left)
            if not left:
                return
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    async def _try_delete(self, items: list[Item]) -> list[Item]:
        """One request; returns what should be tried again, because it is ours still."""
        entries = [{"Id": str(at), "ReceiptHandle": item.entry["ReceiptHandle"]} for at, item in enumerate(items)]
        try:
            answer = await self._clients.ask("DeleteMessageBatch", queue=self.name, QueueUrl=self.url, Entries=entries)
        except BuslineError as error:
            return self._again(items, error)
        for deleted in answer.get("Successful") or []:
            items[int(deleted["Id"])].end()
        again: list[Item] = []
        for failed in answer.get("Failed") or []:
            item, code = items[int(failed["Id"])], code_of(str(failed.get("Code", "")))
            if failed.get("SenderFault") or code in NOT_OURS:
                item.end(LeaseLost(f"a message of {self.name!r} was no longer ours when it was acked: {code}"))
            else:
                again += self._again([item], Throttled(f"a message of {self.name!r} could not be deleted: {code}"))
        return again

    def _again(self, items: Sequence[Item], error: BuslineError) -> list[Item]:
        """Those for which there is time left."""
        passing = not isinstance(error, (Refused, QueueNotFound))
        left = [item for item in items if passing and monotonic() < item.entry["until"]]
        for item in items:
            if item not in left:
                item.end(error)
        return left

    # -- keeping --------------------------------------------------------------------------------------------------

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        """Keep them for `lease` seconds from now; returns those that are lost. Raises what prevented it, if there is
        time to try again."""
        lost = [each for each in deliveries if not each.receipt.settled and not each.receipt.is_ours]
        mine = [each for each in deliveries if each.receipt.is_ours]
        chunks = [mine[at : at + MOST] for at in range(0, len(mine), MOST)]
        results = await asyncio.gather(*(self._extend(chunk, lease) for chunk in chunks), return_exceptions=True)
        errors: list[BaseException] = []
        for chunk, result in zip(chunks, results, strict=True):
            if isinstance(result, BaseException):
                errors.append(result)
                lost += [each for each in chunk if not each.receipt.settled and not each.receipt.is_ours]
            else:
                lost += result
        if errors and not lost:
            raise errors[0]
        return lost

    async def _extend(self, deliveries: Sequence[Delivery], lease: float) -> list[Delivery]:
        asked = monotonic()
        longest = [each.receipt.longest(ceil(lease)) for each in deliveries]
        entries = [
            {"Id": str(at), "ReceiptHandle": each.receipt.handle, "VisibilityTimeout": seconds}
            for at, (each, seconds) in enumerate(zip(deliveries, longest, strict=True))
            if seconds > 0
        ]
        lost = [each for each, seconds in zip(deliveries, longest, strict=True) if seconds <= 0]
        if entries:
            patience = max(0.05, min(each.receipt.until for each in deliveries) - asked)
            try:
                async with asyncio.timeout(patience):  # a request that hangs must not hide that the lease has ended
                    answer = await self._change(entries)
            except TimeoutError:
                text = f"sqs:ChangeMessageVisibility of {self.name!r} was not answered while the lease lasted"
                raise ConnectionLost(text) from None
            for kept in answer.get("Successful") or []:
                _keep(deliveries[int(kept["Id"])], asked, longest[int(kept["Id"])])
            lost += [
                deliveries[int(failed["Id"])]
                for failed in answer.get("Failed") or []
                if failed.get("SenderFault") or code_of(str(failed.get("Code", ""))) in NOT_OURS
            ]
        return [each for each in lost if not each.receipt.settled]

    async def _change(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return await self._clients.ask(
            "ChangeMessageVisibilityBatch", queue=self.name, QueueUrl=self.url, Entries=entries
        )

    # -- giving back ----------------------------------------------------------------------------------------------

    async def release(self, receipts: Sequence[Receipt], delay: float) -> None:
        """Give back, uncounted: by a copy, since SQS counts as a delivery what is merely made visible again. In a
        FIFO queue, where the place in the group matters more than the count, it is made visible."""
        if is_fifo(self.name):
            await self.show(receipts, delay)
            return
        copies: list[tuple[Receipt, Parcel]] = []
        for receipt in receipts:
            if receipt.has_expired:
                self.delete(receipt)
                continue
            try:
                copies.append((receipt, copy_of(receipt, delay, self._token)))
            except MessageTooLarge:  # a few bytes more than SQS takes: rather counted than lost
                await self.show([receipt], delay)
        sent = [self._sender.put(self.url, self.name, parcel) for _, parcel in copies]
        for ended, (receipt, _) in zip(sent, copies, strict=True):
            ended.add_done_callback(partial(self._sent, receipt))
        await all_of(sent)

    async def give_back(self, receipts: Sequence[Receipt]) -> None:
        """What a poll brought and nobody waits for: made visible. Our own copy of something that was given back just
        now, which that very poll has caught, is given back as before, or it would be counted after all."""
        own = [each for each in receipts if each.letter.driver.get("r") == self._token]
        await self.show([each for each in receipts if each not in own])
        if own:
            await self.release(own, 0.0)

    def _sent(self, receipt: Receipt, ended: asyncio.Future[None]) -> None:
        """The copy is there: the original goes."""
        if not ended.cancelled() and ended.exception() is None:
            self.delete(receipt)

    async def show(self, receipts: Sequence[Receipt], delay: float = 0.0) -> None:
        """Let SQS deliver them again after `delay` seconds. What fails comes again when its lease ends, and so does
        everything where leases must not be changed."""
        if not self._renew:
            return
        for at in range(0, len(receipts), MOST):
            chunk = receipts[at : at + MOST]
            seconds = [each.longest(ceil(delay)) if delay else 0 for each in chunk]
            await self._change(
                [
                    {"Id": str(number), "ReceiptHandle": each.handle, "VisibilityTimeout": seconds[number]}
                    for number, each in enumerate(chunk)
                ]
            )

    async def close(self, timeout: float) -> None:
        """Let the deletions leave."""
        await self._deletes.drain(timeout)

    async def stop(self) -> None:
        """Drop them."""
        await self._deletes.stop()


def _keep(delivery: Delivery, asked: float, seconds: int) -> None:
    receipt: Receipt = delivery.receipt
    receipt.until = asked + counted(seconds)
    delivery.leased_until = time() + receipt.until - monotonic()


def copy_of(receipt: Receipt, delay: float, by: str) -> Parcel:
    """The same message again, as it came, with the count that it has. Raises MessageTooLarge."""
    before = receipt.letter.deliveries_before + receipt.count - 1
    return again(receipt.raw, receipt.letter, delay=delay, deliveries=before, by=by)
