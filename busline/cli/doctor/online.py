"""What only the broker can tell. Each check is made whatever became of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial

from busline.bus import Bus
from busline.cli.doctor.findings import Finding, finding
from busline.cli.doctor.offline import needing_store
from busline.control import PAUSED, doctors_queue
from busline.errors import BuslineError, ConfigurationError, ConnectionLost, OutcomeUnknown, QueueNotFound
from busline.lines import LATE
from busline.message import Limits, Message, QueueSpec, QueueStats, ToQueue
from busline.registry import DEAD_SUFFIX, Handler, Plan, QueuePlan
from busline.transports.base import Examinable, Inspectable, Transport
from busline.wire import Envelope, new_id

Check = Callable[[], AsyncIterator[Finding]]
ASKING = 1.0
"""Seconds that workers have to answer."""


async def examine(bus: Bus, plan: Plan, timeout: float) -> list[Finding]:
    """What is wrong at the broker; each check may take `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            await bus.__aenter__()
    except ConfigurationError as error:
        return [finding("broker_refused", "broker", str(error))]
    except (BuslineError, TimeoutError) as error:
        return [finding("broker_unreachable", "broker", str(error) or f"no answer within {timeout:g} s")]
    try:
        return await _Examination(bus, plan, timeout).run()
    finally:
        await bus.__aexit__(None, None, None)


class _Examination:
    def __init__(self, bus: Bus, plan: Plan, timeout: float) -> None:
        self._bus = bus
        self._plan = plan
        self._timeout = timeout
        self._transport: Transport = bus.transport
        self._stats: dict[str, QueueStats] = {}
        self._limits: Limits | None = None
        """Of a queue without options, as far as it is known."""

    async def run(self) -> list[Finding]:
        """All checks, in an order in which the later ones know what the earlier ones have learned."""
        checks: list[tuple[str, Check]] = [("sending to itself", self._round_trip), ("counting", self._count)]
        checks.append(("store", self._store))
        lasting = [queue for queue in self._plan.queues.values() if not queue.spec.ephemeral]
        checks += [(f"queue {queue.spec.name}", partial(self._queue, queue)) for queue in lasting]
        checks += [("owners", self._owners), ("queues left over", self._orphans), ("workers", self._workers)]
        found: list[Finding] = []
        for name, check in checks:
            found += await self._attempt(name, check)
        return found

    async def _attempt(self, name: str, check: Check) -> list[Finding]:
        found: list[Finding] = []
        try:
            async with asyncio.timeout(self._timeout + ASKING + LATE):
                found += [each async for each in check()]
        except (BuslineError, TimeoutError) as error:
            lost = isinstance(error, ConnectionLost | OutcomeUnknown)
            text = str(error) or f"no answer within {self._timeout:g} s"
            found.append(finding("broker_unreachable" if lost else "check_failed", name, text))
        return found

    # -- the broker ---------------------------------------------------------------------------------------------

    async def _round_trip(self) -> AsyncIterator[Finding]:
        """A queue of its own: declared, written to, read, deleted, under a name that begins as the service's do."""
        name = doctors_queue(self._bus.service) + new_id()[:8]
        try:
            self._limits = await self._transport.attach(QueueSpec(name, self._bus.service or "busline", ephemeral=True))
            took = await self._send_and_wait(name)
        except ConfigurationError as error:
            yield finding("rights_missing", name, str(error))
            return
        except QueueNotFound:  # the URL says that nothing may be made (SQS: create=), so there is nothing to send to
            return
        finally:
            await _quietly(self._transport.detach(name, delete=True))
        if took is None:
            yield finding("round_trip", name, f"a message to itself was not there after {self._timeout:g} s")

    async def _store(self) -> AsyncIterator[Finding]:
        door = self._bus.store_door()
        if door is None or not (door.asked_for or needing_store(self._plan)):
            return
        try:
            await door.open()
        except (BuslineError, TimeoutError) as error:
            yield finding("store_unreachable", door.store.where, str(error) or f"no answer in {self._timeout:g} s")
        finally:
            await door.aclose()

    async def _send_and_wait(self, name: str) -> float | None:
        began = time.monotonic()
        consumer = await self._transport.consume(name, slots=1)
        try:
            async with asyncio.timeout(self._timeout):
                envelope = Envelope(new_id(), time.time())
                await self._transport.send(ToQueue(name), Message("busline.doctor", b"null", envelope.encode()))
                await consumer.ack(*await consumer.receive(1), confirm=True)
        except TimeoutError:
            return None
        finally:
            await consumer.aclose()
        return time.monotonic() - began

    async def _count(self) -> AsyncIterator[Finding]:
        if isinstance(self._transport, Inspectable):
            self._stats = {stats.name: stats for stats in await self._transport.stats()}
        for name in sorted(self._stats):
            if name.startswith(PAUSED):
                yield finding("queue_paused", name.removeprefix(PAUSED), "an operator has paused it")

    # -- queues -------------------------------------------------------------------------------------------------

    async def _queue(self, queue: QueuePlan) -> AsyncIterator[Finding]:
        name = queue.spec.name
        limits = self._limits
        try:
            limits = await self._transport.attach(QueueSpec(name), create=False)
        except QueueNotFound as error:
            yield finding("queue_foreign" if queue.spec.passive else "queue_missing", name, str(error))
        else:
            async for each in self._compare(queue):
                yield each
        if limits is not None:
            for each in _times(queue, limits):
                yield each
            for text in _shortfalls(queue, limits):
                yield finding("queue_cannot", name, text)
        for each in self._numbers(queue):
            yield each

    async def _compare(self, queue: QueuePlan) -> AsyncIterator[Finding]:
        """What the broker has otherwise than is declared; nothing is changed by asking."""
        if isinstance(self._transport, Examinable):
            for remark in await self._transport.examine(queue.declared, self._bus.settings.max_deliveries):
                yield finding(remark.code, queue.spec.name, remark.text, remark.severity)
        stats = self._stats.get(queue.spec.name)
        if stats is None:
            return
        for what, ours, theirs in (
            ("topics", queue.spec.topics, stats.topics),
            ("patterns", queue.spec.patterns, stats.patterns),
        ):
            if missing := sorted(ours - theirs):
                text = f"the {what} {', '.join(missing)} are not recorded there yet; a worker that starts does it"
                yield finding("queue_differs", queue.spec.name, text)

    def _numbers(self, queue: QueuePlan) -> Iterator[Finding]:
        stats = self._stats.get(queue.spec.name)
        if stats is not None and stats.ready and not stats.consumers:
            yield finding("queue_unconsumed", stats.name, f"{stats.ready} messages wait, and nobody consumes it")
        dead = self._stats.get(queue.dead_letters.name) if queue.dead_letters is not None else None
        if dead is not None and dead.ready:
            yield finding("dead_letters", queue.spec.name, f"{dead.ready} dead letters wait in {dead.name}")

    async def _owners(self) -> AsyncIterator[Finding]:
        """Topics of ours that another queue has at the broker."""
        for queue in self._plan.queues.values():
            for stats in self._stats.values():
                if stats.name in self._plan.queues:
                    continue
                for topic in sorted(queue.spec.topics & stats.topics):
                    text = (
                        f"topic {topic!r} is owned by queue {stats.name!r} at the broker, and by {queue.spec.name!r} "
                        "here: a worker that starts moves it, if it is the same service's, or is refused"
                    )
                    yield finding("two_owners", topic, text)

    async def _orphans(self) -> AsyncIterator[Finding]:
        for stats in orphans(self._bus, self._plan, list(self._stats.values())):
            yield finding("queue_orphaned", stats.name, f"nobody consumes it, and {stats.ready} messages wait in it")

    # -- workers ------------------------------------------------------------------------------------------------

    async def _workers(self) -> AsyncIterator[Finding]:
        allowed = 0.0 if self._transport.shared_clock else self._bus.settings.max_clock_skew
        try:
            async with self._bus.control() as control:
                answers = [each for each in await control.ping(timeout=ASKING) if each.service == self._bus.service]
        except ConfigurationError:
            # A transport that cannot ask them, or where no queue may be made for the answers, and no store either;
            # that is no illness.
            return
        if not answers:
            text = f"no worker of the service answered within {ASKING:g} s"
            yield finding("no_workers", self._bus.service or "workers", text)
        for answer in answers:
            if abs(answer.skew) > max(allowed, 1.0):
                text = f"its clock differs by {answer.skew:+.1f} s from the one here; {allowed:g} s are allowed for"
                yield finding("clock_skew", f"{answer.worker}/{answer.pid}", text)


def orphans(bus: Bus, plan: Plan, stats: Sequence[QueueStats]) -> list[QueueStats]:
    """Queues that are named as the service's are, that it does not serve any more, and that nobody consumes."""
    service = bus.service
    if service is None:
        return []
    known = set(plan.queues)
    known |= {queue.dead_letters.name for queue in plan.queues.values() if queue.dead_letters is not None}
    return [
        each
        for each in stats
        if (each.name == service or each.name.startswith(f"{service}."))
        and each.name not in known
        and each.name.removesuffix(DEAD_SUFFIX) not in plan.queues
        and not (each.ephemeral or each.consumers)
    ]


def _handlers(queue: QueuePlan) -> Sequence[Handler]:
    return [queue.subscriber] if queue.subscriber is not None else list(queue.handlers.values())


def _times(queue: QueuePlan, limits: Limits) -> Iterator[Finding]:
    if limits.max_lease == float("inf"):
        return
    for handler in _handlers(queue):
        options, name = handler.options, handler.declaration.name
        if options.ack == "early":
            continue
        kept = f"the broker takes a message back {limits.max_lease:g} s after it was handed out"
        if options.time_limit is None:
            yield finding("time_limit_missing", name, f"it may run for any time, and {kept}")
        elif options.time_limit > limits.max_lease:
            yield finding("time_limit_too_long", name, f"it may run for {options.time_limit:g} s, and {kept}")


def _shortfalls(queue: QueuePlan, limits: Limits) -> Iterator[str]:
    if queue.spec.patterns and not limits.fanout:
        yield "it cannot get copies of events, which a subscriber needs"
    if limits.max_delay <= 0:
        yield "it cannot delay messages, which retries need"


async def _quietly(cleaning: Awaitable[None]) -> None:
    try:
        await cleaning
    except BuslineError:
        # An ephemeral queue goes with its connection anyway, and what was found is what matters.
        return
