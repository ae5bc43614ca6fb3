"""Topics are dotted words; a pattern matches them word by word: `*` exactly one word, `#` any number, also none."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Generic, TypeVar

from busline.errors import ConfigurationError
from busline.structs import frozen

MAX_TOPIC_BYTES = 255
"""AMQP 0-9-1 routing keys are short strings; the strictest broker sets the limit for all."""
RESERVED = "busline."
"""How the names of everything begin that is busline's own."""


@lru_cache(maxsize=4096)
def check_topic(topic: str) -> str:
    """Return `topic`, or raise ConfigurationError if no broker could carry it."""
    if not 0 < (size := _size(topic)) <= MAX_TOPIC_BYTES:
        raise ConfigurationError(f"a topic is text of 1 to {MAX_TOPIC_BYTES} bytes, {topic[:80]!r} has {size}")
    if is_pattern(topic):
        raise ConfigurationError(f"topic {topic!r} is a pattern; only subscribers and routes take `*` and `#`")
    if not all(topic.split(".")):
        raise ConfigurationError(f"topic {topic!r} has an empty word between its dots")
    return topic


def check_pattern(pattern: str) -> str:
    """Return `pattern`, or raise ConfigurationError: `*` and `#` stand for whole words."""
    words = pattern.split(".")
    if not 0 < _size(pattern) <= MAX_TOPIC_BYTES or not all(words):
        raise ConfigurationError(f"{pattern!r} is not a pattern: dotted words, `*` for one word, `#` for any number")
    for word in words:
        if ("*" in word or "#" in word) and len(word) > 1:
            raise ConfigurationError(f"in pattern {pattern!r}: {word!r} mixes a wildcard with text")
    return pattern


def _size(topic: str) -> int:
    """In bytes; 0 for what is not text: a lone surrogate, as in the names of odd files."""
    try:
        return len(topic.encode())
    except UnicodeEncodeError:
        return 0


def is_pattern(topic: str) -> bool:
    """Does any word of it stand for others?"""
    return "*" in topic or "#" in topic


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Every word is matched with the dot before it, so that "#" can stand for no word at all, at any place.
    parts = {"*": r"\.[^.]+", "#": r"(?:\.[^.]+)*"}
    return re.compile("".join(parts.get(word, r"\." + re.escape(word)) for word in pattern.split(".")))


def matches(pattern: str, topic: str) -> bool:
    """Does `topic` match `pattern`?"""
    if pattern == topic or pattern == "#":
        return True
    return is_pattern(pattern) and _compiled(pattern).fullmatch("." + topic) is not None


Req = TypeVar("Req")
Rep = TypeVar("Rep")


@frozen()
class Topic(Generic[Req, Rep]):
    """A topic with the types of its payload and its reply, shared by both sides: `Topic("orders.create", Cmd, Order)`.

    `await bus.call(TOPIC, Cmd(...))` then knows that it returns an Order, and checks it.
    """

    name: str
    request: type[Req]
    reply: type[Rep]

    def __post_init__(self) -> None:
        check_topic(self.name)
