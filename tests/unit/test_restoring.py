"""A worker whose queue the broker has otherwise than it wants: at startup, and when it comes back to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest

from busline import Bus, slots
from busline.errors import ConfigurationError, ConnectionLost
from busline.message import Delivery, Limits, QueueSpec
from busline.transports.memory import MemoryBroker, MemoryTransport
from busline.transports.memory.transport import MemoryConsumer


class Impatient(MemoryTransport):
    """Takes a message back after half an hour."""

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        return replace(await super().attach(queue, create=create), max_lease=1800.0)


class Changed(MemoryTransport):
    """Loses its first consumer; when the queue is attached again, it has been changed, twice, by somebody else."""

    attached = 0
    lost = False

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        if not queue.for_dead_letters:
            self.attached += 1
            if self.attached in (2, 3):
                raise ConfigurationError("the queue is 'classic' there")
        return await super().attach(queue, create=create)

    async def consume(self, queue: str, *, slots: int, prefetch: int = 1) -> MemoryConsumer:
        consumer = await super().consume(queue, slots=slots, prefetch=prefetch)
        receive = consumer.receive

        async def lose(max_messages: int) -> Sequence[Delivery]:
            if not self.lost:
                self.lost = True
                raise ConnectionLost("for a test")
            return await receive(max_messages)

        consumer.receive = lose  # type: ignore[method-assign]  # only this one consumer breaks
        return consumer


async def test_a_late_handler_that_may_outlast_the_brokers_patience_is_refused_with_what_to_set() -> None:
    bus = Bus(Impatient(MemoryBroker()), service="svc")

    @bus.handler("long", time_limit=1801)
    async def long() -> None: ...

    with pytest.raises(ConfigurationError, match=r"long may run for 1801 s.*1800 s.*ack='early'.*consumer_timeout="):
        async with bus.worker():
            pass


async def test_an_early_ack_or_a_shorter_limit_is_fine_there() -> None:
    bus = Bus(Impatient(MemoryBroker()), service="svc")

    @bus.handler("long", time_limit=7200, ack="early")
    async def long() -> None: ...

    @bus.handler("short", time_limit=1800)
    async def short() -> None: ...

    @bus.handler("unlimited")
    async def unlimited() -> None: ...

    async with bus.worker():
        pass


async def test_a_queue_that_was_changed_meanwhile_is_told_as_an_error_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slots, "BACK_OFF", (0.001, 0.002))
    transport = Changed(MemoryBroker())
    bus = Bus(transport, service="svc")

    @bus.handler("double")
    async def double(number: int) -> int:
        return 2 * number

    async with bus.worker(concurrency=1):
        async with asyncio.timeout(10):
            assert await bus.call("double", 4, returns=int, timeout=5.0) == 8
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert all("'classic' there" in text and "again in 0.0 s" in text for text in errors)
