"""The whole product over every transport.

On FIFO queues of SQS each run takes the checks of calls and jobs; the others need `BUSLINE_THOROUGH=1`, to save time.
"""

from __future__ import annotations

import pytest

from busline.testing.bus_checks import BusCheck, all_bus_checks
from busline.testing.conformance import name
from busline.testing.harness import Harness

from . import matrix
from .stores import THOROUGH

TRANSPORTS = ("memory", "sqlite", "amqp-quorum", "amqp-classic", "sqs", "sqs-fifo")
BRIEF = ("bus_calls.", "bus_jobs.")
LONG = ("many_", "a_sibling_that_lacks")
"""In the names of those among them that are left out, too; what one worker has given back for others the emulator gives
to the same one again and again, as both ask in step."""

CASES = [
    pytest.param(check, harness, id=f"{name(check)}-{harness}")
    for check in all_bus_checks()
    for harness in TRANSPORTS
    if THOROUGH
    or harness != "sqs-fifo"
    or (name(check).startswith(BRIEF) and not any(part in name(check) for part in LONG))
]


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("check", "harness"), CASES)
async def test_bus(check: BusCheck, harness: str, h: Harness) -> None:
    await matrix.agrees(check, harness, h)
