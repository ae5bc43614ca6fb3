from collections.abc import Iterator
from pathlib import Path

import pytest
from process.commands import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """An empty folder for apps and a database."""
    folder = Folder(tmp_path)
    yield folder
    folder.end()


@pytest.fixture(params=["sqlite", "amqp"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty broker: a file, or a virtual host of RabbitMQ. What asks for it runs at each of them."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/bus.db"
    return str(request.getfixturevalue("rabbit").empty_url())


@pytest.fixture
def place(tmp_path: Path, broker_url: str) -> Iterator[Folder]:
    """An empty folder for apps, whose broker is at `broker_url`."""
    place = Folder(tmp_path, broker_url)
    yield place
    place.end()
