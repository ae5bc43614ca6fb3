"""The stores that the checks run over, each empty for each check."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from busline.clock import Clock, SystemClock
from busline.stores import from_url
from busline.stores.base import Store
from busline.stores.memory import MemoryStore, MemoryVault
from busline.testing.clock import VirtualClock
from busline.testing.store_harness import StoreHarness
from tests.store_servers import Dynamo, Postgres, Redis

THOROUGH = bool(os.environ.get("BUSLINE_THOROUGH"))


class UrlHarness:
    """A store on a real clock, which any process reaches by its URL."""

    def __init__(self, name: str, url: str, contested: int = 300) -> None:
        self.name = name
        self.url = url
        self.contested = 10_000 if THOROUGH else contested

    def store(self) -> Store:
        return from_url(self.url)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _sqlite(request: pytest.FixtureRequest) -> StoreHarness:
    folder = request.getfixturevalue("tmp_path")
    assert isinstance(folder, Path)
    return UrlHarness("sqlite", f"sqlite:///{folder / 'store.db'}?timeout=20")


class MemoryHarness:
    """Stores on one vault inside this process."""

    url = ""
    contested = 0

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._vault = MemoryVault(clock)

    def store(self) -> Store:
        return MemoryStore(self._vault)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class VirtualMemoryHarness(MemoryHarness):
    """The same on a clock that the checks turn: no check waits for time to pass."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        super().__init__("memory-virtual", self.clock)

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)


def _postgres(request: pytest.FixtureRequest) -> StoreHarness:
    server = request.getfixturevalue("postgres")
    assert isinstance(server, Postgres)
    return UrlHarness("postgres", f"{server.url}?schema=test_{uuid.uuid4().hex[:12]}", contested=200)


def _redis(request: pytest.FixtureRequest) -> StoreHarness:
    server = request.getfixturevalue("redis")
    assert isinstance(server, Redis)
    return UrlHarness("redis", f"{server.url}?prefix=test-{uuid.uuid4().hex[:12]}:", contested=200)


def _dynamo(request: pytest.FixtureRequest) -> StoreHarness:
    server = request.getfixturevalue("dynamo")
    assert isinstance(server, Dynamo)
    return UrlHarness("dynamodb", f"{server.url}&timeout=20&table=test-{uuid.uuid4().hex[:12]}", contested=20)


STORES: Mapping[str, Callable[[pytest.FixtureRequest], StoreHarness]] = {
    "memory": lambda _: MemoryHarness("memory", SystemClock()),
    "memory-virtual": lambda _: VirtualMemoryHarness(),
    "sqlite": _sqlite,
    "postgres": _postgres,
    "redis": _redis,
    "dynamodb": _dynamo,
}
