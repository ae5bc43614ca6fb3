"""Every driver check over every transport, and the table of what each of them refuses.

On FIFO queues of SQS each run takes four groups; the others need `BUSLINE_THOROUGH=1`, to save time.
"""

from __future__ import annotations

import pytest

from busline.testing.bus_checks import all_bus_checks
from busline.testing.conformance import Check, all_checks, name, run
from busline.testing.harness import Harness

from . import matrix
from .stores import THOROUGH

TRANSPORTS = ("memory", "memory-virtual", "sqlite", "amqp-quorum", "amqp-classic", "sqs", "sqs-fifo")
BRIEF = ("delivery.", "leases.", "delay.", "failure.")
CASES = [
    pytest.param(check, harness, id=f"{name(check)}-{harness}")
    for check in all_checks()
    for harness in TRANSPORTS
    if THOROUGH or harness != "sqs-fifo" or name(check).startswith(BRIEF)
]


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("check", "harness"), CASES)
async def test_transport(check: Check, harness: str, h: Harness) -> None:
    await matrix.agrees(check, harness, h)


@pytest.mark.parametrize("check", [check for check in all_checks() if name(check).startswith("inbox.")], ids=name)
@pytest.mark.parametrize("harness", ["amqp-reply-queue"])
async def test_inbox_with_a_reply_queue(check: Check, h: Harness) -> None:
    assert await run(check, h) == "ran"


def test_the_matrix_has_every_check_and_no_other() -> None:
    assert sorted(matrix.EXPECTED) == sorted(map(name, [*all_checks(), *all_bus_checks()]))
