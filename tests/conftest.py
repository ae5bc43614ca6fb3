"""The broker that all tests share which do not break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Rabbit, remove, start_rabbit


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """A private RabbitMQ, started once, when the first test asks for it."""
    started = start_rabbit()
    yield started
    remove(started)
