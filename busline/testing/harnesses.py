"""The harnesses of the transports that come with busline. A driver is imported when its first client is made."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from busline.clock import Clock, SystemClock
from busline.errors import ConfigurationError
from busline.message import Limits, Message, QueueSpec
from busline.testing.clock import VirtualClock
from busline.testing.harness import Harness
from busline.transports.base import Transport
from busline.transports.memory import MemoryBroker, MemoryTransport

if TYPE_CHECKING:
    from busline.transports.amqp import AmqpTransport
    from busline.transports.sqlite import SqliteTransport
    from busline.transports.sqs import SqsTransport


def _unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


class MemoryHarness:
    """The memory transport on the machine's clock, with leases short enough to wait for."""

    name = "memory"
    takeover = 1.0

    def __init__(self, clock: Clock | None = None, *, lease: float = 0.5) -> None:
        self.broker = MemoryBroker(clock or SystemClock(), lease=lease, seed=1)

    def transport(self) -> MemoryTransport:
        return MemoryTransport(self.broker)

    def unique(self, prefix: str) -> str:
        return _unique(prefix)

    async def kill(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        transport.die()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class VirtualMemoryHarness(MemoryHarness):
    """The memory transport on a clock that the checks turn: no check waits for time to pass."""

    name = "memory-virtual"
    takeover = 11.0

    def __init__(self) -> None:
        self.clock = VirtualClock()
        super().__init__(self.clock, lease=10.0)

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class SqliteHarness:
    """The SQLite transport on a file in `folder`; each client stands for a process of its own."""

    name = "sqlite"
    takeover = 1.0

    def __init__(self, folder: Path, *, lease: float = 0.5) -> None:
        self.url = f"sqlite:///{folder / 'bus.db'}?lease={lease:g}"

    def transport(self) -> SqliteTransport:
        from busline.transports.sqlite import from_url

        return from_url(self.url)

    def unique(self, prefix: str) -> str:
        return _unique(prefix)

    async def kill(self, transport: Transport) -> None:
        from busline.transports.sqlite import SqliteTransport

        assert isinstance(transport, SqliteTransport)
        transport._die()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class AmqpHarness:
    """Clients of the RabbitMQ broker at `url`, whose queues are of one kind."""

    takeover = 3.0

    def __init__(self, url: str, kind: str = "quorum", reply: str = "direct") -> None:
        self.name = f"amqp-{kind}"
        self.url = f"{url}?kind={kind}&reply={reply}"

    def transport(self) -> AmqpTransport:
        from busline.transports.amqp import from_url

        return from_url(self.url)

    def unique(self, prefix: str) -> str:
        return _unique(prefix)

    async def kill(self, transport: Transport) -> None:
        from busline.transports.amqp import AmqpTransport

        assert isinstance(transport, AmqpTransport)
        await transport._die()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SqsHarness:
    """Clients of the SQS at `endpoint`, with queues of their own; credentials come from the environment."""

    takeover = 6.0

    def __init__(self, endpoint: str, *, fifo: bool = False) -> None:
        self.name = "sqs-fifo" if fifo else "sqs"
        self._suffix = ".fifo" if fifo else ""
        options = f"prefix={uuid.uuid4().hex[:8]}-&lease=2&wait=1&cache=0&heartbeat=0.3"
        self.url = f"sqs://us-east-1?endpoint_url={endpoint}&{options}"

    def transport(self) -> SqsTransport:
        from busline.transports.sqs import from_url

        return from_url(self.url)

    def unique(self, prefix: str) -> str:
        return _unique(prefix) + self._suffix

    async def kill(self, transport: Transport) -> None:
        from busline.transports.sqs import SqsTransport

        assert isinstance(transport, SqsTransport)
        await transport._die()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class WithoutFanout:
    """The transport of another harness, for which nothing can be copied to several queues."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.name = f"{harness.name}-without-fanout"
        self.takeover = harness.takeover

    def transport(self) -> Transport:
        return cast("Transport", _Refusing(self._harness.transport()))

    def unique(self, prefix: str) -> str:
        return self._harness.unique(prefix)

    async def kill(self, transport: Transport) -> None:
        assert isinstance(transport, _Refusing)
        await self._harness.kill(transport.other)

    async def pass_time(self, seconds: float) -> None:
        await self._harness.pass_time(seconds)


class _Refusing:
    """All else is as the other one has it."""

    def __init__(self, other: Transport) -> None:
        self.other = other

    def __getattr__(self, name: str) -> Any:
        return getattr(self.other, name)

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        if queue.patterns:
            raise ConfigurationError(f"queue {queue.name!r} cannot listen to events at {self.other.where}")
        return replace(await self.other.attach(queue, create=create), fanout=False)

    async def publish(self, topic: str, *messages: Message) -> bool:
        return False
