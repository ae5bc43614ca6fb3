"""RabbitMQ and the way to it fail in every way that we can arrange; nothing of ours is restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from busline import Bus
from busline.errors import BuslineError, CallTimeout, ConnectionLost, OutcomeUnknown, TransportError
from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.transports.amqp import AmqpTransport, from_url
from tests.proxy import Proxy
from tests.servers import Rabbit, remove, start_rabbit

pytestmark = pytest.mark.timeout(180)

CALL_TIMEOUT = 4.0
PATIENT_TIMEOUT = 20.0
"""Seconds for calls that may be asked again."""
LATE = 0.5
"""Seconds after its deadline at which a call has ended."""
HANDLING = 0.05
"""Seconds that a call is handled: each caller has one in flight at any time, and a processor is left for the broker."""
RECOVERY = 5.0
"""Seconds after which calls flow again, counted from when the fault is over."""


@pytest.fixture(autouse=True)
def nothing_of_others_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens to a connection: drivers are silent, and so is what they stand on."""
    yield
    heard = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    others = [one for one in heard if one.levelno >= logging.WARNING and not one.name.startswith("busline")]
    said = [f"{one.name}: {one.getMessage()}" for one in others]
    # asyncio's own remark when more than a few frames are written before it has told of the loss.
    assert [each for each in said if each != "asyncio: socket.send() raised exception."] == []


@pytest.fixture(scope="module")
def node() -> Iterator[Rabbit]:
    """A node that these tests kill and freeze."""
    started = start_rabbit()
    yield started
    remove(started)


def name(prefix: str) -> str:
    """Nobody else's."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


async def eventually(holds: Callable[[], Awaitable[bool]], within: float) -> None:
    """It becomes true in time."""
    async with asyncio.timeout(within):
        while not await holds():  # noqa: ASYNC110  # what is waited for is at the broker
            await asyncio.sleep(0.05)


@dataclass
class Ledger:
    """What was asked and what became of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    asked_again: Counter[str] = field(default_factory=Counter)
    """Outcomes of calls with an idempotency key."""
    overdue: list[float] = field(default_factory=list)
    """Timeouts of calls that had not ended `LATE` after it."""
    latest: float = 0.0
    """Seconds that a call ended after its deadline, at most, by the clock on the wall."""
    given_up: list[tuple[float, float, CallTimeout]] = field(default_factory=list)
    """Calls with an idempotency key that found no answer until their deadline: when they began and ended, and why."""
    wrong: list[object] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    confirmed: set[str] = field(default_factory=set)
    handled: Counter[str] = field(default_factory=Counter)
    interrupted: int = 0

    def lost(self) -> set[str]:
        """Confirmed and never handled."""
        return self.confirmed - set(self.handled)

    async def watch(self, timeout: float) -> None:
        """Beside a call. The time after its deadline is slept in small parts by the call's own loop: while that stands
        still for want of a processor, neither of them can be in time."""
        await asyncio.sleep(timeout)
        for _ in range(20):
            await asyncio.sleep(LATE / 20)
        self.overdue.append(timeout)

    async def recovery(self, since: float, within: float) -> float:
        """Seconds until a call was answered that was asked after the instant `since`."""

        async def flowing() -> bool:
            return bool(self.answered_at) and self.answered_at[-1] > since

        await eventually(flowing, within)
        return min(at for at in self.answered_at if at > since) - since


def longest_calm(began: float, ended: float, outages: list[tuple[float, float]]) -> float:
    """Seconds at a stretch between two instants in which the broker was there."""
    edges = [began, *(edge for outage in outages for edge in outage if began < edge < ended), ended]
    if any(down < began < up for down, up in outages):
        edges = edges[1:]
    return max((up - since for since, up in zip(edges[::2], edges[1::2], strict=False)), default=0.0)


