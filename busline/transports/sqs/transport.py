"""The transport itself: what goes where, and who does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import time

from busline.errors import BuslineError, ConfigurationError, NoHandler, QueueNotFound, TransportClosed
from busline.message import Destination, Health, Limits, Message, QueueSpec, QueueStats, ToQueue
from busline.transports.base import Remark
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.consuming import SqsConsumer, Terms
from busline.transports.sqs.ephemera import Ephemera
from busline.transports.sqs.events import Events, is_meant
from busline.transports.sqs.examining import Examination
from busline.transports.sqs.inbox import SqsInbox
from busline.transports.sqs.inspection import Inspection
from busline.transports.sqs.names import REPLIES, is_fifo
from busline.transports.sqs.queues import Known, Queues
from busline.transports.sqs.receipts import Done
from busline.transports.sqs.register import Register
from busline.transports.sqs.sending import Sender, all_of
from busline.transports.sqs.settling import Settler
from busline.transports.sqs.url import Settings, parse
from busline.transports.sqs.wire import GROUP, MAX_BYTES, MAX_EVENT, MAX_WIRE, Letter, Parcel, check, parcel

LEAVING = 5.0
"""Seconds that what was handed over may take to leave when the transport is closed."""


def from_url(url: str) -> SqsTransport:
    """`sqs://REGION?option=…`; see `url.Settings` for the options. Raises ConfigurationError for whatever is unknown
    or missing."""
    return SqsTransport(parse(url))


class SqsTransport:
    """One client of SQS in one region, whose queues share a prefix."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gate = asyncio.Lock()
        self._open = False
        self._closed = False
        self._make()

    def _make(self) -> None:
        """What one opening needs; nothing connects yet."""
        settings = self._settings
        self._clients = Clients(settings)
        self._queues = Queues(self._clients, settings)
        self._register = Register(self._clients, settings)
        self._sender = Sender(self._clients, settings.where, settings.timeout)
        self._ephemera = Ephemera(self._clients, self._register, settings)
        self._events = Events(self._clients, self._queues, self._register, settings)
        self._register.before_burial = self._events.unlisten
        self._inspection = Inspection(self._clients, self._queues, self._register, self._sender, self._settler)
        self._attached: dict[str, tuple[QueueSpec, str, Limits]] = {}
        self._consumers: list[SqsConsumer] = []
        self._settlers: list[Settler] = []
        self._inbox: SqsInbox | None = None
        self._since = 0.0

    @property
    def where(self) -> str:
        return self._settings.where

    @property
    def shared_clock(self) -> bool:
        return False

    async def open(self) -> None:
        async with self._gate:
            if self._open:
                return
            if self._closed:
                self._make()
            try:
                await self._clients.open()
                await self._register.entries()
            except BaseException:
                await self._clients.close()
                self._make()
                raise
            self._open, self._closed, self._since = True, False, time()

    def _opened(self) -> None:
        if not self._open:
            raise TransportClosed(f"the transport to {self.where} is not open")

    def _settler(self, url: str, name: str, done: Done | None = None) -> Settler:
        return Settler(self._clients, self._sender, url, name, done or Done(), renew=self._settings.renew)

    # -- queues ---------------------------------------------------------------------------------------------------

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        self._opened()
        self._queues.check(queue, fanout=self._fanout)
        if queue.passive or not create:
            known = await self._queues.look(queue.name)
            if queue.passive:
                await self._check_passive(queue)
        else:
            tags = self._ephemera.tags("ephemeral") if queue.ephemeral else {}
            known = await self._queues.declare(queue, tags)
            if queue.ephemeral:
                self._ephemera.add(known.url, queue.name)
            try:
                await self._record(queue, known)
            except BaseException:
                self._ephemera.drop(known.url)
                raise
        limits = self._queues.limits(queue, known, fanout=self._fanout)
        self._attached[queue.name] = (queue, known.url, limits)
        return limits

    @property
    def _fanout(self) -> bool:
        return self._settings.events and not self._events.denied

    async def _record(self, queue: QueueSpec, known: Known) -> None:
        """Listen before anybody is told of it, and tell before listening ends."""
        before = (await self._register.entries(believed=0.0)).get(queue.name)
        if queue.patterns and (before is None or before.patterns != queue.patterns):
            self._register.check_owners(queue, await self._register.entries())
            await self._events.listen(queue, known)
        recorded = await self._register.record(queue, known.url, stamp=time())
        if queue.patterns and not recorded:
            raise ConfigurationError(
                f"queue {queue.name!r} cannot listen to events at {self.where}: {self._register.denied} is not "
                "permitted"
            )
        if before is not None and before.patterns and not queue.patterns:
            await self._events.unlisten(before)

    async def _check_passive(self, queue: QueueSpec) -> None:
        entry = (await self._register.entries(believed=0.0)).get(queue.name)
        for topic in queue.topics:
            owner = await self._register.owner(topic)
            if owner is None or owner.name != queue.name:
                raise ConfigurationError(
                    f"queue {queue.name!r} is passive and does not have topic {topic!r}; whoever made it has to give it"
                )
        missing = queue.patterns - (entry.patterns if entry is not None else frozenset())
        if missing:
            raise ConfigurationError(f"queue {queue.name!r} is passive and does not listen to {sorted(missing)}")

    async def detach(self, queue: str, *, delete: bool = False) -> None:
        self._opened()
        self._attached.pop(queue, None)
        if not delete:
            return
        try:
            url = await self._queues.find(queue)
            self._ephemera.drop(url)
            entry = (await self._register.entries()).get(queue)
            if entry is not None and entry.patterns:
                await self._events.unlisten(entry)
            await self._clients.ask("DeleteQueue", queue=queue, QueueUrl=url)
        except QueueNotFound:
            return
        self._queues.forget(queue)
        await self._register.removed()

    async def consume(self, queue: str, *, slots: int, prefetch: int = 1) -> SqsConsumer:
        self._opened()
        if queue not in self._attached:
            raise ConfigurationError(f"queue {queue!r} was not attached by this client")
        spec, url, limits = self._attached[queue]
        settings, done = self._settings, Done()
        terms = Terms(
            queue,
            url,
            next(iter(spec.topics)) if len(spec.topics) == 1 else "",
            settings.lease,
            settings.wait,
            limits.max_release_delay,
            spec.ephemeral,
        )
        settler = self._settler(url, queue, done)
        await settler.probe()
        self._settlers.append(settler)
        consumer = SqsConsumer(
            self._clients,
            settler,
            terms,
            done,
            slots=slots,
            prefetch=prefetch,
            is_known=lambda letter: queue in self._attached and is_meant(letter, self._attached[queue][0].patterns),
            is_meant=lambda letter: self._is_meant(queue, letter),
            on_close=self._consumers.remove,
        )
        for each in self._consumers:
            each.succeeded(queue)
        self._consumers.append(consumer)
        return consumer

    async def _is_meant(self, queue: str, letter: Letter) -> bool:
        entry = (await self._register.entries(believed=0.0)).get(queue)
        return entry is not None and is_meant(letter, entry.patterns)

    # -- messages -------------------------------------------------------------------------------------------------

    async def send(self, to: Destination, *messages: Message) -> None:
        self._opened()
        await self._send(to, [(self._parcel(message, to), message.headers.get(GROUP)) for message in messages])

    def _parcel(self, message: Message, to: Destination | None = None) -> Parcel:
        attached = self._attached.get(to.queue) if isinstance(to, ToQueue) else None
        limit = attached[2].max_bytes if attached is not None else MAX_BYTES
        check(message, limit)
        return parcel(message, limit=limit + MAX_WIRE - MAX_BYTES)

    async def _send(self, to: Destination, parcels: Sequence[tuple[Parcel, str | None]]) -> None:
        if not parcels:
            return
        if isinstance(to, ToQueue):
            await self._put(await self._queues.url(to.queue), to.queue, parcels)
            return
        try:
            await self._put(*await self._owner(to.topic), parcels)
        except QueueNotFound:  # deleted since its tags were read
            self._register.forget()
            await self._put(*await self._owner(to.topic), parcels)

    async def _owner(self, topic: str) -> tuple[str, str]:
        owner = await self._register.owner(topic)
        if owner is None:
            denied = self._register.denied
            hint = f" ({denied} is not permitted there, so owners cannot be looked up: say routes=)" if denied else ""
            raise NoHandler(topic, self.where + hint)
        return owner.url, owner.name

    async def _put(self, url: str, name: str, parcels: Sequence[tuple[Parcel, str | None]]) -> None:
        try:
            await all_of([self._sender.put(url, name, parcel, group) for parcel, group in parcels])
        except QueueNotFound:
            self._queues.forget(name)
            raise

    async def publish(self, topic: str, *messages: Message) -> bool:
        self._opened()
        for message in messages:
            check(message, MAX_EVENT)
        return await self._events.publish(topic, messages)

    async def open_inbox(self, on_reply: Callable[[Message], None], on_lost: Callable[[], None]) -> SqsInbox:
        self._opened()
        if self._inbox is not None and not self._inbox.closed:
            raise ConfigurationError("this transport has an inbox already; a transport has one")
        inbox = SqsInbox(
            self._clients,
            self._queues,
            self._ephemera,
            self._settings,
            self._settler,
            self._send_call,
            on_reply,
            on_lost,
        )
        await inbox.open()
        self._inbox = inbox
        return inbox

    async def _send_call(self, to: Destination, message: Message) -> None:
        await self._send(to, [(self._parcel(message, to), message.headers.get(GROUP))])

    async def reply(self, address: str, message: Message) -> bool:
        self._opened()
        sent = self._parcel(message)
        if not address.startswith(self._settings.prefix + REPLIES) or len(address) > 80 or is_fifo(address):
            return False
        try:
            url = await self._queues.url_called(address)
            await self._put(url, address, [(sent, None)])
        except QueueNotFound:
            return False
        return True

    # -- health and end -------------------------------------------------------------------------------------------

    def health(self) -> Health:
        if not self._open:
            return Health("down" if self._closed else "unknown", detail="closed" if self._closed else "not opened")
        pollers = [consumer.poller for consumer in self._consumers]
        faulty = [poller for poller in pollers if poller.fault]
        if faulty:
            since = max(poller.since for poller in faulty)
            return Health("down" if len(faulty) == len(pollers) else "degraded", since, faulty[0].fault)
        if self._inbox is not None and self._inbox.fault:
            return Health("degraded", self._since, self._inbox.fault)
        if self._register.denied:
            what = f"{self._register.denied} is not permitted: callers need routes="
            return Health("healthy", self._since, what)
        return Health("healthy", max([self._since, *(poller.since for poller in pollers)]))

    async def stats(self) -> Sequence[QueueStats]:
        self._opened()
        return await self._inspection.stats()

    async def examine(self, queue: QueueSpec, max_deliveries: int) -> Sequence[Remark]:
        self._opened()
        known = await self._queues.look(queue.name)
        settler = self._settler(known.url, queue.name)
        examination = Examination(self._queues, self._register, self._events, settler, queue)
        try:
            if queue.passive:
                await self._check_passive(queue)
            return await examination.remarks(known, max_deliveries, fanout=self._fanout)
        except ConfigurationError as error:
            return [Remark("queue_refused", str(error))]
        finally:
            await settler.close(LEAVING)

    async def peek(self, queue: str, limit: int) -> Sequence[Message]:
        self._opened()
        return await self._inspection.peek(queue, limit)

    async def purge(self, queue: str) -> int:
        self._opened()
        return await self._inspection.purge(queue)

    async def move(self, source: str, to: str, limit: int) -> int:
        self._opened()
        return await self._inspection.move(source, to, limit)

    async def aclose(self) -> None:
        async with self._gate:
            if not self._open:
                return
            self._open, self._closed = False, True
            await asyncio.gather(*(consumer.aclose() for consumer in list(self._consumers)))
            if self._inbox is not None:
                await self._inbox.aclose()
            await self._sender.close(LEAVING)
            await asyncio.gather(*(settler.close(LEAVING) for settler in self._settlers))
            await self._events.close(LEAVING)
            if self._ephemera.names:
                await self._delete_ephemera()
            await self._ephemera.stop()
            await self._clients.close()

    async def _delete_ephemera(self) -> None:
        try:
            entries = await self._register.entries()
        except BuslineError:
            entries = {}  # then their subscriptions stay, which harms nobody
        mine = [entries[name] for name in self._ephemera.names if name in entries]
        await asyncio.gather(*(self._events.unlisten(entry) for entry in mine if entry.patterns))
        await self._ephemera.close()
        await self._register.removed()

    async def _die(self) -> None:
        """For tests: end as SIGKILL would. Nothing is given back, and nobody is told."""
        self._open, self._closed = False, True
        await self._ephemera.stop()
        for consumer in list(self._consumers):
            await consumer.die()
        if self._inbox is not None:
            await self._inbox.die()
        for settler in self._settlers:
            await settler.stop()
        await self._sender.stop()
        await self._events.stop()
        await self._clients.close()
