"""The dead letters of a queue: looked at, sent back to where they came from, or deleted.

Those that are chosen are found by taking the letters one after the other and giving the others back at the end, which
every transport can do. No letter is looked at twice, and none that arrived after the beginning.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import Any, Self

from anyio import CancelScope, create_task_group, move_on_after

from busline.clock import Clock, SystemClock
from busline.codec import decode
from busline.errors import CodecError, ConfigurationError, LeaseLost, QueueFull, QueueNotFound
from busline.lease import LeaseKeeper
from busline.message import DIED, Delivery, Message, QueueSpec, QueueStats, ToQueue
from busline.outcome import replayed
from busline.registry import DEAD_SUFFIX
from busline.transports.base import Consumer, Inspectable, Transport
from busline.wire import Envelope, decode_envelope

FIELDS = ("topic", "type", "reason", "queue", "message")
"""What letters can be chosen by; `message` is looked for within the error's message, the others must be equal."""
BATCH = 100
"""Letters that are taken at a time."""
MOST_HELD = 10_000
"""Letters that are held at once because they were not chosen; a look through more of them ends there."""
UNKNOWN_ORIGIN = "the letter does not tell which queue it came from; say --to QUEUE"
PATIENCE = 2.0
"""Seconds without a letter after which somebody else has taken those that are missing."""


@dataclass(frozen=True)
class Letter:
    """A dead letter. Without an envelope or a failure it was put there by the broker or by hand."""

    message: Message
    envelope: Envelope | None

    @property
    def id(self) -> str:
        """Of the message; "" if it does not tell."""
        return self.envelope.id if self.envelope is not None and self.message.meta else ""

    @cached_property
    def failure(self) -> Mapping[str, Any]:
        """Why it is dead: reason, type, message, traceback, attempts, first_at, last_at, queue, topic; or nothing.

        Of a letter that the broker moved by itself, what the broker tells: its reason, where from, and when.
        """
        if self.envelope is not None and self.envelope.failure:
            return self.envelope.failure
        died = _fields_of(self.message.headers.get(DIED, ""))
        if not died:
            return {}
        text = f"the broker moved it here by itself: {died.get('reason')}"
        return {
            "reason": died.get("reason"),
            "queue": died.get("queue", ""),
            "last_at": died.get("at"),
            "message": text,
        }

    def value(self, name: str) -> str:
        """One of `FIELDS`; "" where the letter does not tell."""
        return self.message.topic if name == "topic" else str(self.failure.get(name, ""))


def _fields_of(text: str) -> Mapping[str, Any]:
    try:
        found = decode(text.encode()) if text else None
    except CodecError:  # anybody can have written that header
        return {}
    return found if isinstance(found, dict) else {}


