"""The whole product over every transport.

On FIFO queues of SQS, `BUSLINE_THOROUGH=1` is needed for the checks of what never gets to see a queue's kind, stores
and whatever stands on events, and for 500 calls, which are a long time there.
"""

from __future__ import annotations

import pytest

from busline.testing.bus_checks import BusCheck, all_bus_checks
from busline.testing.conformance import name
from busline.testing.harness import Harness

from . import matrix
from .stores import THOROUGH

TRANSPORTS = ("memory", "sqlite", "amqp-quorum", "amqp-classic", "sqs", "sqs-fifo")
ELSEWHERE = ("bus_calls.many_", "bus_control.", "bus_idempotency.", "bus_observing.", "bus_tracking.")


CASES = [
    pytest.param(check, harness, id=f"{name(check)}-{harness}")
    for check in all_bus_checks()
    for harness in TRANSPORTS
    if THOROUGH or harness != "sqs-fifo" or not name(check).startswith(ELSEWHERE)
]


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("check", "harness"), CASES)
async def test_bus(check: BusCheck, harness: str, h: Harness) -> None:
    await matrix.agrees(check, harness, h)
