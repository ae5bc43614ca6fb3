"""The broker that all tests share which do not break it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.servers import Rabbit, shared_rabbit


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    """A private RabbitMQ, started when the first test asks for it: one for all processes of a parallel run, in which
    each has a virtual host of its own."""
    folder, parallel = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    with shared_rabbit(folder.parent if parallel else folder) as shared:
        if parallel:
            shared.vhost = shared.take_vhost()
        yield shared