def letter_of(message: Message, now: float) -> Letter:
    """Read what the message tells of its failure."""
    try:
        return Letter(message, decode_envelope(message, now))
    except CodecError:
        return Letter(message, None)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: all `where` must hold, and one of `ids` must begin the id. Empty = all of them."""

    where: Sequence[tuple[str, str]] = ()
    ids: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, _ in self.where:
            if name not in FIELDS:
                raise ConfigurationError(f"letters are chosen by {', '.join(FIELDS)}, not by {name!r}")
        if not all(self.ids):
            raise ConfigurationError("an id begins with at least one character")

    @property
    def is_all(self) -> bool:
        """Every letter is meant."""
        return not self.where and not self.ids

    def matches(self, letter: Letter) -> bool:
        """Is this one meant?"""
        if self.ids and not letter.id.startswith(tuple(self.ids)):
            return False
        return all(_holds(name, letter.value(name), wanted) for name, wanted in self.where)


def _holds(name: str, value: str, wanted: str) -> bool:
    return wanted in value if name == "message" else value == wanted


@dataclass(slots=True)
class Result:
    """What became of the letters that were chosen."""

    done: int = 0
    kept: list[tuple[Letter, str]] = field(default_factory=list)
    """Those that stay where they are, and why."""
    unseen: bool = False
    """The look ended early, because too many letters that were not chosen came before."""


Act = Callable[[Letter], Awaitable[str | None]]
"""What is done with a letter before it is deleted; returns why it must stay, or None."""
OnProgress = Callable[[int, int], None]
"""Told how many letters were looked at, and of how many."""


class DeadLetters:
    """Those in one queue, over an open transport. Made by `find`."""

    def __init__(self, transport: Transport, queue: str, lease: float | None, clock: Clock) -> None:
        self._transport = transport
        self._lease = lease
        self._clock = clock
        self.queue = queue
        """Where they are."""

    @classmethod
    async def find(cls, transport: Transport, name: str, clock: Clock | None = None) -> Self:
        """The dead letters of the queue `name`, or those in it if it is a queue of dead letters itself.

        Raises QueueNotFound if there is neither, ConfigurationError if it is a queue that somebody works on.
        """
        try:
            queue = name + DEAD_SUFFIX
            limits = await transport.attach(QueueSpec(queue), create=False)
        except QueueNotFound:
            queue = name
            limits = await transport.attach(QueueSpec(queue), create=False)
        found = cls(transport, queue, limits.lease, clock or SystemClock())
        await found._check_dead()
        return found

    async def _check_dead(self) -> None:
        stats = await self._stats()
        if stats is not None and (stats.topics or stats.patterns):
            raise ConfigurationError(
                f"{self.queue!r} is a queue that handlers work on, and there is no {self.queue + DEAD_SUFFIX!r}: it "
                "has no dead letters yet, or they go to the queue that its dead_letter= names"
            )

    async def _stats(self) -> QueueStats | None:
        if not isinstance(self._transport, Inspectable):
            return None
        return next((stats for stats in await self._transport.stats() if stats.name == self.queue), None)

    async def waiting(self) -> int:
        """How many there are; raises ConfigurationError where the transport cannot tell."""
        self._inspectable()
        stats = await self._stats()
        return stats.ready if stats is not None else 0

    def _inspectable(self) -> Inspectable:
        if not isinstance(self._transport, Inspectable):
            raise ConfigurationError(f"{self._transport.where} does not let anybody look into its queues")
        return self._transport

    async def peek(self, selection: Selection, limit: int) -> list[Letter]:
        """Up to `limit` letters that are meant, the oldest first; none of them is changed."""
        look = limit if selection.is_all else max(limit, await self.waiting())
        now = self._clock.time()
        letters = (letter_of(message, now) for message in await self._inspectable().peek(self.queue, look))
        return [letter for letter in letters if selection.matches(letter)][:limit]

    async def replay(
        self, selection: Selection, *, to: str | None = None, on_progress: OnProgress | None = None
    ) -> Result:
        """Send each letter that is meant to the queue it came from, or to the queue `to`: the same id, a first
        attempt. Each is sent, confirmed, and then deleted here; a crash in between leaves it in both."""

        return await self._go_through(selection, lambda letter: self._send_back(letter, to), on_progress)

    async def _send_back(self, letter: Letter, to: str | None) -> str | None:
        """None if it was sent, else why not."""
        headers = {name: value for name, value in letter.message.headers.items() if name != DIED}
        message = replace(letter.message, delay=0.0, ttl=None, expendable=False, headers=headers)
        if letter.envelope is not None and letter.message.meta:
            priority = message.priority
            _, message = replayed(message, letter.envelope, now=self._clock.time())
            if not letter.envelope.failure:  # moved by the broker, with the priority that it had
                message.priority = priority
        queue = to or str(letter.failure.get("queue") or "")
        if not queue:
            return UNKNOWN_ORIGIN
        if queue == self.queue:
            return f"it would only come back to {queue!r}"
        try:
            await self._transport.send(ToQueue(queue), message)
        except (QueueNotFound, QueueFull) as error:
            return str(error)
        return None

    async def purge(self, selection: Selection, *, on_progress: OnProgress | None = None) -> Result:
        """Delete every letter that is meant."""
        if selection.is_all:
            return Result(await self._inspectable().purge(self.queue))
        return await self._go_through(selection, _let_go, on_progress)

    async def _go_through(self, selection: Selection, act: Act, on_progress: OnProgress | None) -> Result:
        total = await self.waiting()
        if not total:
            return Result()
        consumer = await self._transport.consume(self.queue, slots=1, prefetch=min(total, MOST_HELD + BATCH))
        keeper = LeaseKeeper(self._lease or inf, lambda lost: None)
        sweep = _Sweep(consumer, keeper.running, selection, act, self._clock)
        try:
            async with create_task_group() as side:
                if self._lease is not None:
                    side.start_soon(keeper.run, name=f"busline lease {self.queue}")
                await sweep.run(total, on_progress)
                side.cancel_scope.cancel()
            await consumer.release(*keeper.running)
        finally:
            with CancelScope(shield=True):  # gives back what is left
                await consumer.aclose()
        return sweep.result


async def _let_go(letter: Letter) -> None:
    """Nothing has to be done with a letter that is deleted."""


class _Sweep:
    """One way through the letters; `held` are those that were looked at and stay."""

    def __init__(
        self, consumer: Consumer, held: dict[Delivery, Consumer], selection: Selection, act: Act, clock: Clock
    ) -> None:
        self._consumer = consumer
        self._held = held
        self._selection = selection
        self._act = act
        self._clock = clock
        self.result = Result()

    async def run(self, total: int, on_progress: OnProgress | None) -> None:
        """Look at `total` letters."""
        looked = 0
        while looked < total:
            if len(self._held) >= MOST_HELD:
                self.result.unseen = True
                return
            batch: Sequence[Delivery] = ()
            with move_on_after(PATIENCE):
                batch = await self._consumer.receive(min(BATCH, total - looked))
            if not batch:
                return
            for delivery in batch:  # all of them, so that their leases are kept while the first ones are dealt with
                self._held[delivery] = self._consumer
            for delivery in batch:
                await self._look_at(delivery)
            looked += len(batch)
            if on_progress is not None:
                on_progress(looked, total)

    async def _look_at(self, delivery: Delivery) -> None:
        letter = letter_of(delivery.message, self._clock.time())
        if not self._selection.matches(letter):
            return
        trouble = await self._act(letter)
        if trouble is None:
            trouble = await self._delete(delivery)
        if trouble is None:
            self.result.done += 1
        else:
            self.result.kept.append((letter, trouble))

    async def _delete(self, delivery: Delivery) -> str | None:
        try:
            await self._consumer.ack(delivery, confirm=True)
        except LeaseLost as error:
            return f"it was dealt with, but somebody else holds it by now: {error}"
        finally:
            self._held.pop(delivery, None)
        return None
