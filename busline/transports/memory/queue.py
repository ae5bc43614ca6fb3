"""A queue of the memory broker: pure, synchronous transitions. What waits, waits in `Queue.wait`.

A message is ready, delayed, or leased to one share; a settled one is nowhere. Expired leases and passed delays are
found by one timer per queue, set to the earliest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count, islice
from math import inf
from operator import itemgetter

from busline.clock import Clock, Timer
from busline.errors import ConfigurationError, QueueFull, TransportError
from busline.message import Delivery, Message, QueueSpec, QueueStats

SPREAD = 4
"""How far from the head of its lane a message may be picked: no order is promised, so none is kept."""


def apart(message: Message) -> Message:
    """What is handed out again and again: nobody changes a message, and only its headers could be changed."""
    return copy(message) if message.headers else message


def copy(message: Message) -> Message:
    """Nothing that one side changes afterwards is seen by the other."""
    headers = message.headers
    return Message(
        message.topic,
        message.body,
        message.meta,
        dict(headers) if headers else {},
        message.correlation_id,
        message.reply_to,
        message.priority,
        message.delay,
        message.ttl,
        message.expendable,
    )


@dataclass(slots=True, eq=False)
class Share:
    """One consumer, as the queue sees it."""

    owner: object
    """The client that it belongs to."""
    loop: asyncio.AbstractEventLoop
    """In which it lives; asking for the running one is a system call."""
    room: int
    """How many more messages it may hold; negative after it was made smaller than what it held."""


class Stored:
    """A message in a queue. It is leased while `delivery` is the one that was handed out last."""

    __slots__ = ("deliveries", "delivery", "expires", "message", "share", "until")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.deliveries = 0
        self.delivery: Delivery | None = None
        self.share: Share | None = None
        self.until = 0.0
        self.expires = inf


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call of `receive` that waits."""

    future: asyncio.Future[list[Delivery]]
    share: Share
    most: int


class _Alarm:
    """One timer, set to the earliest of the instants it was told."""

    __slots__ = ("_clock", "_ring", "_timer", "due")

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: Timer | None = None
        self.due = inf

    def at(self, when: float) -> None:
        if when < self.due:
            self.stop()
            self.due = when
            self._timer = self._clock.call_at(when, self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self.due = inf

    def _fire(self) -> None:
        self._timer = None
        self.due = inf
        self._ring()


class Ready:
    """What can be delivered now: one lane per priority in use, the highest first."""

    __slots__ = ("_lanes", "_random", "size")

    def __init__(self, random: Callable[[], float]) -> None:
        self._lanes: dict[int, deque[Stored]] = {0: deque()}
        self._random = random
        self.size = 0

    def push(self, stored: Stored, front: bool = False) -> None:
        lane = self._lanes.get(stored.message.priority)
        if lane is None:
            lane = self._open_lane(stored.message.priority)
        if front:
            lane.appendleft(stored)
        else:
            lane.append(stored)
        self.size += 1

    def _open_lane(self, priority: int) -> deque[Stored]:
        lane: deque[Stored] = deque()
        self._lanes[priority] = lane
        self._lanes = dict(sorted(self._lanes.items(), key=itemgetter(0), reverse=True))
        return lane

    def pop(self) -> Stored:
        """One of the first few of the highest priority. There must be one."""
        lanes = self._lanes
        lane = lanes[0] if len(lanes) == 1 else next(filter(None, lanes.values()))
        self.size -= 1
        if len(lane) == 1:
            return lane.pop()
        index = int(self._random() * min(len(lane), SPREAD))
        stored = lane[index]
        del lane[index]
        return stored

    def drop(self, over: set[Stored]) -> None:
        for priority, lane in self._lanes.items():
            self._lanes[priority] = deque(stored for stored in lane if stored not in over)
        self.size = sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Stored]:
        for lane in self._lanes.values():
            yield from lane


