"""One broker of each kind for the checks. A server is started when the first check needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from busline.testing.harness import Harness
from busline.testing.harnesses import AmqpHarness, MemoryHarness, SqliteHarness, SqsHarness, VirtualMemoryHarness

Make = Callable[[pytest.FixtureRequest], Harness]


def _folder(request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue("tmp_path")
    assert isinstance(folder, Path)
    return folder


def _amqp(kind: str, reply: str = "direct") -> Make:
    return lambda request: AmqpHarness(request.getfixturevalue("rabbit").url, kind, reply)


def _sqs(*, fifo: bool) -> Make:
    return lambda request: SqsHarness(request.getfixturevalue("ministack").endpoint, fifo=fifo)


HARNESSES: Mapping[str, Make] = {
    "memory": lambda _: MemoryHarness(),
    "memory-virtual": lambda _: VirtualMemoryHarness(),
    "sqlite": lambda request: SqliteHarness(_folder(request)),
    "amqp-quorum": _amqp("quorum"),
    "amqp-classic": _amqp("classic"),
    "amqp-reply-queue": _amqp("quorum", "queue"),
    "sqs": _sqs(fifo=False),
    "sqs-fifo": _sqs(fifo=True),
}


@pytest.fixture
def h(harness: str, request: pytest.FixtureRequest) -> Harness:
    """Of the transport that the test's parameter `harness` names."""
    return HARNESSES[harness](request)
