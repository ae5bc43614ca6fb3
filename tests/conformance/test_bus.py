"""The whole product over every transport."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from busline.testing.bus_checks import BusCheck, all_bus_checks
from busline.testing.harness import Harness
from busline.testing.harnesses import MemoryHarness, SqliteHarness

HARNESSES: dict[str, Callable[[Path], Harness]] = {"memory": lambda _: MemoryHarness(), "sqlite": SqliteHarness}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("check", all_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_bus(check: BusCheck, harness: str, tmp_path: Path) -> None:
    await check(HARNESSES[harness](tmp_path))
