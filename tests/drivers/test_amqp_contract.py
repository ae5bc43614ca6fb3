"""The driver checks and the bus checks over a real RabbitMQ, on quorum and on classic queues."""

from __future__ import annotations

import logging

import pytest

from busline.testing.bus_checks import BusCheck, all_bus_checks
from busline.testing.conformance import Check, all_checks, name, run
from tests.harness_amqp import AmqpHarness
from tests.servers import Rabbit

KINDS = ("quorum", "classic")

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """The client library logs every connection that ends, and here they end all the time."""
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", all_checks(), ids=name)
async def test_transport(check: Check, kind: str, rabbit: Rabbit) -> None:
    await run(check, AmqpHarness(rabbit.url, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", all_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_bus(check: BusCheck, kind: str, rabbit: Rabbit) -> None:
    await check(AmqpHarness(rabbit.url, kind))