@asynccontextmanager
async def load(url: str, callers: int = 8) -> AsyncIterator[Ledger]:
    """A worker, callers that call without a pause, and a sender of jobs; all of them go on through every fault."""
    ledger, service = Ledger(), name("svc")
    worker_bus, caller = Bus(url, service=service), Bus(url)

    @worker_bus.handler(f"{service}.echo")
    async def echo(number: int) -> int:
        await asyncio.sleep(HANDLING)
        return number

    @worker_bus.handler(f"{service}.job")
    async def job(key: str) -> None:
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            ledger.interrupted += 1
            raise
        ledger.handled[key] += 1

    stop = asyncio.Event()

    async def ask(number: int) -> None:
        again = number % 4 == 3
        outcomes, timeout = (ledger.asked_again, PATIENT_TIMEOUT) if again else (ledger.outcomes, CALL_TIMEOUT)
        while not stop.is_set():
            pause, began, key = 0.0, time.monotonic(), name("key") if again else None
            watch = asyncio.create_task(ledger.watch(timeout))
            try:
                answer = await caller.call(f"{service}.echo", number, timeout=timeout, idempotency_key=key)
                if answer != number:
                    ledger.wrong.append(answer)
                ledger.answered_at.append(began)
                outcomes["answered"] += 1
            except BuslineError as error:
                outcomes[type(error).__name__] += 1
                if again and isinstance(error, CallTimeout):
                    ledger.given_up.append((began, time.monotonic(), error))
                pause = 0.05
            finally:
                watch.cancel()
            ledger.latest = max(ledger.latest, time.monotonic() - began - timeout)
            await asyncio.sleep(pause)

    async def send() -> None:
        while not stop.is_set():
            key = name("job")
            with contextlib.suppress(BuslineError):
                await caller.send(f"{service}.job", key)
                ledger.confirmed.add(key)
            await asyncio.sleep(0.01)

    async with caller, worker_bus.worker(concurrency=8):
        tasks = [asyncio.create_task(ask(number)) for number in range(callers)] + [asyncio.create_task(send())]
        yield ledger
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)

        async def settled() -> bool:
            return not ledger.lost()

        with contextlib.suppress(TimeoutError):
            await eventually(settled, 20)
    assert not ledger.lost(), f"{len(ledger.lost())} of {len(ledger.confirmed)} lost; {ledger.outcomes}"
    assert ledger.wrong == []
    assert ledger.overdue == [], f"{ledger.latest:.2f} s after the deadline"
    assert ledger.interrupted == 0
    assert set(ledger.asked_again) <= {"answered", "CallTimeout", "ReplyLost", "ConnectionLost", "OutcomeUnknown"}
    print(
        dict(ledger.outcomes),
        dict(ledger.asked_again),
        len(ledger.confirmed),
        "confirmed",
        sum(ledger.handled.values()),
        f"handled, latest {ledger.latest:.2f} s after the deadline",
    )


@asynccontextmanager
async def delayed(url: str, delay: float) -> AsyncIterator[None]:
    """A message that is delayed so long arrives, whatever happens meanwhile, and not before its time."""
    queue, transport = name("queue"), from_url(url)
    await transport.open()
    try:
        await transport.attach(QueueSpec(queue, "svc"))
        began = time.monotonic()
        await transport.send(ToQueue(queue), Message("t", b"1", delay=delay))
        yield
        consumer = await transport.consume(queue, slots=1)
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 60)
        await consumer.ack(delivery)
        assert time.monotonic() - began >= delay
    finally:
        await transport.aclose()


@pytest.mark.timeout(360)  # on a busy machine a node takes half a minute to start
async def test_the_broker_is_killed_three_times_under_load(node: Rabbit) -> None:
    outages = []
    async with load(node.url) as ledger, delayed(node.url, 9.0):
        for _ in range(3):
            await ledger.recovery(time.monotonic(), 20)
            killed = time.monotonic()
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.start)
            outages.append((killed, time.monotonic()))
            print("recovery", round(await ledger.recovery(time.monotonic(), RECOVERY), 2))
    for began, ended, error in ledger.given_up:  # only where the broker was never there for long enough
        assert longest_calm(began, ended, outages) < RECOVERY + 1
        assert error.__cause__ is not None
    assert set(ledger.outcomes) <= {"answered", "ReplyLost", "ConnectionLost", "OutcomeUnknown", "CallTimeout"}


@pytest.mark.parametrize("delay", [0.0, 1.0], ids=["a queue", "a delay"])
async def test_what_is_new_is_kept_by_a_broker_that_is_killed_at_once(delay: float, node: Rabbit) -> None:
    url, queue = await asyncio.to_thread(node.empty_url), name("queue")
    transport = from_url(url)
    await transport.open()
    try:
        await transport.attach(QueueSpec(queue, "svc"))
        await transport.send(ToQueue(queue), Message("t", b"1", delay=delay))
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
        consumer = await transport.consume(queue, slots=1)
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 20)
        await consumer.ack(delivery, confirm=True)
    finally:
        await transport.aclose()


