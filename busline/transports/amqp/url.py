"""What an `amqp://` URL says. Whatever it should not say is refused, and its password is never shown."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from math import inf
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from yarl import URL

from busline.errors import ConfigurationError

Kind = Literal["quorum", "classic"]

PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the broker is, and how to talk to it. Times are seconds."""

    host: str
    port: int
    vhost: str
    user: str
    password: str = field(repr=False)
    tls: bool = False
    cafile: str | None = None
    heartbeat: int = 30
    """A dead peer is noticed after three of them at the latest."""
    timeout: float = 10.0
    """Longest time for one operation."""
    connect_timeout: float = 5.0
    kind: Kind = "quorum"
    """Type of the queues that don't name one."""
    consumer_timeout: float | None = None
    """The broker's own setting, after which it takes back a message that was not acked; inf = never, None = not said.
    Naming it here does not change it there, but where consumers may ask for it; see patience.py."""
    reply: Literal["direct", "queue"] = "direct"
    """Replies by direct reply-to, or by a queue of our own that outlives a lost connection."""

    @property
    def where(self) -> str:
        """The broker for people: no secrets."""
        scheme = "amqps" if self.tls else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{'' if self.vhost == '/' else self.vhost}"

    def wire_url(self, name: str) -> URL:
        """For the client library: it carries the password, and nothing that the user wrote as an option."""
        return URL.build(
            scheme="amqps" if self.tls else "amqp",
            user=self.user,
            password=self.password,
            host=self.host,
            port=self.port,
            path="/" + self.vhost.replace("/", "%2F"),
            query={"heartbeat": str(self.heartbeat), "name": name},
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """Verifies chain and host name, always. Raises ConfigurationError for a CA file that cannot be read."""
        if not self.tls:
            return None
        try:
            return ssl.create_default_context(cafile=self.cafile)
        except OSError as error:
            raise ConfigurationError(f"the CA file {self.cafile!r} cannot be used: {error}") from error


def parse(url: str) -> Settings:
    """Raises ConfigurationError for whatever is unknown, missing or unsafe; its text never has the password."""
    parts = _split(url)
    options = _options(parts)
    host = parts.hostname or "localhost"
    tls = parts.scheme == "amqps"
    if not tls and not _is_loopback(host) and not options.pop("allow_plaintext", False):
        raise ConfigurationError(
            f"amqp:// would send the password and every message in the clear to {host}: use amqps://, "
            "or allow it with ?allow_plaintext=1"
        )
    options.pop("allow_plaintext", None)
    if "cafile" in options and not tls:
        raise ConfigurationError("cafile= is for amqps:// only")
    user, password = _credentials(parts, host)
    vhost = unquote(parts.path[1:]) or "/"
    return Settings(host, parts.port or PORTS[parts.scheme], vhost, user, password, tls, **options)


def _split(url: str) -> SplitResult:
    wrong = ConfigurationError("an AMQP URL looks like amqp://user:password@host:5672/vhost")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in PORTS and parts.port != 0
    except ValueError as error:
        raise wrong from error
    if not valid:
        raise wrong
    if "/" in parts.path[1:]:
        raise ConfigurationError(f"the virtual host in {parts.path!r} has a slash: write it as %2F")
    if parts.fragment:
        raise ConfigurationError("an AMQP URL has no #fragment; a # in the password is written %23")
    return parts


def _credentials(parts: SplitResult, host: str) -> tuple[str, str]:
    if parts.username is None and _is_loopback(host):
        return "guest", "guest"
    if not parts.username or parts.password is None:
        raise ConfigurationError(f"the URL names no user and password for {host}; guest is for this machine only")
    return unquote(parts.username), unquote(parts.password)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _options(parts: SplitResult) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        reader = _READERS.get(name)
        if reader is None:
            known = ", ".join(sorted(_READERS))
            raise ConfigurationError(f"there is no option {name!r} for {parts.scheme}://; known are {known}")
        try:
            options[name] = reader(value)
        except ValueError as error:
            raise ConfigurationError(f"{name}={value!r}: {error}") from None
    return options


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 < seconds < 3600:
        raise ValueError("must be a number of seconds above 0 and below an hour")
    return seconds


def _seconds_or_none(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds < inf:
        raise ValueError("must be a number of seconds as the broker has it, or 0 if the broker has none")
    return seconds or inf


def _heartbeat(value: str) -> int:
    seconds = int(value)
    if not 1 <= seconds <= 600:
        raise ValueError("must be 1 to 600 whole seconds; without a heartbeat a dead broker is never noticed")
    return seconds


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return value == "1"


def _one_of(*values: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in values:
            raise ValueError(f"must be {' or '.join(values)}")
        return value

    return read


def _path(value: str) -> str:
    if not value:
        raise ValueError("must name a file")
    return value


_READERS: Mapping[str, Callable[[str], Any]] = {
    "allow_plaintext": _flag,
    "cafile": _path,
    "connect_timeout": _seconds,
    "consumer_timeout": _seconds_or_none,
    "heartbeat": _heartbeat,
    "kind": _one_of("quorum", "classic"),
    "reply": _one_of("direct", "queue"),
    "timeout": _seconds,
}
