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
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from busline.message import Delivery, Message, QueueSpec, ToQueue
from busline.testing.harness import Harness
from busline.testing.harnesses import SqliteHarness, VirtualMemoryHarness
from busline.testing.steps import arrives, stats
from busline.transports.base import Consumer, Transport

T = TypeVar("T")
CLIENTS = 2
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

    @rule(client=st.integers(0, CLIENTS - 1), most=st.integers(1, 3))
    def receive(self, client: int, most: int) -> None:
        for delivery in self.run(self._receive(client, most)):
            self._received(client, delivery)

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
        return client < 0 or self.now() >= delivery.leased_until

    def _still_ours(self, message: Sent) -> bool:
        """Renew the lease, so that what follows happens within it."""
        assert message.holder is not None
        client, delivery = message.holder
        if client < 0:
            return False
        lost = self.run(self.clients[client].consumer.extend(delivery, lease=self.lease))
        assert not lost or self._is_over(message)
        return not lost

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        message = data.draw(st.sampled_from(self.held()))
        if message.holder is not None and self._still_ours(message):
            client, delivery = message.holder
            self.run(self.clients[client].consumer.ack(delivery, confirm=True))
            message.holder, message.acked = None, True

    @precondition(lambda self: self.held())
    @rule(data=st.data(), delay=st.sampled_from([0.0, 0.05]))
    def release(self, data: st.DataObject, delay: float) -> None:
        message = data.draw(st.sampled_from(self.held()))
        if message.holder is not None and self._still_ours(message):
            client, delivery = message.holder
            self.run(self.clients[client].consumer.release(delivery, delay=delay))
            message.holder = None

    @precondition(lambda self: self.held())
    @rule()
    def expire(self) -> None:
        self.run(self.harness.pass_time(self.lease * 1.1))

    @rule(client=st.integers(1, CLIENTS - 1))
    def crash(self, client: int) -> None:
        self.run(self.harness.kill(self.clients[client].transport))
        for message in self.held():
            assert message.holder is not None
            if message.holder[0] == client:
                message.holder = (-1, message.holder[1])
        self.clients[client] = self.run(self.new_client())

    @precondition(lambda self: self.held())
    @rule(client=st.integers(1, CLIENTS - 1))
    def close(self, client: int) -> None:
        for message in self.held():
            if message.holder is not None and message.holder[0] == client and self._still_ours(message):
                message.holder = None
        self.run(self.clients[client].transport.aclose())
        for message in self.held():
            if message.holder is not None and message.holder[0] == client:
                message.holder = (-1, message.holder[1])
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
TestMemoryModel.settings = _settings(60, 40)

if find_spec("busline.transports.sqlite"):
    TestSqliteModel = SqliteModel.TestCase
    TestSqliteModel.settings = _settings(6, 15)
