"""Our names as SQS takes them, and back. Two names never become one.

A queue's name at SQS has 80 letters, digits, `-` and `_`. Names of these alone stay as they are, a dot becomes `--`,
any other byte of the UTF-8 `-_` and two hex digits, and so does a `-` that would be mistaken for the beginning of
either. What is too long keeps its beginning and ends in `-_h` and a hash.

A tag's value has few characters more: other bytes become `=` and two hex digits.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from busline.errors import ConfigurationError

LONGEST = 80
FIFO = ".fifo"
REPLIES = "-_reply-"
"""How the name of a queue for replies goes on after the prefix; `r` is no hex digit, so it is nobody's name."""
REGISTER = "-_register"
"""The queue without messages whose tag tells whether the others' tags have changed."""

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_ESCAPED = re.compile(r"--|-_([0-9a-f]{2})|([A-Za-z0-9_-])")
_IN_TAGS = re.compile(rb"[^A-Za-z0-9+./:@_-]")
_TAGGED = re.compile(r"=([0-9A-F]{2})")
LONGEST_TAG = 200
"""Characters of a tagged word, beyond which only its hash is tagged."""


def queue_name(name: str, prefix: str) -> str:
    """What the queue `name` is called at SQS."""
    stem, fifo = (name[: -len(FIFO)], FIFO) if is_fifo(name) else (name, "")
    escaped = _escape(stem)
    room = LONGEST - len(prefix) - len(fifo)
    if len(escaped) > room:
        digest = blake2b(stem.encode(), digest_size=12).hexdigest()
        escaped = f"{_kept(escaped, room)}-_h{digest}"
    return prefix + escaped + fifo


def _kept(escaped: str, room: int) -> str:
    """What stays of a name that is too long, before `-_h` and 24 digits."""
    return escaped[: room - 27].rstrip("-")


def beginning(start: str, prefix: str) -> str:
    """How the names of queues begin at SQS that begin with `start`, a beginning of words."""
    escaped, room = _escape(start), LONGEST - len(prefix)
    return prefix + (escaped if len(escaped) <= room - 27 else _kept(escaped, room))


def _escape(stem: str) -> str:
    # From the end, because a dash is plain only where what follows it does not begin with one, or with an underscore.
    out: list[str] = []
    following = ""
    for character in reversed(stem):
        if character in _PLAIN or (character == "-" and following not in ("-", "_")):
            piece = character
        elif character == ".":
            piece = "--"
        else:
            piece = "".join(f"-_{byte:02x}" for byte in character.encode())
        out.append(piece)
        following = piece[0]
    return "".join(reversed(out))


def is_fifo(name: str) -> bool:
    """Does the name ask for a FIFO queue?"""
    return name.endswith(FIFO) and len(name) > len(FIFO)


def our_name(name: str, prefix: str) -> str | None:
    """Which queue of ours is called `name` at SQS; None if the name does not tell."""
    if not name.startswith(prefix):
        return None
    stem, fifo = (name[len(prefix) : -len(FIFO)], FIFO) if name.endswith(FIFO) else (name[len(prefix) :], "")
    out, at = bytearray(), 0
    while at < len(stem):
        found = _ESCAPED.match(stem, at)
        if found is None or stem.startswith("-_h", at):
            return None
        out += b"." if found[0] == "--" else bytes.fromhex(found[1]) if found[1] else found[0].encode()
        at = found.end()
    try:
        ours = out.decode() + fifo
    except UnicodeDecodeError:
        return None
    return ours if ours and queue_name(ours, prefix) == name else None


def last_part(url: str) -> str:
    """The name in a queue's URL or ARN."""
    return re.split(r"[/:]", url)[-1]


def tag_word(text: str) -> str:
    """`text` as one word of a tag's value; only a hash of what is too long, which can be compared, not read."""
    word = _IN_TAGS.sub(lambda found: b"=%02X" % found[0][0], text.encode()).decode()
    return word if len(word) <= LONGEST_TAG else "=h" + blake2b(text.encode(), digest_size=16).hexdigest()


def tag_text(word: str) -> str:
    """What `tag_word` was made from; the word itself where that is a hash."""
    if word.startswith("=h"):
        return word
    raw = _TAGGED.sub(lambda found: chr(int(found[1], 16)), word)
    try:
        return raw.encode("latin-1").decode()
    except UnicodeError as error:
        raise ConfigurationError(f"a queue's tag says {word!r}, which busline has not written") from error
