"""Every check of stores over every store. `BUSLINE_THOROUGH=1` races for 10,000 keys."""

from __future__ import annotations

import pytest

from busline.testing.checks_store_jobs import check_who_waits_is_woken
from busline.testing.store_conformance import Check, all_checks, name

from .stores import STORES, THOROUGH


@pytest.mark.timeout(3600 if THOROUGH else 120)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("check", all_checks(), ids=name)
async def test_store(check: Check, store: str, request: pytest.FixtureRequest) -> None:
    outcome = await check(STORES[store](request))
    assert outcome is None or (outcome == "processes" and store.startswith("memory"))


@pytest.mark.parametrize("store", ["postgres", "redis"])
async def test_who_waits_is_woken_by_a_notification_and_not_by_looking(
    store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"busline.stores.{store}.store._LOOK_ANYWAY", 600.0)
    await check_who_waits_is_woken(STORES[store](request))
