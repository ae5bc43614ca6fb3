"""Every driver check over every transport, and the table of what each of them refuses."""

from __future__ import annotations

import pytest

from busline.testing.bus_checks import all_bus_checks
from busline.testing.conformance import Check, all_checks, name, run
from busline.testing.harness import Harness

from . import matrix

TRANSPORTS = ("memory", "memory-virtual", "sqlite", "amqp-quorum", "amqp-classic", "sqs", "sqs-fifo")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("harness", TRANSPORTS)
@pytest.mark.parametrize("check", all_checks(), ids=name)
async def test_transport(check: Check, harness: str, h: Harness) -> None:
    await matrix.agrees(check, harness, h)


@pytest.mark.parametrize("check", [check for check in all_checks() if name(check).startswith("inbox.")], ids=name)
@pytest.mark.parametrize("harness", ["amqp-reply-queue"])
async def test_inbox_with_a_reply_queue(check: Check, h: Harness) -> None:
    assert await run(check, h) == "ran"


def test_the_matrix_has_every_check_and_no_other() -> None:
    assert sorted(matrix.EXPECTED) == sorted(map(name, [*all_checks(), *all_bus_checks()]))
