"""The values that core and transports exchange."""

from __future__ import annotations

import dataclasses

import pytest

from busline.message import Delivery, Message, QueueSpec, ToQueue, ToTopic


def test_a_message_is_a_topic_and_a_body_and_little_else() -> None:
    message = Message("a.topic", b"1")
    assert (message.meta, message.headers, message.correlation_id, message.reply_to) == ("", {}, None, None)
    assert (message.priority, message.delay, message.ttl) == (0, 0.0, None)
    assert message == Message("a.topic", b"1")


def test_messages_do_not_share_their_headers() -> None:
    assert Message("a", b"").headers is not Message("a", b"").headers


def test_a_delivery_is_itself_and_no_other() -> None:
    message = Message("a.topic", b"1")
    one, other = Delivery(message, "q", 1), Delivery(message, "q", 1)
    assert one != other
    assert len({one, other}) == 2
    assert (one.deliveries, one.leased_until) == (1, 0.0)


@pytest.mark.parametrize("value", [QueueSpec("q"), ToQueue("q"), ToTopic("t")], ids=repr)
def test_what_describes_is_known_by_its_values(value: object) -> None:
    (first, *_) = dataclasses.fields(value)  # type: ignore[arg-type]  # all of them are dataclasses
    same, other = dataclasses.replace(value), dataclasses.replace(value, **{first.name: "other"})  # type: ignore[type-var]  # likewise
    assert len({value, same, other}) == 2
    assert (repr(value), value) == (repr(same), same)
    assert repr(other) != repr(value)


def test_a_queue_and_a_topic_of_one_name_are_two_destinations() -> None:
    assert ToQueue("orders") != ToTopic("orders")
