"""The two ways between who asks and the worker processes of a bus: over the bus itself, where its transport reaches
several processes with one message, else by rows in the store.

Over the bus each process has a queue that listens to the topic of questions, and who asks has one for the answers.

In the store a question is a job record, and each answer is one, under a topic of the question's own. One more record
is the bell: the ids of the latest questions stand in it. Workers wait for it to change, and who asks waits for his
question to change, which whoever answers touches; a store that cannot notify is looked at about once a second. All
these records have a short life, and nobody's liveness is among them: who is dead does not answer.
"""

# A method of a Protocol is its docstring; pyright would have it return something all the same.
# pyright: reportReturnType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from busline.codec import decode, encode
from busline.errors import ConfigurationError, QueueNotFound
from busline.message import Message, QueueSpec, ToQueue
from busline.stores.base import JobRecord, Store
from busline.storing import StoreDoor
from busline.topics import RESERVED
from busline.transports.base import Consumer, Transport
from busline.wire import new_id

ASK = f"{RESERVED}control.ask"
"""The topic of questions."""
ANSWER = f"{RESERVED}control.answer"
"""The topic of answers, which are sent straight to a queue."""
POST = f"{RESERVED}control.worker."
"""What the queue of a worker process is called, before its instance."""
DESK = f"{RESERVED}control.asker."
"""What the queue of who asks is called."""
BELL = f"{RESERVED}control.bell"
"""Topic of the record in a store that changes with each question."""
AT_ONCE = 32
"""Answers that are taken at a time; questions that the bell has room for."""
MOST = 1000
"""Processes that are heard by way of a store."""
LATE = 2.0
"""Seconds by which an answer may come later by way of a store that has to be looked at."""
LOOK = 0.5
"""Seconds after which who asks looks for answers in a store that has told of none."""
LOOK_AGAIN = 60.0
"""Seconds after which a worker reads the bell again that has not changed."""
_ELSE = "A store will do instead: Bus(store=…) or $BUSLINE_STORE"
BELL_TTL = 86400.0
ANSWER_TTL = 60.0


class Line(Protocol):
    """Of who asks. One question at a time."""

    late: float
    """Seconds by which answers may come later than the processes give them."""

    @property
    def address(self) -> str:
        """What a question says about where answers go."""

    async def ask(self, question: Message, seconds: float) -> bool:
        """Put the question to all; False if surely nobody is there. It is void after so many seconds."""

    async def answers(self) -> Sequence[Message]:
        """Wait for some; may return those of earlier questions, and the same again. Cancelling it is safe."""

    async def aclose(self) -> None:
        """Leave nothing behind."""


class Ear(Protocol):
    """Of a worker process."""

    async def questions(self) -> Sequence[Message]:
        """Wait for some. Cancelling it is safe."""

    async def answer(self, question: Message, to: str, body: bytes) -> None:
        """Send the answer to where the question says."""

    async def let_go(self) -> None:
        """Listen no more, as the way is lost."""

    async def aclose(self) -> None:
        """Leave nothing behind."""


async def line_to(transport: Transport, door: StoreDoor | None) -> Line:
    """The way to the workers that there is. Raises ConfigurationError where there is none, and what the transport
    raises."""
    queue = QueueSpec(DESK + new_id()[:12], "busline", ephemeral=True)
    try:
        await attach_own(transport, queue, "asking the workers")
    except ConfigurationError:
        if door is None:
            raise
        return StoreLine(door, transport.where)
    return _BusLine(transport, queue.name, await transport.consume(queue.name, slots=1, prefetch=AT_ONCE))


async def ear_of(transport: Transport, door: StoreDoor | None, instance: str) -> Ear:
    """The way from those who ask to this process. Raises as `line_to` does, and StoreUnavailable."""
    queue = QueueSpec(POST + instance, "busline", patterns=frozenset({ASK}), ephemeral=True)
    try:
        await attach_own(transport, queue, "control=True")
    except ConfigurationError:
        if door is None:
            raise
        return _StoreEar(await door.open(), transport.where)
    return _BusEar(transport, queue.name, await transport.consume(queue.name, slots=1))


async def attach_own(transport: Transport, queue: QueueSpec, what: str) -> None:
    """Make a queue of this process's own. Raises ConfigurationError where none may be made, or where a message cannot
    reach the queues of several processes."""
    try:
        limits = await transport.attach(queue)
    except (ConfigurationError, QueueNotFound) as error:
        raise ConfigurationError(f"{what} needs a queue for each process: {error}. {_ELSE}") from error
    if not limits.fanout:
        await transport.detach(queue.name, delete=True)
        raise ConfigurationError(
            f"{transport.where} cannot reach several processes with one message, which {what} needs; on SQS that takes "
            f"SNS topics. {_ELSE}"
        )