class Queue:
    """One queue and all its state. No function here awaits, so each is a whole transition.

    Invariant: while a message is ready, no call of `receive` waits whose share has room.
    """

    def __init__(self, spec: QueueSpec, clock: Clock, lease: float, random: Callable[[], float]) -> None:
        self.spec = spec
        self.shares: set[Share] = set()
        self._gone: Callable[[], TransportError] | None = None
        self._clock = clock
        self._lease = lease
        self._random = random
        self._ready = Ready(random)
        self._delayed: list[tuple[float, int, Stored]] = []
        self._leased: dict[Stored, None] = {}  # a set that remembers the order, so that a seed decides all
        self._mortal: dict[Stored, None] = {}  # what waits and is deleted when its ttl has passed
        self._next_end = inf
        self._waiters: deque[_Waiter] = deque()
        self._sequence = count()
        self._alarm = _Alarm(clock, self._on_time)

    def admit(self, messages: Sequence[Message]) -> None:
        """Raise what speaks against a send of these messages: `ConfigurationError`, `QueueFull`."""
        spec = self.spec
        if spec.max_priority is not None:
            for message in messages:
                if message.priority > spec.max_priority:
                    where = f"the max_priority {spec.max_priority} of queue {spec.name!r}"
                    raise ConfigurationError(f"priority {message.priority} is above {where}")
        if spec.max_length is not None:
            self.check_room(len(messages))

    def check_room(self, number: int) -> None:
        """Raise `QueueFull` if not so many more may wait."""
        most = self.spec.max_length
        if most is None:
            return
        self.expire()
        if self._ready.size + len(self._delayed) + number > most:
            raise QueueFull(self.spec.name, most)

    def put(self, *arrived: Stored) -> None:
        for stored in arrived:
            message = stored.message
            if message.expendable and message.ttl is not None:
                stored.expires = self._clock.time() + message.ttl
            if message.delay > 0.0 or stored.expires < inf:
                self.place(stored, message.delay)
            elif self._ready.size or not (waiter := self._next_waiter()):
                self._ready.push(stored)
            else:  # as most are where somebody waits
                waiter.future.set_result([self._hand_out(stored, waiter.share, self._lease_end())])
        if self._ready.size and self._waiters:
            self._dispatch()

    def place(self, stored: Stored, delay: float, *, front: bool = False) -> None:
        if stored.expires < inf and not self._is_kept(stored):
            return
        if delay > 0.0:
            due = self._clock.time() + delay
            heappush(self._delayed, (due, next(self._sequence), stored))
            self._alarm.at(due)
        else:
            self._ready.push(stored, front)

    def _is_kept(self, stored: Stored) -> bool:
        if stored.expires <= self._clock.time():
            return False
        self._mortal[stored] = None
        self._next_end = min(self._next_end, stored.expires)
        self._alarm.at(stored.expires)
        return True

    def expire(self) -> None:
        """Forget what waits and has outlived its ttl."""
        if self._next_end == inf or self._next_end > (now := self._clock.time()):
            return
        over = {stored for stored in self._mortal if stored.expires <= now}
        if over:
            self._mortal = {stored: None for stored in self._mortal if stored not in over}
            self._ready.drop(over)
            self._delayed = [entry for entry in self._delayed if entry[2] not in over]
            heapify(self._delayed)
        self._next_end = min((stored.expires for stored in self._mortal), default=inf)

    def claim(self, share: Share, most: int) -> list[Delivery]:
        """Lease to `share` what it may have now; maybe nothing."""
        if self._next_end < inf:
            self.expire()
        return self._lease_out(share, most) if self._ready.size and share.room > 0 else []

    def _lease_out(self, share: Share, most: int) -> list[Delivery]:
        """There is something ready, and room."""
        ready, until = self._ready, self._lease_end()
        if most == 1:
            return [self._hand_out(ready.pop(), share, until)]
        return [self._hand_out(ready.pop(), share, until) for _ in range(min(most, share.room, ready.size))]

    def _lease_end(self) -> float:
        """Of what is handed out now."""
        until = self._clock.time() + self._lease
        if until < self._alarm.due:
            self._alarm.at(until)
        return until

    def _hand_out(self, stored: Stored, share: Share, until: float) -> Delivery:
        if self._mortal:
            self._mortal.pop(stored, None)
        stored.deliveries += 1
        stored.share = share
        stored.until = until
        stored.delivery = Delivery(apart(stored.message), self.spec.name, stored, stored.deliveries, until)
        self._leased[stored] = None
        share.room -= 1
        return stored.delivery

    def _take_back(self, stored: Stored) -> None:
        self._leased.pop(stored, None)
        stored.delivery = None
        if stored.share is not None:
            stored.share.room += 1
        stored.share = None

    async def wait(self, share: Share, most: int) -> list[Delivery]:
        """Until a message is assigned; the only wait there is."""
        waiter = _Waiter(share.loop.create_future(), share, most)
        self._waiters.append(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise

    def _abandon(self, waiter: _Waiter) -> None:
        future = waiter.future
        if future.cancelled():
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        elif future.exception() is None:  # assigned in the same turn of the loop in which its task was cancelled
            self.release(*future.result())

    def _dispatch(self) -> None:
        if self._next_end < inf:
            self.expire()
        while self._ready.size and (waiter := self._next_waiter()):
            waiter.future.set_result(self._lease_out(waiter.share, waiter.most))

    def _next_waiter(self) -> _Waiter | None:
        waiters = self._waiters
        if waiters and waiters[0].share.room > 0 and not waiters[0].future.done():
            return waiters.popleft()
        for index, waiter in enumerate(waiters):
            if waiter.share.room > 0 and not waiter.future.done():
                del self._waiters[index]
                return waiter
        return None

    def dispatch(self) -> None:
        """Somebody may have got room."""
        if self._waiters:
            self._dispatch()

    def ack(self, *deliveries: Delivery) -> bool:
        """Forget them; were all still theirs who ask?"""
        ours = True
        for delivery in deliveries:
            stored = delivery.receipt
            if stored is None:  # acked before
                continue
            if stored.delivery is delivery:
                self._take_back(stored)
                delivery.receipt = None
            else:
                ours = False
        if self._waiters and self._ready.size:
            self._dispatch()
        return ours

    def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        for delivery in deliveries:
            stored = delivery.receipt
            if stored is not None and stored.delivery is delivery:
                self._give_back(stored, delay)
        self.dispatch()

    def _give_back(self, stored: Stored, delay: float = 0.0) -> None:
        self._take_back(stored)
        stored.deliveries -= 1
        self.place(stored, delay, front=True)

    def extend(self, delivery: Delivery, lease: float) -> bool:
        stored = delivery.receipt
        if stored is None or stored.delivery is not delivery:
            return False
        stored.until = delivery.leased_until = self._clock.time() + lease
        self._alarm.at(stored.until)
        return True

    def leave(self, share: Share, error: Callable[[], TransportError]) -> None:
        """A consumer ends: nobody waits for it any more. What it holds stays leased."""
        self.shares.discard(share)
        self._wake(lambda waiter: waiter.share is share, error)

    def _wake(self, chosen: Callable[[_Waiter], bool], error: Callable[[], TransportError]) -> None:
        for waiter in [w for w in self._waiters if chosen(w)]:
            self._waiters.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(error())

    def give_back_all(self, share: Share) -> None:
        for stored in [s for s in self._leased if s.share is share]:
            self._give_back(stored)
        self.dispatch()

    def check_exists(self) -> None:
        """Raise if the queue was deleted."""
        if self._gone is not None:
            raise self._gone()

    def destroy(self, error: Callable[[], TransportError]) -> None:
        """The queue was deleted: who waits or comes later gets `error`, and nothing in it is anybody's."""
        self._gone = error
        self._ready = Ready(self._random)
        self._delayed = []
        self._mortal = {}
        self._next_end = inf
        self._alarm.stop()
        for stored in list(self._leased):
            self._take_back(stored)
        self._wake(lambda _: True, error)

    def _on_time(self) -> None:
        now = self._clock.time()
        for stored in [s for s in self._leased if s.until <= now]:
            self._take_back(stored)
            self.place(stored, 0.0, front=True)
        self.expire()
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.push(heappop(self._delayed)[2])
        self.dispatch()
        self.set_alarm()

    def set_alarm(self) -> None:
        """Anew, since the loop that the last one was set in may have ended."""
        self._alarm.stop()
        due = min((stored.until for stored in self._leased), default=inf)
        self._alarm.at(min(due, self._next_end, self._delayed[0][0] if self._delayed else inf))

    def stats(self) -> QueueStats:
        self.expire()
        return QueueStats(
            name=self.spec.name,
            ready=self._ready.size,
            delayed=len(self._delayed),
            leased=len(self._leased),
            consumers=len({share.owner for share in self.shares}),
            topics=self.spec.topics,
            patterns=self.spec.patterns,
            ephemeral=self.spec.ephemeral,
        )

    def held(self) -> list[Delivery]:
        """What is handed out now."""
        return [stored.delivery for stored in self._leased if stored.delivery is not None]

    def waiting(self, limit: int) -> list[Stored]:
        """The first that would be delivered, delayed ones behind."""
        self.expire()
        return [*islice(self._ready, limit), *(entry[2] for entry in sorted(self._delayed))][:limit]

    def take_waiting(self, limit: float = inf) -> list[tuple[Stored, float]]:
        """Remove up to `limit` messages that nobody holds; each with the seconds that it still has to wait."""
        self.expire()
        taken: list[tuple[Stored, float]] = []
        while self._ready.size and len(taken) < limit:
            taken.append((self._ready.pop(), 0.0))
        while self._delayed and len(taken) < limit:
            due, _, stored = heappop(self._delayed)
            taken.append((stored, due - self._clock.time()))
        for stored, _ in taken:
            self._mortal.pop(stored, None)
        return taken
