"""The envelope and the reply as they travel, and everything that pretends to be one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busline.errors import CodecError
from busline.message import Message
from busline.wire import (
    VERSION,
    Envelope,
    _read,
    decode_envelope,
    decode_error,
    encode_error,
    new_id,
    printable,
    reply_status,
    reply_to,
    text_of,
)

NOW = 1_000_000_000.0
always = settings(derandomize=True, deadline=None, max_examples=50)

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=("Cs",)))
name = text.filter(bool)
scalar = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | text
plain = st.recursive(scalar, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=4)
KNOWN = {
    "v",
    "id",
    "sent",
    "attempt",
    "deadline",
    "expires",
    "due",
    "correlation",
    "causation",
    "key",
    "replay",
    "failure",
}

envelopes = st.builds(
    Envelope,
    id=name,
    sent_at=finite,
    attempt=st.integers(1, 2**53),
    deadline=st.none() | finite,
    expires_at=st.none() | finite,
    correlation_id=name,
    causation_id=st.none() | name,
    key=st.none() | name,
    replay=st.none() | name,
    failure=st.none() | st.dictionaries(text, plain, min_size=1),
    unknown=st.none() | st.dictionaries(text.filter(lambda key: key not in KNOWN), plain, min_size=1),
)


def request(meta: str = "", **fields: Any) -> Message:
    return Message("a.topic", b"null", meta, **fields)


def meta(**fields: Any) -> str:
    return json.dumps({"v": 1, "id": "i", **fields})


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


NotEvenText = type("NotEvenText", (Exception,), {"__str__": lambda self: 5})


# -- the envelope -----------------------------------------------------------------------------------------------------


@always
@given(envelopes)
def test_an_envelope_arrives_as_it_left(envelope: Envelope) -> None:
    assert decode_envelope(request(envelope.encode()), NOW) == envelope


def test_the_next_attempt_differs_in_its_number_and_its_time_only() -> None:
    envelope = Envelope("i", NOW, 3, 1.5, 2.5, 3.5, "root", "cause", {"reason": "failed"}, {"later": 1})
    again = envelope.next_attempt(NOW)
    assert (again.attempt, again.due_at) == (envelope.attempt + 1, NOW)
    again.attempt, again.due_at = envelope.attempt, envelope.due_at
    assert again == envelope


def test_a_dead_letter_is_awaited_by_nobody_and_does_not_expire() -> None:
    envelope = Envelope("i", NOW, 3, 1.5, 2.5, unknown={"later": 1})
    dead = envelope.dead({"reason": "failed"})
    assert (dead.deadline, dead.expires_at, dead.failure) == (None, None, {"reason": "failed"})
    assert (dead.id, dead.attempt, dead.unknown) == (envelope.id, envelope.attempt, envelope.unknown)


def test_fields_that_say_nothing_do_not_travel() -> None:
    assert json.loads(Envelope("i", NOW, correlation_id="i").encode()) == {"v": VERSION, "id": "i", "sent": NOW}


def test_a_field_of_a_later_version_may_be_called_as_anything_of_ours_is() -> None:
    odd = {"unknown": 1, "encode": 2, "sent_at": 3, "root": 4, "__class__": 5}
    envelope = decode_envelope(request(meta(**odd)), NOW)
    assert envelope.unknown == odd
    assert json.loads(envelope.next_attempt(NOW).encode()).items() >= odd.items()


def test_fields_of_a_later_version_are_kept_but_never_replace_ours() -> None:
    envelope = decode_envelope(request(meta(sent=1, shape={"round": [True]})), NOW)
    assert envelope.unknown == {"shape": {"round": [True]}}
    assert json.loads(envelope.next_attempt(NOW).encode())["shape"] == {"round": [True]}
    envelope.unknown["id"] = "somebody else"
    assert json.loads(envelope.encode())["id"] == "i"


def test_what_is_left_out_has_its_default() -> None:
    envelope = decode_envelope(request(meta()), NOW)
    assert envelope == Envelope("i", NOW, correlation_id="i")


def test_a_message_from_elsewhere_gets_an_envelope_of_its_own() -> None:
    named = decode_envelope(request(correlation_id="theirs"), NOW)
    assert (named.id, named.sent_at, named.attempt) == ("theirs", NOW, 1)
    assert decode_envelope(request(), NOW).id != decode_envelope(request(), NOW).id


def test_ids_are_128_bits_and_never_the_same() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(bytes.fromhex(i)) == 16 for i in ids)


DEEP = "[" * 300 + "]" * 300
HOSTILE = {
    "not JSON": "busline",
    "empty JSON": " ",
    "cut off": '{"v":1,"id":"i"',
    "a list": "[1]",
    "a text": '"v1"',
    "a number": "1",
    "null": "null",
    "no version": '{"id":"i"}',
    "another version": meta(v=2),
    "a version as text": meta(v="1"),
    "a version that is true": meta(v=True),
    "a version that is null": meta(v=None),
    "a version that is a list": meta(v=[1]),
    "no id": '{"v":1}',
    "an empty id": meta(id=""),
    "a number as id": meta(id=7),
    "null as id": meta(id=None),
    "a list as id": meta(id=["i"]),
    "attempt 0": meta(attempt=0),
    "a negative attempt": meta(attempt=-1),
    "an attempt after which there is none": meta(attempt=2**64 - 1),
    "a broken attempt": meta(attempt=1.5),
    "a true attempt": meta(attempt=True),
    "an attempt as text": meta(attempt="1"),
    "an attempt beyond 64 bits": meta(attempt=2**64),
    "a true deadline": meta(deadline=True),
    "a false expiry": meta(expires=False),
    "a deadline as text": meta(deadline="soon"),
    "a null deadline": meta(deadline=None),
    "a sent that is a list": meta(sent=[1]),
    "a correlation that is a number": meta(correlation=1),
    "a causation that is true": meta(causation=True),
    "a failure that is a list": meta(failure=[]),
    "a failure that is true": meta(failure=True),
    "NaN": meta(deadline=float("nan")),
    "infinity": meta(expires=float("inf")),
    "beyond a double": '{"v":1,"id":"i","sent":1e999}',
    "200,000 digits": '{"v":1,"id":"i","sent":%s}' % ("9" * 200_000),
    "a hole in the Unicode": '{"v":1,"id":"\\ud800"}',
    "a surrogate as it is": '{"v":1,"id":"\ud800"}',
    "a depth bomb": "[" * 100_000,
    "deeper than can be written again": f'{{"v":1,"id":"i","later":{DEEP}}}',
    "a failure deeper than can be written again": f'{{"v":1,"id":"i","failure":{{"deep":{DEEP}}}}}',
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_envelope_is_refused_and_never_guessed(header: str) -> None:
    with pytest.raises(CodecError, match="busline header"):
        decode_envelope(request(header), NOW)


@always
@given(
    st.text()
    | plain.map(lambda value: json.dumps(value))
    | st.dictionaries(st.sampled_from(sorted(KNOWN)), plain).map(json.dumps)
)
def test_any_header_is_read_or_refused_and_can_be_sent_on(header: str) -> None:
    try:
        envelope = decode_envelope(request(header), NOW)
    except CodecError:
        return
    assert decode_envelope(request(envelope.next_attempt(NOW).encode()), NOW).attempt == envelope.attempt + 1
    assert envelope.dead({"reason": "failed"}).encode()


def test_integers_are_fine_as_instants() -> None:
    envelope = decode_envelope(request(meta(sent=1, deadline=2, expires=-3)), NOW)
    assert (envelope.sent_at, envelope.deadline, envelope.expires_at) == (1, 2, -3)


def test_of_two_fields_of_one_name_the_last_counts() -> None:
    assert decode_envelope(request('{"v":1,"id":"a","id":"b"}'), NOW).id == "b"


# -- replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["ok", "error", "started"])
def test_a_reply_goes_to_its_request_and_says_what_it_is(status: Any) -> None:
    reply = reply_to(request(correlation_id="c"), status, b"1")
    assert (reply.topic, reply.body, reply.correlation_id, reply.reply_to) == ("a.topic", b"1", "c", None)
    assert reply_status(reply) == status


def test_a_reply_written_with_other_spacing_means_the_same() -> None:
    assert reply_status(request('{ "status": "error", "v": 1, "later": [] }')) == "error"


def test_a_reply_from_elsewhere_is_a_result() -> None:
    assert reply_status(request()) == "ok"


STRANGE_REPLIES = ["{}", "[]", "no JSON", meta(status="chunk"), meta(), meta(status=["ok"]), meta(status=None)]


@pytest.mark.parametrize("header", [*STRANGE_REPLIES, '{"v":2,"status":"ok"}', '{"v":true,"status":"ok"}'])
def test_a_reply_of_unknown_kind_is_refused(header: str) -> None:
    with pytest.raises(CodecError):
        reply_status(request(header))


# -- errors -----------------------------------------------------------------------------------------------------------


@always
@given(text, text, st.dictionaries(text, plain))
def test_an_error_arrives_as_it_left(type: str, message: str, details: dict[str, Any]) -> None:
    assert decode_error(encode_error(type, message, details)) == (type, message, details)


@always
@given(st.text(), st.text())
def test_any_text_can_travel_as_an_error(type: str, message: str) -> None:
    kind, said, details = decode_error(encode_error(type, message, {"not": object()}))
    assert (kind, said, details) == (printable(type), printable(message), {})


def test_details_without_a_json_form_are_left_out_rather_than_the_error() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for details in ({"a": object()}, {"a": "\ud800"}, {"a": circle}, {object(): 1}):
        assert decode_error(encode_error("T", "text", details)) == ("T", "text", {})


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"type":null}', b'{"type":5}', b"{", b"\xff"])
def test_what_is_no_error_is_refused(body: bytes) -> None:
    with pytest.raises(CodecError):
        decode_error(body)


def test_an_error_may_come_without_message_and_details_and_with_odd_ones() -> None:
    assert decode_error(b'{"type":"T"}') == ("T", "", {})
    assert decode_error(b'{"type":"T","message":5,"details":[1]}') == ("T", "5", {})


def test_what_utf8_cannot_carry_is_replaced() -> None:
    assert printable("file-\udcff.csv") == "file-?.csv"
    assert printable("Grüße 🙂") == "Grüße 🙂"


def test_an_exception_that_cannot_say_what_it_is_still_has_a_text() -> None:
    assert text_of(ValueError("x\ud800")) == "x?"
    assert text_of(Unprintable()) == "(its text cannot be had: RuntimeError)"
    assert text_of(NotEvenText()) == "(its text cannot be had: TypeError)"


ABSENT = object()
ODD = (ABSENT, None, True, 0, 1, 1.5, "", "x", {}, [])


def outcome(read: Callable[[], Envelope]) -> Envelope | str:
    try:
        return read()
    except CodecError as error:
        return str(error)


@pytest.mark.parametrize("more", [{}, {"attempt": 2}, {"later": 1}])
def test_a_first_attempt_that_is_read_in_one_go_is_what_reading_field_by_field_gives(more: dict[str, Any]) -> None:
    """Whatever stands in the place of the fields that make a first attempt."""
    for values in product(ODD, repeat=3):
        said = dict(zip(("id", "sent", "deadline"), values, strict=True))
        fields = {name: value for name, value in said.items() if value is not ABSENT} | more
        message = request(json.dumps({"v": VERSION, **fields}))
        found = outcome(partial(decode_envelope, message, NOW))
        assert found == outcome(partial(_read, fields, NOW)), fields
