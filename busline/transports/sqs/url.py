"""What an `sqs://` URL says. It never says credentials: those are botocore's affair, by its usual chain."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from busline.errors import ConfigurationError

Create = Literal["all", "ephemeral", "none"]

LONGEST_WAIT = 20
"""Seconds that SQS lets a poll wait at most."""
LONGEST_LEASE = 12 * 3600
"""Seconds that SQS leaves a message with one receiver at most, extended or not."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Which queues are meant, and how to work with them. Times are seconds."""

    region: str
    endpoint_url: str | None = None
    prefix: str = ""
    """How the names of all our queues begin at SQS: a bus of its own within one account."""
    create: Create = "all"
    """Which queues may be made: all, the short-lived ones of a process (replies, broadcasts), or none."""
    wait: int = LONGEST_WAIT
    """How long a poll waits for a message, and therefore how long leaving may take."""
    lease: int = 10
    """Visibility timeout with which messages are received; renewed while they are worked on."""
    renew: bool = True
    """Leases may be renewed; False where ChangeMessageVisibility is not permitted."""
    events: bool = True
    """SNS may be used."""
    cache: float = 2.0
    """How long it is believed who owns a topic and who listens, before SQS is asked whether that has changed."""
    heartbeat: float = 60.0
    """How often a process says that it lives, so that its short-lived queues are left alone; ten missed are a death."""
    timeout: float = 10.0
    """Longest time for one operation."""

    @property
    def where(self) -> str:
        """The broker for people: no secrets."""
        place = f" at {self.endpoint_url}" if self.endpoint_url else ""
        return f"sqs://{self.region}{place}" + (f", queues {self.prefix}*" if self.prefix else "")

    @property
    def gone_after(self) -> float:
        """Seconds without a sign of life after which a process is gone."""
        return 10 * self.heartbeat


def parse(url: str) -> Settings:
    """Raises ConfigurationError for whatever is unknown, missing or unsafe."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "an sqs:// URL carries no credentials: botocore finds them itself (environment, profile, role)"
        )
    if not parts.hostname or parts.path.strip("/") or parts.fragment:
        raise ConfigurationError("an SQS URL looks like sqs://eu-west-1?prefix=shop-")
    return Settings(parts.hostname, **_options(parts.query))


def _options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        reader = _READERS.get(name)
        if reader is None:
            known = ", ".join(sorted(_READERS))
            raise ConfigurationError(f"there is no option {name!r} for sqs://; known are {known}")
        try:
            options[name] = reader(value)
        except ValueError as error:
            raise ConfigurationError(f"{name}={value!r}: {error}") from None
    return options


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not value.isascii() or not value.isdigit() or not least <= int(value) <= most:
            raise ValueError(f"must be {least} to {most} whole seconds")
        return int(value)

    return read


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        seconds = float(value)
        if not least <= seconds <= most:
            raise ValueError(f"must be {least:g} to {most:g} seconds")
        return seconds

    return read


def _endpoint(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("carries no credentials")
    return value


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,30}", value):
        raise ValueError("must be at most 30 letters, digits, - and _")
    return value


def _create(value: str) -> Create:
    if value in ("1", "true", "True"):
        return "all"
    if value in ("0", "false", "False"):
        return "none"
    if value == "ephemeral":
        return "ephemeral"
    raise ValueError("must be true, false or ephemeral")


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return value == "1"


_READERS: Mapping[str, Callable[[str], Any]] = {
    "cache": _seconds(0, 300),
    "create": _create,
    "endpoint_url": _endpoint,
    "events": _flag,
    "heartbeat": _seconds(0.1, 600),
    "lease": _whole(1, LONGEST_LEASE),
    "prefix": _prefix,
    "renew": _flag,
    "timeout": _seconds(0.1, 600),
    "wait": _whole(0, LONGEST_WAIT),
}
