"""The driver checks and the bus checks over a real RabbitMQ, on quorum and on classic queues."""

from __future__ import annotations

import logging

import pytest

from busline.testing.bus_checks import BusCheck, all_bus_checks
from busline.testing.conformance import Check, all_checks, name, run
from tests.harness_amqp import AmqpHarness
from tests.servers import Rabbit

KINDS = ("quorum", "classic")

OLDER_THAN_THE_CONTRACT = {
    "delivery.a_busy_worker_holds_only_what_it_works_on": "stats: AMQP does not tell what is leased",
    "delay.a_delayed_message_is_seen_as_delayed": "stats: AMQP does not tell what is delayed",
    "topics.a_topic_is_no_pattern": "a topic is never taken from a queue",
    "topics.attaching_replaces_topics_and_patterns": "a topic is never taken from a queue",
    "inbox.a_reply_to_a_caller_that_closed_is_false": "with direct reply-to nobody knows that a caller is gone",
    "failure.a_reply_to_a_killed_caller_harms_nobody": "with direct reply-to nobody knows that a caller is gone",
    "inspect.stats_tell_what_is_where": "stats: AMQP counts consumers, and does not tell what is leased",
    "inspect.peeking_changes_nothing": "delayed messages lie in queues that all share",
    "inspect.purging_deletes_what_waits": "delayed messages lie in queues that all share",
    "delay_priority_and_ttl_of_a_job": "quorum queues know no priority; clocks of two machines may differ",
}
"""Checks that still ask for what the contract lets a broker not tell, and why it cannot."""

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """The client library logs every connection that ends, and here they end all the time."""
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)


def excuse(request: pytest.FixtureRequest, check: str) -> None:
    """Expect it to fail, if it is an older one."""
    if reason := OLDER_THAN_THE_CONTRACT.get(check):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", all_checks(), ids=name)
async def test_transport(check: Check, kind: str, rabbit: Rabbit, request: pytest.FixtureRequest) -> None:
    excuse(request, name(check))
    await run(check, AmqpHarness(rabbit.url, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", all_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_bus(check: BusCheck, kind: str, rabbit: Rabbit, request: pytest.FixtureRequest) -> None:
    excuse(request, check.__name__.removeprefix("check_"))
    await check(AmqpHarness(rabbit.url, kind))


@pytest.mark.parametrize("check", [check for check in all_checks() if name(check).startswith("inbox.")], ids=name)
async def test_inbox_with_a_reply_queue(check: Check, rabbit: Rabbit) -> None:
    await run(check, AmqpHarness(rabbit.url, reply="queue"))
