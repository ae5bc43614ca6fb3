"""Random histories of a queue against a multiset: nothing acked returns, nothing sent vanishes, nobody shares a lease.

The model knows of a message only what its client knows: who got it last, until when it was leased, and how many of
its holders lost it. It asks the broker's clock, so the same history runs on virtual time and on the machine's.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from busline.message import Delivery, Message, QueueSpec, ToQueue
from busline.testing.harness import Harness
from busline.testing.harnesses import SqliteHarness, VirtualMemoryHarness
from busline.testing.steps import arrives, stats
from busline.transports.base import Consumer, Transport

T = TypeVar("T")
CLIENTS = 3
DEAD = -1
SETTLE = ["ack", "release", "delay"]
SPEC = QueueSpec("queue", "model")


@dataclass(eq=False)
class Sent:
    """A message, as the model knows it."""

    body: bytes
    crashes: int = 0
    holder: tuple[int, Delivery] | None = None
    """The client that got it last and has not settled it; the client may have died since."""
    acked: bool = False


class Client:
    """An open transport and its consumer."""

    def __init__(self, transport: Transport, consumer: Consumer) -> None:
        self.transport = transport
        self.consumer = consumer


class QueueModel(RuleBasedStateMachine):
    """The rules; a subclass brings the harness."""

    lease: float
    patience: float
    """Seconds of the broker's time in which what is ready arrives."""

    def make_harness(self) -> Harness:
        raise AssertionError("a subclass says which")

    def now(self) -> float:
        return time.time()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.harness = self.make_harness()
        self.sent: dict[bytes, Sent] = {}
        self.clients = [self.run(self.new_client()) for _ in range(CLIENTS)]
        self.observer = self.clients[0].transport

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    async def new_client(self) -> Client:
        transport = self.harness.transport()
        await transport.open()
        await transport.attach(SPEC)
        return Client(transport, await transport.consume(SPEC.name, slots=1000))

    def held(self) -> list[Sent]:
        return [message for message in self.sent.values() if message.holder is not None]

    @initialize()
    def begin(self) -> None:
        """Hypothesis leaves rules out of whole histories, but one without messages says nothing."""
        for priority in range(6):
            self.send(client=0, number=2, priority=priority % 3, delay=0.0)

    @rule(
        client=st.integers(0, CLIENTS - 1),
        number=st.integers(1, 4),
        priority=st.integers(0, 3),
        delay=st.sampled_from([0.0, 0.0, 0.05]),
    )
    def send(self, client: int, number: int, priority: int, delay: float) -> None:
        bodies = [b"%d" % (len(self.sent) + index) for index in range(number)]
        self.sent |= {body: Sent(body) for body in bodies}
        messages = [Message("a.topic", body, priority=priority, delay=delay) for body in bodies]
        self.run(self.clients[client].transport.send(ToQueue(SPEC.name), *messages))

    @rule(client=st.integers(0, CLIENTS - 1), most=st.integers(1, 3), then=st.sampled_from(["hold", *SETTLE]))
    def receive(self, client: int, most: int, then: str) -> None:
        for delivery in self.run(self._receive(client, most)):
            self._received(client, delivery)
            if then != "hold":
                self._settle(self.sent[delivery.message.body], then)

    async def _receive(self, client: int, most: int) -> list[Delivery]:
        task = asyncio.create_task(self.clients[client].consumer.receive(most))
        await self.harness.pass_time(self.patience)
        task.cancel()
        await asyncio.wait([task])
        return [] if task.cancelled() else list(task.result())

    def _received(self, client: int, delivery: Delivery) -> None:
        message = self.sent[delivery.message.body]
        assert not message.acked, "what was acked came again"
        if message.holder is not None:
            assert self._is_over(message), "a second lease while the first one lives"
            message.crashes += 1
        assert delivery.deliveries == message.crashes + 1
        message.holder = (client, delivery)

    def _is_over(self, message: Sent) -> bool:
        """May its last holder have lost it?"""
        assert message.holder is not None
        client, delivery = message.holder
        return client == DEAD or self.now() >= delivery.leased_until

    def _still_ours(self, message: Sent) -> bool:
        """Renew the lease, so that what follows happens within it."""
        assert message.holder is not None
        client, delivery = message.holder
        if client == DEAD:
            return False
        lost = self.run(self.clients[client].consumer.extend(delivery, lease=self.lease))
        assert not lost or self._is_over(message)
        return not lost

    @rule(which=st.integers(0, 100), how=st.sampled_from(SETTLE))
    def settle(self, which: int, how: str) -> None:
        held = self.held()
        if held:
            self._settle(held[which % len(held)], how)

    def _settle(self, message: Sent, how: str) -> None:
        if message.holder is not None and self._still_ours(message):
            client, delivery = message.holder
            consumer = self.clients[client].consumer
            if how == "ack":
                self.run(consumer.ack(delivery, confirm=True))
            else:
                self.run(consumer.release(delivery, delay=0.05 if how == "delay" else 0.0))
            message.holder, message.acked = None, how == "ack"

    @rule(leases=st.sampled_from([0.3, 0.6, 1.1]))
    def pass_time(self, leases: float) -> None:
        self.run(self.harness.pass_time(self.lease * leases))

    @rule(client=st.integers(1, CLIENTS - 1), how=st.sampled_from(["crash", "close"]))
    def leave(self, client: int, how: str) -> None:
        theirs = [message for message in self.held() if message.holder is not None and message.holder[0] == client]
        given_back = [message for message in theirs if how == "close" and self._still_ours(message)]
        transport = self.clients[client].transport
        self.run(self.harness.kill(transport) if how == "crash" else transport.aclose())
        for message in theirs:
            assert message.holder is not None
            message.holder = None if message in given_back else (DEAD, message.holder[1])
        self.clients[client] = self.run(self.new_client())

    @invariant()
    def nothing_sent_vanishes(self) -> None:
        seen = self.run(stats(self.observer, SPEC.name))
        unsettled = sum(not message.acked for message in self.sent.values())
        assert seen is None or seen.ready + seen.delayed + seen.leased == unsettled

    def teardown(self) -> None:
        try:
            self.run(self._drain())
        finally:
            for client in self.clients:
                self.run(client.transport.aclose())
            self.runner.close()

    async def _drain(self) -> None:
        """Everything that was not acked comes exactly once more, when its time has come."""
        consumer = self.clients[0].consumer
        for _ in range(sum(not message.acked for message in self.sent.values())):
            delivery = await arrives(self.harness, consumer, within=self.lease + self.harness.takeover)
            self._received(0, delivery)
            await consumer.ack(delivery, confirm=True)
            message = self.sent[delivery.message.body]
            message.holder, message.acked = None, True


class MemoryModel(QueueModel):
    lease = 10.0
    patience = 0.01

    def make_harness(self) -> Harness:
        return VirtualMemoryHarness()

    def now(self) -> float:
        harness = self.harness
        assert isinstance(harness, VirtualMemoryHarness)
        return harness.clock.time()


class SqliteModel(QueueModel):
    lease = 0.5
    patience = 0.02

    def make_harness(self) -> Harness:
        self.folder = tempfile.TemporaryDirectory(prefix="busline-model-")
        return SqliteHarness(Path(self.folder.name), lease=self.lease)

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


def _settings(examples: int, steps: int) -> settings:
    return settings(
        derandomize=True,
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


TestMemoryModel = MemoryModel.TestCase
TestMemoryModel.settings = _settings(60, 50)

if find_spec("busline.transports.sqlite"):
    TestSqliteModel = SqliteModel.TestCase
    TestSqliteModel.settings = _settings(4, 12)
