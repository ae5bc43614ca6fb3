"""The whole product over every transport."""

from __future__ import annotations

import pytest

from busline.testing.bus_checks import BusCheck, all_bus_checks
from busline.testing.harness import Harness


@pytest.mark.timeout(90)
@pytest.mark.parametrize("harness", ["memory", "sqlite", "amqp-quorum", "amqp-classic", "sqs"])
@pytest.mark.parametrize("check", all_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_bus(check: BusCheck, h: Harness) -> None:
    await check(h)