async def test_all_connections_are_closed_by_an_operator(node: Rabbit) -> None:
    async with load(node.url) as ledger:
        await ledger.recovery(time.monotonic(), 20)
        await asyncio.to_thread(node.ctl, "close_all_connections", "test")
        print("recovery", round(await ledger.recovery(time.monotonic(), RECOVERY), 2))
    assert set(ledger.asked_again) == {"answered"}
    # Where each of the others was, lost on its way there or on its way back, is chance.
    assert sum(ledger.outcomes[error] for error in ("ReplyLost", "OutcomeUnknown", "ConnectionLost")) > 0


async def test_a_queue_deleted_under_its_consumer_comes_back(node: Rabbit) -> None:
    service = name("svc")
    bus, other = Bus(node.url, service=service), Bus(node.url)

    @bus.handler(f"{service}.echo")
    async def echo(number: int) -> int:
        return number

    async with other, bus.worker():
        assert await other.call(f"{service}.echo", 1, timeout=10) == 1
        await asyncio.to_thread(node.ctl, "delete_queue", service)
        began = time.monotonic()

        async def answered() -> bool:
            try:
                return bool(await other.call(f"{service}.echo", 2, timeout=1) == 2)
            except BuslineError:
                return False

        await eventually(answered, RECOVERY)
        print("recovery", round(time.monotonic() - began, 2))


async def test_a_frozen_broker_costs_time_and_nothing_else(node: Rabbit) -> None:
    async with load(f"{node.url}?heartbeat=2&timeout=3") as ledger:
        await ledger.recovery(time.monotonic(), 20)
        node.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(15)  # beyond three heartbeats: the connection is given up, and found again
        finally:
            node.signal(signal.SIGCONT)
        print("recovery", round(await ledger.recovery(time.monotonic(), RECOVERY), 2))
    assert set(ledger.outcomes) <= {"answered", "ReplyLost", "ConnectionLost", "OutcomeUnknown", "CallTimeout"}


async def test_a_black_hole_is_found_by_the_heartbeat(node: Rabbit) -> None:
    proxy = Proxy(node.port)
    await proxy.start()
    try:
        async with load(f"amqp://127.0.0.1:{proxy.port}/?heartbeat=1&timeout=3&connect_timeout=2") as ledger:
            await ledger.recovery(time.monotonic(), 20)
            proxy.swallow()
            await asyncio.sleep(9)
            proxy.pass_again()
            print("recovery", round(await ledger.recovery(time.monotonic(), 2 * RECOVERY), 2))
    finally:
        await proxy.close()
    assert set(ledger.asked_again) == {"answered"}
    assert set(ledger.outcomes) <= {"answered", "ReplyLost", "ConnectionLost", "OutcomeUnknown", "CallTimeout"}


@pytest.mark.parametrize(
    ("command", "short", "enough"),
    [("set_vm_memory_high_watermark", "0.000001", "0.4"), ("set_disk_free_limit", "900000GB", "1MB")],
    ids=["memory", "disk"],
)
async def test_an_alarm_is_a_typed_error_in_time_and_consumers_keep_acking(
    command: str, short: str, enough: str, node: Rabbit
) -> None:
    queue = name("queue")
    sender, worker = from_url(f"{node.url}?timeout=2"), from_url(f"{node.url}?timeout=2")
    await sender.open()
    await worker.open()
    try:
        await worker.attach(QueueSpec(queue, "svc"))
        await sender.send(ToQueue(queue), *[Message("t", b"%d" % number) for number in range(5)])
        await asyncio.to_thread(node.ctl, command, short)
        try:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises((ConnectionLost, OutcomeUnknown)):
                    await sender.send(ToQueue(queue), Message("t", b"late"))
                assert time.monotonic() - began < 3.5
            consumer = await worker.consume(queue, slots=2)
            for _ in range(5):
                (delivery,) = await asyncio.wait_for(consumer.receive(1), 5)
                await consumer.ack(delivery, confirm=True)
        finally:
            await asyncio.to_thread(node.ctl, command, enough)

        async def sent() -> bool:
            try:
                await sender.send(ToQueue(queue), Message("t", b"again"))
            except TransportError:
                return False
            return True

        await eventually(sent, RECOVERY)
    finally:
        await sender.aclose()
        await worker.aclose()


