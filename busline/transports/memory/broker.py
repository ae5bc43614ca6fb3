"""The memory broker: queues by name, who owns which topic, what is bound to which pattern, and the addresses."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from busline.clock import Clock, SystemClock
from busline.errors import ConfigurationError, MessageTooLarge, NoHandler, QueueNotFound
from busline.message import Destination, Limits, Message, QueueSpec, ToTopic
from busline.topics import matches
from busline.transports.memory.queue import Queue, Stored, apart, copy

LEASE = 10.0
"""Seconds that a delivery stays with its receiver, unless the broker is told otherwise."""
PRIORITIES = 10
MAX_BYTES = 128 * 1024 * 1024
MAX_BATCH = 1000

_MACHINE = SystemClock()


def check(messages: Iterable[Message]) -> None:
    """Raise `MessageTooLarge` or `ConfigurationError` for what no queue here takes."""
    for message in messages:
        if len(message.body) + 4 * len(message.meta) > MAX_BYTES:  # no character has more than four bytes
            size = len(message.body) + len(message.meta.encode(errors="surrogatepass"))
            if size > MAX_BYTES:
                raise MessageTooLarge(size, MAX_BYTES)
        if not 0 <= message.priority <= PRIORITIES:
            raise ConfigurationError(f"priority {message.priority} is not one of the 0 to {PRIORITIES} of memory://")


class MemoryBroker:
    """What in production is another machine. `lease` in seconds; `seed` makes the shuffling repeatable."""

    def __init__(
        self, clock: Clock = _MACHINE, *, lease: float = LEASE, seed: int | None = None, name: str = ""
    ) -> None:
        self.clock = clock
        self.lease = lease
        self.where = f"memory://{name}"
        self.store_url = f"memory://{name or f'broker-{uuid.uuid4().hex}'}"
        """Of the store of all that are clients of this broker, with a name or without."""
        self.queues: dict[str, Queue] = {}
        self._random = random.Random(seed).random
        self._owners: dict[str, Queue] = {}
        self._inboxes: dict[str, Callable[[Message], None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients = 0

    def enter(self) -> None:
        """One client more. Raises `ConfigurationError` for one of another event loop: nothing here wakes that up."""
        loop = asyncio.get_running_loop()
        if self._clients and self._loop is not loop and self._loop is not None and not self._loop.is_closed():
            raise ConfigurationError(
                f"{self.where} lives in one event loop, and another one uses it already; what has several, as threads "
                "and processes do, takes sqlite:///file.db"
            )
        if self._loop is not loop:
            self._loop, self._clients = loop, 0
        self._clients += 1

    def leave(self) -> None:
        """One client less."""
        self._clients = max(0, self._clients - 1)

    def limits(self) -> Limits:
        """Of a queue that was told nothing special."""
        return Limits(
            max_delay=float("inf"),
            max_release_delay=float("inf"),
            lease=self.lease,
            max_lease=float("inf"),
            priorities=PRIORITIES,
            max_bytes=MAX_BYTES,
            max_batch=MAX_BATCH,
            counts_deliveries=True,
            counts_releases=False,
            fanout=True,
            ordered=False,
        )

    def limits_of(self, name: str) -> Limits:
        """Of this queue; raises `QueueNotFound`."""
        highest = self.queue(name).spec.max_priority
        return self.limits() if highest is None else replace(self.limits(), priorities=highest)

    def queue(self, name: str) -> Queue:
        """The queue of this name; raises `QueueNotFound`."""
        queue = self.queues.get(name)
        if queue is None:
            raise QueueNotFound(name, self.where)
        return queue

    def route(self, to: Destination) -> Queue:
        """Where a message to `to` goes; raises `NoHandler` or `QueueNotFound`."""
        if isinstance(to, ToTopic):
            queue = self._owners.get(to.topic)
            if queue is None:
                raise NoHandler(to.topic, self.where)
            return queue
        return self.queue(to.queue)

    def publish(self, topic: str, messages: Sequence[Message]) -> bool:
        """A copy of each to every queue with a pattern that matches, or `QueueFull` and none; was there a queue?"""
        bound = [q for q in self.queues.values() if any(matches(pattern, topic) for pattern in q.spec.patterns)]
        for queue in bound:
            queue.check_room(len(messages))
        for queue in bound:
            queue.put(*(Stored(_fitted(message, queue.spec)) for message in messages))
        return bool(bound and messages)

    def verify(self, spec: QueueSpec) -> None:
        """Raise `QueueNotFound`, or `ConfigurationError` if the queue is not what `spec` says."""
        found = self.queue(spec.name).spec
        if unknown := (spec.topics - found.topics) | (spec.patterns - found.patterns):
            raise ConfigurationError(f"queue {spec.name!r} is passive, and its owner gave it no {sorted(unknown)}")
        for option in ("ephemeral", "max_priority", "max_length"):
            if getattr(spec, option) not in (None, False, getattr(found, option)):
                raise ConfigurationError(f"queue {spec.name!r} is passive, with {option}={getattr(found, option)}")

    def declare(self, spec: QueueSpec) -> bool:
        """Make the queue what `spec` says; was it new? All is refused, or all is done."""
        queue = self.queues.get(spec.name)
        self._check_claims(spec)
        if queue is None:
            queue = self.queues[spec.name] = Queue(spec, self.clock, self.lease, self._random)
            self._take_over(queue, spec)
            return True
        if queue.spec.ephemeral != spec.ephemeral:
            raise ConfigurationError(f"queue {spec.name!r} exists with ephemeral={queue.spec.ephemeral}")
        self._take_over(queue, replace(spec, topics=spec.topics | queue.spec.topics))
        return False

    def check_options(self, spec: QueueSpec) -> None:
        """Raise `ConfigurationError` for what no queue here can be."""
        for option in ("kind", "bindings"):
            if getattr(spec, option):
                raise ConfigurationError(f"queue {spec.name!r}: only RabbitMQ has {option}, {self.where} has not")
        highest = self.limits().priorities
        if spec.max_priority is not None and not 0 <= spec.max_priority <= highest:
            raise ConfigurationError(f"queue {spec.name!r}: max_priority is {spec.max_priority}, not 0 to {highest}")
        if spec.max_length is not None and spec.max_length < 1:
            raise ConfigurationError(f"queue {spec.name!r}: max_length is {spec.max_length}, not 1 or more")

    def _check_claims(self, spec: QueueSpec) -> None:
        for topic in spec.topics:
            owner = self._owners.get(topic)
            if owner is not None and owner.spec.name != spec.name and owner.spec.service != spec.service:
                raise ConfigurationError(
                    f"topic {topic!r} is owned by queue {owner.spec.name!r} of service {owner.spec.service!r}; "
                    f"queue {spec.name!r} of service {spec.service!r} cannot own it as well"
                )

    def _take_over(self, queue: Queue, spec: QueueSpec) -> None:
        queue.spec = spec
        for topic in spec.topics:
            before = self._owners.get(topic)
            if before is not None and before is not queue:
                before.spec = _without(before.spec, topic)
            self._owners[topic] = queue

    def _disown(self, queue: Queue) -> None:
        for topic in queue.spec.topics:
            del self._owners[topic]

    def delete(self, name: str) -> None:
        """The queue with its messages, topics and patterns; silent if there is none."""
        queue = self.queues.pop(name, None)
        if queue is not None:
            self._disown(queue)
            queue.destroy(lambda: QueueNotFound(name, self.where))

    def open_address(self, on_reply: Callable[[Message], None]) -> str:
        """A new inbox address, which nobody can guess."""
        address = f"inbox-{uuid.uuid4().hex}"
        self._inboxes[address] = on_reply
        return address

    def close_address(self, address: str) -> None:
        """Nobody listens there any more; silent if nobody did."""
        self._inboxes.pop(address, None)

    def reply(self, address: str, message: Message) -> bool:
        """Hand over a copy; False if nobody listens at `address`."""
        on_reply = self._inboxes.get(address)
        if on_reply is None:
            return False
        on_reply(apart(message))
        return True


def _fitted(message: Message, spec: QueueSpec) -> Message:
    """A copy; with the highest priority that the queue knows, if that of the event is higher."""
    copied = copy(message)
    if spec.max_priority is not None:
        copied.priority = min(copied.priority, spec.max_priority)
    return copied


def _without(spec: QueueSpec, topic: str) -> QueueSpec:
    return replace(spec, topics=spec.topics - {topic})
