"""Python values to JSON and back, and the bytes that are not what they claim to be."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, ForwardRef
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    Field,
    Json,
    ValidationError,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
)

from busline.codec import LISTED, decode, decode_as, decoder, describe, encode, is_malformed
from busline.errors import CodecError, ConfigurationError

always = settings(derandomize=True, deadline=None, max_examples=50)
text = st.text(st.characters(exclude_categories=["Cs"]))
scalar = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
plain = st.recursive(scalar, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=4)


class Order(BaseModel):
    id: str
    qty: int = 1


@dataclass
class Line:
    sku: str
    price: float


class Colour(Enum):
    RED = "red"


class Touchy(BaseModel):
    a: int

    @field_serializer("a")
    def _out(self, value: int) -> int:
        raise KeyError(value)


class Computed(BaseModel):
    a: int = 1

    @computed_field  # type: ignore[prop-decorator]  # mypy does not know decorated properties
    @property
    def b(self) -> int:
        raise ZeroDivisionError


class Strict(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def _in(cls, value: int) -> int:
        raise KeyError(value)


class Nested(BaseModel):
    inner: Json[int]


def invalid(annotation: Any, body: bytes) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        decoder(annotation)(body)
    return caught.value


# -- to bytes ---------------------------------------------------------------------------------------------------------


@always
@given(plain)
def test_json_values_arrive_as_they_left(value: Any) -> None:
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (None, b"null"),
        (Order(id="o"), b'{"id":"o","qty":1}'),
        ([Order(id="o")], b'[{"id":"o","qty":1}]'),
        (Line("s", 1.5), b'{"sku":"s","price":1.5}'),
        ((1, 2), b"[1,2]"),
        ({1}, b"[1]"),
        (Decimal("1.10"), b'"1.10"'),
        (Colour.RED, b'"red"'),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (datetime(2030, 1, 2, tzinfo=UTC), b'"2030-01-02T00:00:00+00:00"'),
        (b"bytes", b'"bytes"'),
        ({1: "a", 2: "b"}, b'{"1":"a","2":"b"}'),
        (2**70, b"1180591620717411303424"),
        ([Decimal(1), 2**70, math.inf], b'["1",1180591620717411303424,null]'),
        (math.nan, b"null"),
        ([math.inf], b"[null]"),
        ((n for n in (1, 2)), b"[1,2]"),
        ({"rows": (n for n in (1, 2**70))}, b'{"rows":[1,1180591620717411303424]}'),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else type(value).__name__,
)
def test_what_has_a_json_form_is_sent_in_it(payload: Any, body: bytes) -> None:
    assert encode(payload) == body


def endless(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def breaks_off() -> Iterator[int]:
    yield 1
    raise KeyError("no more")


UNSENDABLE = {
    "an object": object(),
    "a function": print,
    "an object inside": {"a": [object()]},
    "an object as key": {object(): 1},
    "a lone surrogate": "\ud800",
    "a lone surrogate as key": {"\ud800": 1},
    "bytes that are no text": b"\xff",
    "a circle": circle(),
    "too deep": endless(100_000),
    "a serializer that raises": Touchy(a=1),
    "a serializer that raises, inside": [Touchy(a=1)],
    "a computed field that raises": Computed(),
    "a generator that breaks off": breaks_off(),
    "an exception": ValueError("x"),
}


@pytest.mark.parametrize("payload", UNSENDABLE.values(), ids=UNSENDABLE)
def test_what_has_no_json_form_is_refused(payload: Any) -> None:
    with pytest.raises(CodecError, match=f"a {type(payload).__name__} cannot be sent as JSON"):
        encode(payload)


# -- from bytes -------------------------------------------------------------------------------------------------------

MALFORMED = {
    "a word": b"busline",
    "cut off": b'{"a":',
    "two values": b"1 2",
    "invalid UTF-8": b'"\xff"',
    "a lone surrogate": b'"\\ud800"',
    "a byte order mark": b"\xef\xbb\xbf1",
    "a zero byte": b"\x00",
    "a depth bomb": b"[" * 100_000,
    "a closed depth bomb": b"[" * 100_000 + b"]" * 100_000,
    "200,000 digits": b"9" * 200_000,
    "a single quote": b"'a'",
    "a trailing comma": b"[1,]",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(CodecError, match="not JSON"):
        decode(body)
    with pytest.raises(CodecError):
        decode_as(list[Any], body)
    assert is_malformed(invalid(dict[str, Any], body))


@pytest.mark.parametrize("body", [b"NaN", b"-Infinity", b"1e999"])
def test_json_knows_no_nan_and_no_infinity(body: bytes) -> None:
    with pytest.raises(CodecError):
        decode(body)


def test_a_short_body_takes_little_memory_while_it_waits() -> None:
    tracemalloc.start()
    try:
        kept = [encode({"number": number}) for number in range(1000)]
        assert tracemalloc.get_traced_memory()[0] / len(kept) < 200
    finally:
        tracemalloc.stop()


def test_an_empty_body_is_null() -> None:
    assert decode(b"") is None
    assert decoder(int | None)(b"") is None
    assert decoder(None)(b"") is None


def test_of_two_fields_of_one_name_the_last_counts() -> None:
    assert decode(b'{"a":1,"a":2}') == {"a": 2}
    assert decode_as(dict[str, int], b'{"a":1,"a":2}') == {"a": 2}


def test_an_annotation_says_what_comes_out() -> None:
    assert decode_as(Order, b'{"id":"o","qty":2}') == Order(id="o", qty=2)
    assert decode_as(list[Line], b'[{"sku":"s","price":1}]') == [Line("s", 1.0)]
    assert decode_as(Any, b"[1]") == [1]
    assert decode_as(None, b"1") == 1
    assert decode_as(Annotated[int, Field(gt=1)], b"2") == 2


def test_an_annotation_that_cannot_be_hashed_works_too() -> None:
    unhashable = Annotated[int, Field(gt=1), ["a list"]]
    with pytest.raises(TypeError):
        hash(unhashable)
    assert decode_as(unhashable, b"2") == 2


def test_what_does_not_fit_is_refused_with_its_place_and_without_its_value() -> None:
    with pytest.raises(CodecError) as caught:
        decode_as(list[Order], b'[{"id":"o"},{"id":"o","qty":"secret"}]')
    assert str(caught.value).startswith("1.qty: ")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "annotation", [5, object(), "Nowhere", ForwardRef("Nowhere")], ids=["5", "object", "name", "ref"]
)
def test_an_annotation_that_means_nothing_is_refused_before_any_message_comes(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read from JSON"):
        decoder(annotation)


def test_a_model_whose_parts_are_nowhere_defined_is_refused_before_any_message_comes() -> None:
    half = create_model("Half", other=("Nowhere", ...))
    with pytest.raises(ConfigurationError, match="Half"):
        decoder(half)


# -- findings ---------------------------------------------------------------------------------------------------------


def test_five_findings_are_told_and_the_rest_is_counted() -> None:
    assert describe(invalid(list[int], b'["a","b"]')).count("Input should be") == 2
    six = describe(invalid(list[int], b'["a","b","c","d","e","f"]'))
    assert six.endswith("; and 1 more")
    assert "\n" not in six


def test_a_finding_about_the_whole_is_about_the_body() -> None:
    assert describe(invalid(int, b'"x"')).startswith("body: ")


def test_the_wrong_shape_is_not_malformed() -> None:
    assert not is_malformed(invalid(int, b'"x"'))


def test_a_text_within_the_body_that_should_be_json_and_is_not_is_of_the_wrong_shape() -> None:
    assert not is_malformed(invalid(Nested, b'{"inner":"{"}'))


@pytest.mark.parametrize("body", [b'{"a":1}'])
def test_a_validator_that_fails_otherwise_is_not_hidden(body: bytes) -> None:
    with pytest.raises(KeyError):
        decoder(Strict)(body)


def test_a_payload_with_an_error_for_every_two_bytes_is_refused_without_listing_them() -> None:
    body = b"[" + b",".join([b"{}"] * 350_000) + b"]"
    with pytest.raises(CodecError, match="350000 errors, too many to be listed"):
        decode_as(list[int], body)


def test_as_many_errors_as_are_looked_at_are_listed() -> None:
    with pytest.raises(CodecError, match=f"and {LISTED - 5} more"):
        decode_as(list[int], b"[" + b",".join([b"{}"] * LISTED) + b"]")
