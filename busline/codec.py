"""Python values to JSON and back: orjson and pydantic-core straight from and to bytes.

pydantic is imported when something first needs it, as that takes longer than importing all of the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from busline.errors import CodecError, ConfigurationError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

NULL = b"null"
LISTED = 1000
"""Most errors of one payload that are looked at; each costs microseconds, and there may be one for every two bytes."""


def encode(payload: object) -> bytes:
    """The payload's JSON. Takes pydantic models, dataclasses, what JSON has, and datetime, UUID, Decimal, set ….

    NaN and infinities become null, as JSON knows none. Raises CodecError for what has no JSON form.
    """
    if payload is None:
        return NULL
    try:
        serializer = getattr(type(payload), "__pydantic_serializer__", None)
        return _plain(payload) if serializer is None else serializer.to_json(payload)
    except (RecursionError, ValueError, TypeError) as error:  # pydantic's own is a ValueError
        raise CodecError(f"a {type(payload).__name__} cannot be sent as JSON: {error}") from error


def compact(json: bytes) -> bytes:
    """The same, to be kept: what orjson returns takes 4 KB of memory, however short it is."""
    return memoryview(json).tobytes()


def _plain(payload: object) -> bytes:
    try:
        return compact(orjson.dumps(payload, default=_jsonable))
    except orjson.JSONEncodeError:
        # Keys that are not strings, integers beyond 64 bits: rare, and pydantic-core has an answer for them.
        from pydantic_core import to_json

        return to_json(payload, inf_nan_mode="null")


def _jsonable(value: object) -> Any:
    if isinstance(value, Iterator):
        raise TypeError("can be read once only")  # and that has to be by to_json, should orjson fail further on
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)


def decode(body: bytes) -> Any:
    """The JSON value in `body`; an empty body is None. Raises CodecError."""
    try:
        return orjson.loads(body or NULL)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise CodecError(f"the body is not JSON: {error}") from error


def decoder(annotation: Any) -> Callable[[bytes], Any]:
    """A function from bytes to a value of the annotated type; it raises pydantic's ValidationError or CodecError.

    Raises ConfigurationError if pydantic cannot make anything of the annotation.
    """
    if annotation is Any or annotation is None:
        return decode
    from pydantic import TypeAdapter

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        # pydantic puts off what refers to something undefined until first use; here it has to be known now.
        adapter.core_schema.get("type")
    except Exception as error:  # pydantic raises half a dozen unrelated types here
        raise ConfigurationError(f"{annotation!r} cannot be read from JSON: {error}") from error
    validate = adapter.validator.validate_json  # itself, for the adapter's own method costs more than a small payload

    def read(body: bytes) -> Any:
        return validate(body or NULL)

    return read


@lru_cache(maxsize=1024)
def _cached_decoder(annotation: Any) -> Callable[[bytes], Any]:
    return decoder(annotation)


def decode_as(annotation: Any, body: bytes) -> Any:
    """The value in `body` as the annotated type; raises CodecError that says where it does not fit."""
    try:
        read = _cached_decoder(annotation)
    except TypeError:  # an annotation that cannot be hashed cannot be cached either
        read = decoder(annotation)
    try:
        return read(body)
    except ValueError as error:
        from pydantic import ValidationError

        if not isinstance(error, ValidationError):
            raise
        raise CodecError(describe(error)) from error


def describe(error: ValidationError) -> str:
    """pydantic's findings on one line, without the input values."""
    if (number := error.error_count()) > LISTED:  # pydantic lists all or none
        return f"{number} errors, too many to be listed"
    found = error.errors(include_url=False, include_input=False, include_context=False)
    places = (".".join(str(part) for part in item["loc"]) or "body" for item in found[:5])
    text = "; ".join(f"{place}: {item['msg']}" for place, item in zip(places, found, strict=False))
    return text + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def is_malformed(error: ValidationError) -> bool:
    """Not even JSON, as opposed to JSON of the wrong shape (a text in it that should be JSON itself, for one)."""
    found = error.errors(include_url=False, include_input=False) if error.error_count() == 1 else ()
    return any(item["type"] == "json_invalid" and not item["loc"] for item in found)
