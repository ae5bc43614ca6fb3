"""Idempotency keys, jobs and orphans over every store, on the memory transport; and workers asked by way of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from busline import Bus
from busline.stores.base import ClaimRecord, JobRecord
from busline.stores.memory import MemoryStore, MemoryVault
from busline.testing.bus_checks import BusCheck, control_bus_checks, stored_bus_checks
from busline.testing.checks_bus_control import holding
from busline.testing.harnesses import MemoryHarness, WithoutFanout
from busline.testing.scenes import PATIENCE, eventually
from busline.testing.stored import HarnessWithStore, keeping

from .stores import STORES, THOROUGH


@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", [name for name in STORES if not name.startswith("memory")])
@pytest.mark.parametrize("check", stored_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_bus_with_a_store(check: BusCheck, store: str, request: pytest.FixtureRequest) -> None:
    await check(HarnessWithStore(MemoryHarness(), STORES[store](request).store, store))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", sorted({*STORES} - {"memory-virtual"} if THOROUGH else {"sqlite", "redis"}))
@pytest.mark.parametrize("check", control_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_workers_are_asked_and_directed_by_way_of_a_store(
    check: BusCheck, store: str, request: pytest.FixtureRequest
) -> None:
    await check(HarnessWithStore(WithoutFanout(MemoryHarness()), STORES[store](request).store, store))


@pytest.mark.parametrize("store", ["sqlite"])
async def test_those_who_ask_at_once_by_way_of_a_store_are_all_answered_and_leave_no_job(
    store: str, request: pytest.FixtureRequest
) -> None:
    """They share one bell, in which one may overwrite what another has just written."""
    h = HarnessWithStore(WithoutFanout(MemoryHarness()), STORES[store](request).store, store)
    async with holding(h) as scene, scene.bus().worker(name=scene.name), AsyncExitStack() as stack:
        asking = [await stack.enter_async_context(keeping(h).control()) for _ in range(6)]
        told = await asyncio.gather(*(each.ping(timeout=PATIENCE, expect=1) for each in asking))
        assert [len(answers) for answers in told] == [1] * 6
        bus = await stack.enter_async_context(keeping(h))
        assert await bus.jobs() == []


class Swallowing(MemoryStore):
    """As redis-py was seen to do: whoever waits misses that he is cancelled, once."""

    waiting = 0

    async def changed(self, job: JobRecord, claim: ClaimRecord | None, timeout: float) -> None:
        self.waiting += 1
        try:
            await super().changed(job, claim, timeout)
        except asyncio.CancelledError:
            if self.waiting > 1:
                raise


async def test_a_worker_that_is_asked_by_way_of_a_store_ends_though_a_driver_swallows_a_cancellation() -> None:
    store = Swallowing(MemoryVault())
    bus = Bus(WithoutFanout(MemoryHarness()).transport(), service="svc", store=store, control=True)

    @bus.handler("svc.nothing")
    async def nothing() -> None: ...

    async with asyncio.timeout(PATIENCE), bus.worker():
        await eventually(lambda: store.waiting == 1)
    assert store.waiting == 2
