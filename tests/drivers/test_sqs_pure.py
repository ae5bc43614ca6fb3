"""Names, messages, filters and URLs of the SQS driver, without SQS."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busline.errors import ConfigurationError, MessageTooLarge
from busline.message import Message
from busline.topics import matches
from busline.transports.sqs import iam_policy
from busline.transports.sqs.events import rules_of
from busline.transports.sqs.names import beginning, is_fifo, our_name, queue_name, tag_text, tag_word
from busline.transports.sqs.register import TOPIC_TAGS, TOPICS, placed
from busline.transports.sqs.url import parse
from busline.transports.sqs.wire import _FORBIDDEN, MAX_WIRE, parcel, read

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
TRICKY = st.text("ab._-/hé2d", min_size=1, max_size=30)
WORDS = st.lists(st.sampled_from(["a", "b", "ab", "é", "%", "x\x01"]), min_size=1, max_size=4).map(".".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "ab", "*", "#", "é", "%", "x\x01"]), min_size=1, max_size=4).map(
    ".".join
)


@given(TEXT | TRICKY)
def test_a_queues_name_is_one_that_sqs_takes_and_can_be_read_back(name: str) -> None:
    called = queue_name(name, "p-")
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}(\.fifo)?", called)
    assert len(called) <= 80
    assert our_name(called, "p-") in (name, None)
    assert our_name(called, "p-") == name or "-_h" in called
    assert called.endswith(".fifo") == is_fifo(name)


@given(st.lists(TRICKY | TEXT, min_size=2, max_size=20, unique=True))
def test_two_names_never_become_one(names: list[str]) -> None:
    assert len({queue_name(name, "") for name in names}) == len(names)


@given(TEXT | TRICKY, st.sampled_from(["", "p" * 30]), st.sampled_from([".", ".doctor-"]))
def test_names_that_begin_alike_do_so_at_sqs(name: str, prefix: str, end: str) -> None:
    assert queue_name(f"{name}{end}01ab", prefix).startswith(beginning(name + end, prefix))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("import_queue", "import_queue"), ("my-queue", "my-queue"), ("orders.create.dead", "orders--create--dead")],
)
def test_ordinary_names_stay_readable(ours: str, theirs: str) -> None:
    assert queue_name(ours, "") == theirs


@given(TEXT)
def test_a_word_of_a_tag_has_no_character_that_tags_cannot_have(text: str) -> None:
    word = tag_word(text)
    assert re.fullmatch(r"[A-Za-z0-9+./:@_=-]{1,256}", word)
    assert tag_text(word) == text or word.startswith("=h")


def test_topics_that_do_not_fit_into_tags_are_refused_and_those_that_do_are_all_there() -> None:
    topics = [f"service.topic-{number}" for number in range(150)]
    tags = placed(topics, TOPICS, TOPIC_TAGS)
    assert sorted(word for value in tags.values() for word in value.split()) == sorted(topics)
    assert all(len(value) <= 256 for value in tags.values())
    with pytest.raises(ConfigurationError, match="routes="):
        placed([f"service.a-rather-long-topic-{number}" for number in range(1000)], TOPICS, TOPIC_TAGS)


@given(st.binary(max_size=200) | TEXT.map(str.encode), TEXT, st.dictionaries(TEXT, st.text(max_size=20)))
def test_a_message_survives_the_way_there_and_back(body: bytes, topic: str, headers: dict[str, str]) -> None:
    headers = {name: value.encode(errors="replace").decode() for name, value in headers.items()}
    sent = Message(topic, body, '{"id":"ü\uffff"}', headers, "c-1", "where/to?")
    made = parcel(sent)
    assert made.body
    assert not _FORBIDDEN.search(made.body)
    for value in made.attributes.values():
        assert "BinaryValue" in value or not _FORBIDDEN.search(value["StringValue"])
    assert len(made.attributes) <= 10
    got = read({"Body": made.body, "MessageAttributes": made.attributes}).message
    assert (got.topic, got.body, got.meta, dict(got.headers)) == (topic, body, sent.meta, headers)
    assert (got.correlation_id, got.reply_to) == ("c-1", "where/to?")


def test_what_others_have_written_is_read_as_far_as_it_goes() -> None:
    attributes: dict[str, Any] = {
        "topic": {"DataType": "String", "StringValue": "a.topic"},
        "tenant": {"DataType": "String", "StringValue": "ann"},
        "busline-driver": {"DataType": "String", "StringValue": '["not", "ours"]'},
        "headers": {"DataType": "String", "StringValue": "{broken"},
    }
    message = read({"Body": "{}", "MessageAttributes": attributes}).message
    assert (message.topic, message.body, message.meta, dict(message.headers)) == (
        "a.topic",
        b"{}",
        "",
        {"tenant": "ann"},
    )
    assert read({"Body": "plain"}, "only.topic").message.topic == "only.topic"


def test_a_message_that_does_not_fit_is_refused_before_the_wire() -> None:
    with pytest.raises(MessageTooLarge):
        parcel(Message("a", b"x" * MAX_WIRE))


@given(st.lists(PATTERNS, min_size=1, max_size=3), WORDS)
def test_what_a_pattern_matches_passes_the_filter_at_sns(patterns: list[str], topic: str) -> None:
    carried = parcel(Message(topic, b"{}")).attributes["topic"]["StringValue"]
    if any(matches(pattern, topic) for pattern in patterns):
        assert any(_passes(rule, carried) for rule in rules_of(patterns))


def _passes(rule: object, value: str) -> bool:
    """As SNS documents it."""
    if isinstance(rule, dict):
        return "exists" in rule or value.startswith(rule["prefix"])
    return rule == value


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqs://", "looks like"),
        ("sqs://key:secret@eu-west-1", "credentials"),
        ("sqs://eu-west-1?endpoint_url=http://a:b@c", "credentials"),
        ("sqs://eu-west-1?wait=21", "0 to 20"),
        ("sqs://eu-west-1?lease=0", "1 to 43200"),
        ("sqs://eu-west-1?prefix=a.b", "letters"),
        ("sqs://eu-west-1?create=maybe", "ephemeral"),
        ("sqs://eu-west-1?visibility=3", "known are"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as refused:
        parse(url)
    assert "secret" not in str(refused.value)


def test_the_policy_grants_what_the_url_asks_for_and_no_more() -> None:
    def actions(url: str, **how: bool) -> set[str]:
        return {action for each in iam_policy(url, **how)["Statement"] for action in each["Action"]}

    everything = actions("sqs://eu-west-1?prefix=shop-")
    assert {"sqs:CreateQueue", "sqs:ChangeMessageVisibility", "sns:Subscribe", "sns:Publish"} <= everything
    assert "sqs:SetQueueAttributes" not in actions("sqs://eu-west-1?create=ephemeral&events=0")
    assert "sqs:SetQueueAttributes" in actions("sqs://eu-west-1?create=false"), "a queue that listens has to let SNS in"
    assert "sqs:CreateQueue" not in actions("sqs://eu-west-1?create=false")
    assert not {a for a in actions("sqs://eu-west-1?events=0") if a.startswith("sns:")}
    assert "sns:Subscribe" not in actions("sqs://eu-west-1", worker=False)
