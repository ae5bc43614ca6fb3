"""Replies to this process's calls: a queue of its own, made with the inbox and deleted with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from secrets import token_hex

from busline.errors import BuslineError, ConfigurationError, TransportClosed
from busline.message import Destination, Message
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.ephemera import Ephemera
from busline.transports.sqs.names import REPLIES
from busline.transports.sqs.polling import MOST, Poller, Raw
from busline.transports.sqs.queues import Queues
from busline.transports.sqs.receipts import Done
from busline.transports.sqs.settling import Settler
from busline.transports.sqs.url import Settings
from busline.transports.sqs.wire import read

RETENTION = 300
"""Seconds for which a reply waits, for a caller that has stopped looking."""
WANTED = 4 * MOST
"""Replies that are asked for at once, at most."""

Send = Callable[[Destination, Message], Awaitable[None]]


class SqsInbox:
    """See `busline.transports.base.Inbox`."""

    def __init__(
        self,
        clients: Clients,
        queues: Queues,
        ephemera: Ephemera,
        settings: Settings,
        make_settler: Callable[[str, str, Done], Settler],
        send: Send,
        on_reply: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._clients = clients
        self._queues = queues
        self._ephemera = ephemera
        self._settings = settings
        self._make_settler = make_settler
        self._send = send
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._address = ""
        self._url = ""
        self._poller: Poller | None = None
        self._settler: Settler | None = None
        self._seen = Done()
        self._replacing = False
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    @property
    def address(self) -> str:
        return self._address

    @property
    def fault(self) -> str:
        """Why replies do not arrive at the moment; "" while they do."""
        return self._poller.fault if self._poller is not None else ""

    async def open(self) -> None:
        """Make the queue and begin to look into it. Raises ConfigurationError where that is not allowed."""
        if self._settings.create == "none":
            raise ConfigurationError(
                "a call needs a queue for its reply, and create=false forbids to make one: say create=ephemeral"
            )
        called = f"{self._settings.prefix}{REPLIES}{token_hex(10)}"
        attributes = {
            "MessageRetentionPeriod": str(RETENTION),
            "VisibilityTimeout": str(RETENTION),
        }
        url = await self._queues.make(called, called, attributes, self._ephemera.tags("reply"))
        self._address, self._url = called, url
        self._settler = self._make_settler(url, called, self._seen)
        self._poller = Poller(
            self._clients,
            url,
            called,
            wait=self._settings.wait,
            lease=RETENTION,
            wanted=lambda: 0 if self.closed or self._replacing else WANTED,
            arrived=self._arrived,
            gone=lambda _: self._missing(),
            denied=lambda _: None,
        )
        self._ephemera.add(url, called, self._missing)
        self._poller.kick()

    def _arrived(self, found: Sequence[Raw]) -> None:
        for raw in found:
            message_id = str(raw["MessageId"])
            if self._settler is not None:
                self._settler.discard(str(raw["ReceiptHandle"]))
            if message_id in self._seen or self.closed:
                continue
            self._seen.add(message_id)
            self._on_reply(read(raw).message)

    def _missing(self) -> None:
        """Somebody has deleted the queue: a poll has noticed, or a sign of life."""
        if not self.closed and not self._replacing:
            self._replacing = True
            self._task = asyncio.create_task(self._replace_soon(), name="busline sqs inbox")

    async def _replace_soon(self) -> None:
        while not self.closed:
            try:
                await self._replace()
                return
            except BuslineError:
                await asyncio.sleep(1.0)  # until SQS is there again

    async def _replace(self) -> None:
        """Another queue, under another name; whoever waits for a reply is told."""
        if self.closed:
            return
        await self._leave()
        self._replacing = False
        try:
            await self.open()
        except BuslineError:
            self._replacing = True
            raise
        self._on_lost()

    async def _leave(self) -> None:
        self._ephemera.drop(self._url)
        if self._poller is not None:
            await self._poller.abort()
        if self._settler is not None:
            await self._settler.stop()

    async def send(self, to: Destination, message: Message) -> None:
        if self.closed:
            raise TransportClosed("this inbox was closed")
        await self._send(to, replace(message, reply_to=self._address))

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        await self._stop_replacing()
        await self._leave()
        await self._ephemera.delete(self._url)

    async def die(self) -> None:
        """For tests: stop, and leave the queue behind."""
        self.closed = True
        await self._stop_replacing()
        await self._leave()

    async def _stop_replacing(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
