"""What the URLs of all stores have in common: options that are checked, and no secret in any text."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from busline.errors import ConfigurationError

DEFAULT_TIMEOUT = 5.0
"""Seconds within which every operation ends, where the URL does not say `timeout=`."""


def without_secrets(url: str) -> str:
    """The URL without password and options, for people."""
    parts = urlsplit(url)
    _, _, host = parts.netloc.rpartition("@")
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{host}{parts.path}"


def options(url: str, known: Mapping[str, str]) -> dict[str, str]:
    """The options of the URL over the defaults `known`. Raises ConfigurationError for one that nobody knows."""
    chosen = dict(known)
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name not in known:
            names = ", ".join(sorted(known))
            raise ConfigurationError(f"{without_secrets(url)}: there is no option {name!r}; known are {names}")
        chosen[name] = value
    return chosen


def seconds(url: str, name: str, value: str) -> float:
    """A positive number of seconds. Raises ConfigurationError."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigurationError(
            f"{without_secrets(url)}: {name} is {value!r}, and must be a number of seconds above 0"
        )
    return number


def count(url: str, name: str, value: str) -> int:
    """A whole number from 1. Raises ConfigurationError."""
    if not (value.isascii() and value.isdecimal() and 0 < int(value) < 1_000_000):
        raise ConfigurationError(f"{without_secrets(url)}: {name} is {value!r}, and must be a whole number from 1")
    return int(value)
