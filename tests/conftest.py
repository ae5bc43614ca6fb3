"""The servers that all tests share which do not break them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.ministack import CREDENTIALS, Ministack
from tests.servers import Rabbit, shared_rabbit
from tests.store_servers import Server, shared

TOGETHER = ("_faults.py", "test_packaging.py")
"""How files end whose tests share what is dear to make: a server that they break, a package that is built."""


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    """A private RabbitMQ, started when the first test asks for it: one for all processes of a parallel run, in which
    each has a virtual host of its own."""
    folder, parallel = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    with shared_rabbit(folder.parent if parallel else folder) as shared:
        if parallel:
            shared.vhost = shared.take_vhost()
        yield shared


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """In a parallel run, files whose tests are `TOGETHER` run in one process. All others go wherever there is room."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged may have lone surrogates in it, which no process of a parallel run can tell another."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def _store_server(kind: str, factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, parallel = factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    with shared(kind, folder.parent if parallel else folder) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A private PostgreSQL, one for all processes of a parallel run; a test has a schema of its own."""
    yield from _store_server("postgres", tmp_path_factory)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A private Redis, one for all processes of a parallel run; a test has a prefix of its own."""
    yield from _store_server("redis", tmp_path_factory)


@pytest.fixture(scope="session")
def ministack() -> Iterator[Ministack]:
    """A private emulator of SQS, started when the first test asks for it, with credentials in the environment."""
    os.environ.update(CREDENTIALS)
    server = Ministack()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def dynamo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A private emulator of DynamoDB, one for all processes of a parallel run; a test has a table of its own."""
    yield from _store_server("dynamo", tmp_path_factory)
