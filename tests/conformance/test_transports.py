"""Every driver check over every transport, and the table of what each of them refuses.

`BUSLINE_UPDATE_MATRIX=1 pytest tests/conformance` writes the table anew.
"""

from __future__ import annotations

import os

import pytest

from busline.testing.conformance import Check, all_checks, name, run
from busline.testing.harness import Harness

from . import matrix

TRANSPORTS = ("memory", "memory-virtual", "sqlite", "amqp-quorum", "amqp-classic", "sqs")
EXPECTED = matrix.read()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("harness", TRANSPORTS)
@pytest.mark.parametrize("check", all_checks(), ids=name)
async def test_transport(check: Check, harness: str, h: Harness) -> None:
    outcome = await run(check, h)
    if os.environ.get("BUSLINE_UPDATE_MATRIX"):
        EXPECTED[name(check)][harness] = outcome
        matrix.write(EXPECTED)
    assert EXPECTED[name(check)].get(harness) == outcome


FIFO_CHECKS = [check for check in all_checks() if name(check).startswith(("delivery", "leases", "delay", "failure"))]


@pytest.mark.timeout(90)
@pytest.mark.parametrize("check", FIFO_CHECKS, ids=name)
@pytest.mark.parametrize("harness", ["sqs-fifo"])
async def test_fifo(check: Check, harness: str, h: Harness) -> None:
    """What is different in a FIFO queue; all else is as in a standard one."""
    outcome = await run(check, h)
    if os.environ.get("BUSLINE_UPDATE_MATRIX"):
        EXPECTED[name(check)][harness] = outcome
        matrix.write(EXPECTED)
    assert EXPECTED[name(check)].get(harness) == outcome


@pytest.mark.parametrize("check", [check for check in all_checks() if name(check).startswith("inbox.")], ids=name)
@pytest.mark.parametrize("harness", ["amqp-reply-queue"])
async def test_inbox_with_a_reply_queue(check: Check, h: Harness) -> None:
    assert await run(check, h) == "ran"


def test_the_matrix_has_every_check_and_no_other() -> None:
    assert sorted(EXPECTED) == sorted(map(name, all_checks()))
