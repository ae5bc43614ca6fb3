"""The checks themselves: a transport that can do little passes by refusing, and a broken one is caught."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import pytest

from busline.errors import ConfigurationError
from busline.message import Delivery, Destination, Limits, Message, QueueSpec
from busline.testing import steps
from busline.testing.conformance import all_checks, name, run
from busline.testing.harnesses import VirtualMemoryHarness
from busline.transports.base import Transport
from busline.transports.memory import MemoryBroker, MemoryTransport, broker, transport
from busline.transports.memory.queue import Queue, Share, Stored
from busline.transports.memory.transport import MemoryConsumer

CHECKS = {name(check): check for check in all_checks()}
REFUSABLE = {*Limits.__slots__, *QueueSpec.__slots__, "inspectable"}


class PoorBroker(MemoryBroker):
    """Knows no delays, priorities, leases, counts and events."""

    def limits(self) -> Limits:
        return replace(
            super().limits(),
            max_delay=0,
            max_release_delay=0,
            lease=None,
            priorities=0,
            counts_deliveries=False,
            counts_releases=False,
            fanout=False,
            max_batch=1,
        )


class PoorConsumer(MemoryConsumer):
    async def receive(self, max_messages: int) -> Sequence[Delivery]:
        deliveries = await super().receive(max_messages)
        for delivery in deliveries:
            delivery.leased_until = 0.0
            delivery.deliveries = min(2, delivery.deliveries)
        return deliveries

    async def release(self, *deliveries: Delivery, delay: float = 0.0) -> None:
        if delay:
            raise ConfigurationError("this queue releases at once only")
        await super().release(*deliveries)


class PoorTransport(MemoryTransport):
    stats = None  # type: ignore[assignment]  # so that it is not Inspectable

    async def attach(self, queue: QueueSpec, *, create: bool = True) -> Limits:
        if queue.patterns:
            raise ConfigurationError("this broker has no events")
        return await super().attach(queue, create=create)

    async def send(self, to: Destination, *messages: Message) -> None:
        if any(message.delay or message.priority for message in messages):
            raise ConfigurationError("this queue knows neither delays nor priorities")
        await super().send(to, *messages)


class PoorHarness(VirtualMemoryHarness):
    def __init__(self) -> None:
        super().__init__()
        self.broker = PoorBroker(self.clock, lease=inf)

    def transport(self) -> MemoryTransport:
        return PoorTransport(self.broker)

    async def kill(self, transport: Transport) -> None:
        """Noticed at once, as a broker notices a cut connection."""
        assert isinstance(transport, MemoryTransport)
        transport.die()
        for queue in self.broker.queues.values():
            for stored in queue._leased:
                if stored.share is not None and stored.share.owner is transport:
                    stored.until = 0.0
            queue._on_time()
        transport._forget()


@pytest.mark.parametrize("check", CHECKS)
async def test_a_poor_transport_passes_by_refusing(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MemoryConsumer", PoorConsumer)
    outcome = await run(CHECKS[check], PoorHarness())
    assert outcome == "ran" or outcome.removeprefix("refused(").rstrip(")") in REFUSABLE


def test_a_poor_transport_refuses_each_limit_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MemoryConsumer", PoorConsumer)
    names = ("delay", "leases", "topics", "inspect")
    checks = [check for check in all_checks() if name(check).split(".")[0] in names]
    outcomes = {asyncio.run(_run(name(check))) for check in checks}
    refusable = {"max_delay", "max_release_delay", "lease", "priorities", "counts_deliveries", "fanout", "inspectable"}
    assert {f"refused({limit})" for limit in refusable} <= outcomes


async def _run(check: str) -> str:
    return await run(CHECKS[check], PoorHarness())


def _everybody(self: MemoryBroker, address: str, message: Message) -> bool:
    for on_reply in self._inboxes.values():
        on_reply(message)
    return bool(self._inboxes)


def _takes_over_with_old_patterns(self: MemoryBroker, queue: Queue, spec: QueueSpec) -> None:
    take_over(self, queue, replace(spec, patterns=spec.patterns | queue.spec.patterns))


take_over = MemoryBroker._take_over


def _bound_too_widely(pattern: str, topic: str) -> bool:
    return topic.startswith(pattern.rstrip("#*."))


def _claim_all(self: Queue, share: Share, most: int) -> list[Delivery]:
    return _claim(self, share, 10 * most)


def _endless_room(self: MemoryConsumer, client: MemoryTransport, queue: Queue, slots: int, prefetch: int) -> None:
    _init(self, client, queue, 10 * slots, prefetch)


def _place_at_once(self: Queue, stored: Stored, delay: float, *, front: bool = False) -> None:
    _place(self, stored, 0.0, front=front)


async def _not_at_all(self: MemoryConsumer, slots: int) -> Sequence[Delivery]:
    return ()


_claim, _place, _init = Queue.claim, Queue.place, MemoryConsumer.__init__


MUTANTS: list[tuple[str, object, str, object]] = [
    ("delivery.acked_never_returns", Queue, "ack", lambda self, *d: self.release(*d) or True),
    ("delivery.a_second_ack_is_silent", Queue, "ack", lambda self, *d: self.release(*d) or True),
    ("leases.a_released_message_comes_again_at_once", Queue, "release", lambda self, *d, delay=0: self.ack(*d)),
    ("leases.closing_a_consumer_gives_back_at_once", Queue, "give_back_all", lambda self, share: None),
    ("leases.closing_a_transport_gives_back_at_once", Queue, "give_back_all", lambda self, share: None),
    ("leases.an_expired_lease_delivers_again", Queue, "_on_time", lambda self: None),
    ("leases.an_extended_lease_is_kept", Queue, "extend", lambda self, delivery, lease: True),
    ("leases.a_confirmed_ack_tells_of_a_lost_lease", Queue, "ack", lambda self, *d: True),
    ("leases.a_message_released_with_a_delay_waits", Queue, "place", _place_at_once),
    ("delivery.cancelling_receive_loses_nothing", Queue, "_abandon", lambda self, waiter: None),
    ("delivery.at_most_as_many_as_asked_for", Queue, "claim", _claim_all),
    ("delivery.no_more_are_out_than_slots", MemoryConsumer, "__init__", _endless_room),
    ("delivery.a_paused_worker_leaves_messages_to_others", MemoryConsumer, "resize", _not_at_all),
    ("delivery.prefetch_widens_what_may_be_out", MemoryConsumer, "__init__", _endless_room),
    ("delivery.no_slots_pause_and_slots_resume", MemoryConsumer, "resize", _not_at_all),
    ("delivery.a_body_arrives_byte_for_byte", transport, "copy", lambda m: replace(m, body=m.body.strip())),
    ("delivery.every_field_arrives", transport, "copy", lambda m: replace(m, headers={})),
    ("delay.a_delayed_message_is_not_early", Queue, "place", _place_at_once),
    ("delay.a_delayed_message_blocks_nobody", Queue, "_on_time", lambda self: None),
    ("topics.patterns_are_exact", broker, "matches", _bound_too_widely),
    ("topics.every_bound_queue_gets_one_copy", broker, "matches", lambda pattern, topic: False),
    ("topics.a_topic_of_another_service_is_refused", MemoryBroker, "_check_claims", lambda self, spec: None),
    ("topics.attaching_adds_topics_and_replaces_patterns", MemoryBroker, "_take_over", _takes_over_with_old_patterns),
    ("topics.deleting_tells_who_waits", Queue, "destroy", lambda self, error: None),
    ("topics.an_ephemeral_queue_vanishes_with_close", MemoryBroker, "delete", lambda self, queue: None),
    ("failure.an_ephemeral_queue_vanishes_with_kill", MemoryBroker, "delete", lambda self, queue: None),
    ("failure.a_killed_clients_message_comes_again", Queue, "_on_time", lambda self: None),
    ("inbox.many_calls_in_flight_get_one_reply_each", MemoryBroker, "reply", _everybody),
    ("lifecycle.closing_the_transport_wakes_those_who_wait", Queue, "leave", lambda self, share, error: None),
    ("expiry.an_expendable_message_is_gone_after_its_ttl", Queue, "expire", lambda self: None),
    ("expiry.a_delay_does_not_prolong_a_life", Queue, "expire", lambda self: None),
    ("expiry.what_expired_in_a_lease_does_not_come_back", Queue, "_is_kept", lambda self, stored: True),
    ("expiry.expired_messages_are_not_seen", Queue, "expire", lambda self: None),
    ("options.a_full_queue_refuses", Queue, "check_room", lambda self, number: None),
    ("options.a_full_queue_refuses", Queue, "admit", lambda self, messages: None),
    ("options.a_full_subscriber_refuses_the_event", Queue, "check_room", lambda self, number: None),
    ("options.a_highest_priority_is_kept", MemoryBroker, "limits_of", lambda self, name: self.limits()),
    ("options.a_passive_queue_is_used_and_not_changed", MemoryBroker, "verify", lambda self, spec: None),
    ("topics.publishing_to_nobody_is_fine", MemoryBroker, "publish", lambda self, topic, messages: True),
    ("inspect.moving_keeps_the_messages", Queue, "dispatch", lambda self: None),
]


@pytest.mark.parametrize(("check", "owner", "attribute", "broken"), MUTANTS, ids=[f"{m[0]}-{m[2]}" for m in MUTANTS])
async def test_a_broken_transport_is_caught(
    check: str, owner: object, attribute: str, broken: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await run(CHECKS[check], VirtualMemoryHarness()) == "ran"
    monkeypatch.setattr(steps, "PROMPT", 0.2)
    monkeypatch.setattr(steps, "GRACE", 0.1)
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises((AssertionError, TimeoutError, ValueError)):
        await run(CHECKS[check], VirtualMemoryHarness())
