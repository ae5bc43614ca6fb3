"""One RabbitMQ node for all tests that need one; those that break it get their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Rabbit, remove, start_rabbit


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """Started once."""
    started = start_rabbit()
    yield started
    remove(started)
