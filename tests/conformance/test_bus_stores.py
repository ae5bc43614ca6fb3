"""Idempotency keys, jobs and orphans over every store, on the memory transport."""

from __future__ import annotations

import pytest

from busline.testing.bus_checks import BusCheck, stored_bus_checks
from busline.testing.harnesses import MemoryHarness
from busline.testing.stored import HarnessWithStore

from .stores import STORES


@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", [name for name in STORES if not name.startswith("memory")])
@pytest.mark.parametrize("check", stored_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_bus_with_a_store(check: BusCheck, store: str, request: pytest.FixtureRequest) -> None:
    await check(HarnessWithStore(MemoryHarness(), STORES[store](request).store, store))