# -- over the bus -------------------------------------------------------------------------------------------------


class _BusLine:
    late = 0.0

    def __init__(self, transport: Transport, queue: str, consumer: Consumer) -> None:
        self._transport = transport
        self._consumer = consumer
        self.address = queue

    async def ask(self, question: Message, seconds: float) -> bool:
        return await self._transport.publish(ASK, question)

    async def answers(self) -> Sequence[Message]:
        deliveries = await self._consumer.receive(AT_ONCE)
        await self._consumer.ack(*deliveries)
        return [delivery.message for delivery in deliveries]

    async def aclose(self) -> None:
        await self._consumer.aclose()
        await self._transport.detach(self.address, delete=True)


class _BusEar:
    def __init__(self, transport: Transport, queue: str, consumer: Consumer) -> None:
        self._transport = transport
        self._queue = queue
        self._consumer = consumer

    async def questions(self) -> Sequence[Message]:
        deliveries = await self._consumer.receive(1)
        await self._consumer.ack(*deliveries)
        return [delivery.message for delivery in deliveries]

    async def answer(self, question: Message, to: str, body: bytes) -> None:
        await self._transport.send(ToQueue(to), Message(ANSWER, body, correlation_id=question.correlation_id))

    async def let_go(self) -> None:
        await self._consumer.aclose()

    async def aclose(self) -> None:
        await self._consumer.aclose()
        await self._transport.detach(self._queue, delete=True)


# -- by way of the store ------------------------------------------------------------------------------------------


class _Bell:
    """Of one broker, as several may use one store."""

    def __init__(self, where: str) -> None:
        self._blank = JobRecord(f"{BELL} {where}", BELL, 0.0, b"")

    async def read(self, store: Store) -> JobRecord:
        """As it is; made where there is none, or none any more."""
        return await store.add_job(self._blank, ttl=BELL_TTL)

    async def ring(self, store: Store, question: str) -> None:
        """Unless the question stands there. Of two who ring at once one may be overwritten, so ring again."""
        latest = latest_of(await self.read(store))
        if question not in latest:
            await store.set_progress(self._blank.id, encode([*latest, question][-AT_ONCE:]))


def latest_of(bell: JobRecord) -> Sequence[str]:
    """The ids of the latest questions."""
    return decode(bell.progress) if bell.progress else ()


class StoreLine:
    """Needs no closing."""

    late = LATE
    address = ""

    def __init__(self, door: StoreDoor, where: str) -> None:
        self._door = door
        self._bell = _Bell(where)
        self._asked = JobRecord("", ASK, 0.0, b"")

    async def ask(self, question: Message, seconds: float) -> bool:
        """See `Line`. Raises StoreUnavailable, as `answers` does."""
        store = await self._door.open()
        record = JobRecord(question.correlation_id or "", ASK, 0.0, question.body)
        self._asked = await store.add_job(record, ttl=seconds)
        await self._bell.ring(store, record.id)
        return True

    async def answers(self) -> Sequence[Message]:
        """See `Line`."""
        store, id = await self._door.open(), self._asked.id
        await store.changed(self._asked, None, LOOK)
        self._asked = await store.job(id) or self._asked  # before the answers, so that none is missed
        await self._bell.ring(store, id)
        found = await store.jobs(MOST, topic=f"{ANSWER}.{id}")
        return [Message(ANSWER, each.message, correlation_id=id) for each in found]

    async def aclose(self) -> None:
        """Its questions are void by themselves."""


class _StoreEar:
    def __init__(self, store: Store, where: str) -> None:
        self._store = store
        self._bell = _Bell(where)
        self._heard: set[str] = set()

    async def questions(self) -> Sequence[Message]:
        store = self._store
        while True:
            bell = await self._bell.read(store)
            latest = latest_of(bell)
            found = [await store.job(id) for id in latest if id not in self._heard]
            self._heard = set(latest)
            if questions := [Message(ASK, job.message, correlation_id=job.id) for job in found if job is not None]:
                return questions
            await store.changed(bell, None, LOOK_AGAIN)

    async def answer(self, question: Message, to: str, body: bytes) -> None:
        store, id = self._store, question.correlation_id or ""
        record = JobRecord(new_id(), f"{ANSWER}.{id}", 0.0, body)
        await store.add_job(record, ttl=ANSWER_TTL)
        await store.set_progress(id, encode(record.id))

    async def let_go(self) -> None:
        """There is nothing to let go of."""

    async def aclose(self) -> None:
        """Its answers go by themselves."""