async def test_an_ack_on_a_dead_connection_is_counted_and_harms_nobody(node: Rabbit) -> None:
    queue = name("queue")
    transport: AmqpTransport = from_url(node.url)
    await transport.open()
    try:
        await transport.attach(QueueSpec(queue, "svc", frozenset({queue})))
        consumer = await transport.consume(queue, slots=1)
        await transport.send(ToTopic(queue), Message(queue, b"1"))
        (before,) = await consumer.receive(1)
        await asyncio.to_thread(node.ctl, "close_all_connections", "test")
        (again,) = await asyncio.wait_for(consumer.receive(1), RECOVERY)
        assert (before.deliveries, again.deliveries) == (1, 2)
        await consumer.ack(before)
        assert consumer.stale_settlements == 1
        await consumer.ack(again, confirm=True)
        assert transport.health().status == "healthy"
    finally:
        await transport.aclose()


NURSERY = """
import asyncio, os, signal, sys
from busline import Bus
from busline.transports import amqp
url, service = sys.argv[1:]
signal.signal(signal.SIGCHLD, signal.SIG_IGN)

async def serve() -> None:
    bus = Bus(url, service=service)

    @bus.handler(f"{service}.double")
    async def double(number: int) -> int:
        await asyncio.sleep(0.002)
        return 2 * number

    async with bus.worker(concurrency=8):
        print(os.getpid(), flush=True)
        await asyncio.Event().wait()

for line in sys.stdin:
    if os.fork() == 0:
        asyncio.run(serve())
"""
"""Makes a worker process for each line that it reads, and says its pid when it consumes. Forked, because a new
interpreter takes a second, and a test that kills five workers a second would measure nothing else."""


class Nursery:
    """Worker processes of one service."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reading = asyncio.Lock()

    async def worker(self) -> int:
        """The pid of a new one, which consumes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with self._reading:
            return int(await asyncio.wait_for(self._process.stdout.readline(), 60))


@asynccontextmanager
async def nursery(url: str, service: str) -> AsyncIterator[Nursery]:
    """Whoever it made is killed with it."""
    command = [sys.executable, "-c", NURSERY, url, service]
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        yield Nursery(process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_thousands_of_calls_in_flight_over_several_workers_are_all_answered(node: Rabbit) -> None:
    service, number = name("svc"), 3000
    async with Bus(node.url) as caller, nursery(node.url, service) as young:
        await asyncio.gather(*(young.worker() for _ in range(4)))
        answers = await asyncio.gather(*(caller.call(f"{service}.double", n, timeout=90) for n in range(number)))
    assert answers == [2 * n for n in range(number)]


async def test_a_thousand_of_a_thousand_while_workers_are_killed_all_the_time(node: Rabbit) -> None:
    service, kills, slowest, done = name("svc"), 0, 0.0, asyncio.Event()
    async with Bus(node.url) as caller, nursery(node.url, service) as young:
        running = list(await asyncio.gather(*(young.worker() for _ in range(4))))

        async def replace() -> None:
            running.append(await young.worker())

        async def kill() -> None:
            nonlocal kills
            async with asyncio.TaskGroup() as replacing:
                while not done.is_set():
                    await asyncio.sleep(0.2)
                    if running:  # else all are still starting
                        os.kill(running.pop(0), signal.SIGKILL)
                        kills += 1
                        replacing.create_task(replace())

        async def ask(share: range) -> list[int]:
            nonlocal slowest
            answers = []
            for each in share:
                began = time.monotonic()
                answers.append(await caller.call(f"{service}.double", each, timeout=20))
                slowest = max(slowest, time.monotonic() - began)
                await asyncio.sleep(0.05)
            return answers

        killing = asyncio.create_task(kill())
        parts = await asyncio.gather(*(ask(range(start, start + 125)) for start in range(0, 1000, 125)))
        done.set()
        await killing
    assert [each for part in parts for each in part] == [2 * each for each in range(1000)]
    print(kills, "kills, slowest call", round(slowest, 2))
