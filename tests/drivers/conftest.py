"""What the tests of drivers share: the place of SQLite's file, one RabbitMQ node for all that do not break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Rabbit, remove, start_rabbit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.db"


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    """Started once."""
    started = start_rabbit()
    yield started
    remove(started)
