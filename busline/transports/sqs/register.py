"""Who owns a topic and who listens to what: written in the tags of the queues themselves, which SQS keeps with them.

Reading all of them takes a request for each queue. So whoever changes one also changes the tag of one further queue,
the register, and a single request tells the others whether they have to read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from time import monotonic, time
from typing import Any
from zlib import crc32

from busline.errors import BuslineError, ConfigurationError, QueueNotFound
from busline.message import QueueSpec
from busline.topics import matches
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.faults import Denied
from busline.transports.sqs.names import REGISTER, REPLIES, last_part, our_name, tag_text, tag_word
from busline.transports.sqs.url import Settings

QUEUE, SERVICE, PREFIX, KIND, ALIVE, GENERATION = (
    f"busline:{what}" for what in ("queue", "service", "prefix", "kind", "alive", "generation")
)
TOPICS, PATTERNS = "busline:t", "busline:p"
TOPIC_TAGS, PATTERN_TAGS = 28, 12
"""Of the 50 tags that a queue may have."""
LONGEST = 256
"""Characters of a tag's value."""
AT_ONCE = 16
"""Queues whose tags are read at the same time."""
FIRST_LOOK = 1.0
"""Seconds after which a queue without tags is looked at again; it may just have been made. Doubled each time."""
LONGEST_LOOK = 60.0


@dataclass(slots=True)
class Entry:
    """What the tags of one queue say."""

    name: str
    url: str
    service: str = ""
    kind: str = ""
    topics: frozenset[str] = frozenset()
    """As words of tags."""
    patterns: frozenset[str] = frozenset()
    alive: float = 0.0
    """When the owner of an ephemeral queue last said that it lives."""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ephemeral(self) -> bool:
        """It goes with a process."""
        return self.kind == "ephemeral"


def entry_of(url: str, tags: Mapping[str, str], prefix: str) -> Entry | None:
    """None for a queue that is not ours, or of a bus with another prefix."""
    called = last_part(url)
    if called == prefix + REGISTER or called.startswith(prefix + REPLIES):
        return None
    name = tag_text(tags[QUEUE]) if QUEUE in tags else our_name(called, prefix)
    if name is None or name.startswith("=h") or tags.get(PREFIX, prefix) != prefix:
        return None
    return Entry(
        name,
        url,
        tag_text(tags.get(SERVICE, "")),
        tags.get(KIND, ""),
        frozenset(_words(tags, TOPICS)),
        frozenset(map(tag_text, _words(tags, PATTERNS))),
        float(tags[ALIVE]) if tags.get(ALIVE, "").isdigit() else 0.0,
        tags,
    )


def _words(tags: Mapping[str, str], kind: str) -> Iterable[str]:
    for key, value in tags.items():
        if key.startswith(f"{kind}."):
            yield from value.split()


def placed(words: Iterable[str], kind: str, most: int) -> dict[str, str]:
    """The words in tags: each where its hash says, or in the next one with room, so that two processes that add
    different ones at the same time rarely write the same tag."""
    tags: dict[str, str] = {}
    for word in sorted(words):
        for step in range(most):
            key = f"{kind}.{(crc32(word.encode()) + step) % most}"
            joined = f"{tags[key]} {word}" if key in tags else word
            if len(joined) <= LONGEST:
                tags[key] = joined
                break
        else:
            raise ConfigurationError(
                "the tags of one queue at SQS have no room for so many topics: give some handlers a queue= of their "
                "own, or say routes= to the callers"
            )
    return tags


class Register:
    """All entries, as far as they may be read, kept as long as nobody says that they have changed."""

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients = clients
        self._settings = settings
        self._lock = asyncio.Lock()
        self._entries: dict[str, Entry] = {}
        self._looked = float("-inf")
        self._generation: str | None = None
        self._read = False
        self._untagged: dict[str, tuple[float, float]] = {}
        self._url: str | None = None
        self.before_burial: Callable[[Entry], Awaitable[None]] | None = None
        """What is to be done before the queue of a process that is gone is deleted."""
        self.denied = ""
        """What would be needed to read or write tags and is not permitted; "" where all is."""

    def forget(self) -> None:
        """Read everything again the next time: something was not as it said."""
        self._looked = float("-inf")
        self._read = False

    async def entries(self, *, believed: float | None = None) -> Mapping[str, Entry]:
        """By name; of ephemeral queues only those whose owners live. What was read within the last `believed` seconds
        is believed; by default, as long as the settings say."""
        asked = monotonic() - (self._settings.cache if believed is None else believed)
        while self._looked < asked:
            async with self._lock:
                if self._looked < asked:
                    began = monotonic()
                    await self._look()
                    self._looked = began
        return self._entries

    async def _look(self) -> None:
        generation = await self._read_generation()
        due = [url for url, (when, _) in self._untagged.items() if when <= monotonic()]
        if not self._read or generation is None or generation != self._generation:
            self._entries = await self._read_all()
            self._generation, self._read = generation, True
        elif due:
            await self._read_some(due)
        await self._bury([entry for entry in self._entries.values() if self._seems_gone(entry)])

    async def _read_generation(self) -> str | None:
        try:
            if self._url is None:
                self._url = await self._find_register()
            tags = await self._tags(self._url, "the register")
        except QueueNotFound:
            self._url = None
            return None
        except Denied as denied:
            self.denied = denied.action
            return None
        return tags.get(GENERATION, "")

    async def _find_register(self) -> str:
        name = self._settings.prefix + REGISTER
        return str((await self._clients.ask("GetQueueUrl", queue="the register", QueueName=name))["QueueUrl"])

    async def _tags(self, url: str, queue: str) -> dict[str, str]:
        return (await self._clients.ask("ListQueueTags", queue=queue, QueueUrl=url)).get("Tags") or {}

    async def urls(self, prefix: str) -> list[str]:
        """Of all queues whose names begin so."""
        found: list[str] = []
        request: dict[str, Any] = {"QueueNamePrefix": prefix} if prefix else {}
        while True:
            answer = await self._clients.ask("ListQueues", MaxResults=1000, **request)
            found += answer.get("QueueUrls") or []
            if not answer.get("NextToken"):
                return found
            request["NextToken"] = answer["NextToken"]

    async def _read_all(self) -> dict[str, Entry]:
        try:
            urls = await self.urls(self._settings.prefix)
        except Denied as denied:
            self.denied = denied.action
            return {}
        self._untagged = {url: seen for url, seen in self._untagged.items() if url in urls}
        prefix = self._settings.prefix
        urls = [url for url in urls if not last_part(url).startswith(prefix + REPLIES)]
        return {entry.name: entry for entry in await self._read_each(urls)}

    async def _read_some(self, urls: list[str]) -> None:
        for entry in await self._read_each(urls):
            self._entries[entry.name] = entry

    async def _read_each(self, urls: list[str]) -> list[Entry]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def read(url: str) -> Entry | None:
            async with gate:
                try:
                    return self._understood(url, await self._tags(url, last_part(url)))
                except QueueNotFound:  # deleted since it was listed
                    return None
                except Denied as denied:
                    self.denied = denied.action
                    return None

        return [entry for entry in await asyncio.gather(*map(read, urls)) if entry is not None]

    def _understood(self, url: str, tags: Mapping[str, str]) -> Entry | None:
        if QUEUE in tags:
            self._untagged.pop(url, None)
        elif last_part(url) != self._settings.prefix + REGISTER:
            pause = min(LONGEST_LOOK, self._untagged.get(url, (0.0, FIRST_LOOK / 2))[1] * 2)
            self._untagged[url] = (monotonic() + pause, pause)
        return entry_of(url, tags, self._settings.prefix)

    # -- what went with its process -------------------------------------------------------------------------------

    def _seems_gone(self, entry: Entry) -> bool:
        return entry.is_ephemeral and time() - entry.alive > self._settings.gone_after

    async def _bury(self, suspects: list[Entry]) -> None:
        """Look again at those that seem gone, as signs of life change no generation; delete those that are."""
        for suspect in suspects:
            try:
                now = entry_of(suspect.url, await self._tags(suspect.url, suspect.name), self._settings.prefix)
                if now is not None and not self._seems_gone(now):
                    self._entries[now.name] = now
                    continue
                if suspect.patterns and self.before_burial is not None:
                    await self.before_burial(suspect)
                await self._clients.ask("DeleteQueue", queue=suspect.name, QueueUrl=suspect.url)
            except (QueueNotFound, Denied):  # somebody else was faster, or it is left to somebody who may
                pass
            self._entries.pop(suspect.name, None)

    # -- questions ------------------------------------------------------------------------------------------------

    async def owner(self, topic: str) -> Entry | None:
        """The queue that owns `topic`. A no is never taken from what was read before."""
        word = tag_word(topic)
        for believed in (None, 0.0):
            for each in (await self.entries(believed=believed)).values():
                if word in each.topics:
                    return each
        return None

    async def listener(self, topic: str) -> Entry | None:
        """A queue that is bound to a pattern which matches it."""
        for each in (await self.entries()).values():
            if any(matches(pattern, topic) for pattern in each.patterns):
                return each
        return None

    # -- changes --------------------------------------------------------------------------------------------------

    async def record(self, spec: QueueSpec, url: str, *, stamp: float) -> bool:
        """Write what `spec` says into the tags of its queue; False if tags may not be written. Raises
        ConfigurationError if another service owns one of its topics, and then nothing is changed."""
        self.forget()
        try:
            moved = self.check_owners(spec, await self.entries())
            wanted = frozenset(map(tag_word, spec.topics))
            changed, listens = await self._write(spec, url, stamp)
            for other in moved:
                await self._take_away(other, wanted)
            if changed or moved:
                await self._announce()
        except Denied as denied:
            self.denied = denied.action
            return False
        if (moved or listens) and self._settings.cache:
            # Until then others may believe what they have read. When we return, what they send arrives here.
            await asyncio.sleep(self._settings.cache)
        return True

    def check_owners(self, spec: QueueSpec, entries: Mapping[str, Entry]) -> list[Entry]:
        """The other queues of the same service that own topics of `spec` now. Raises ConfigurationError for one of
        another service."""
        wanted = frozenset(map(tag_word, spec.topics))
        others = [each for each in entries.values() if each.name != spec.name and each.topics & wanted]
        for other in others:
            if other.service != spec.service:
                topics = ", ".join(sorted(map(tag_text, other.topics & wanted)))
                raise ConfigurationError(
                    f"topic {topics} belongs to queue {other.name!r} of service {other.service!r} at "
                    f"{self._settings.where}; {spec.name!r} of {spec.service!r} cannot have it, too"
                )
        return others

    async def _write(self, spec: QueueSpec, url: str, stamp: float) -> tuple[bool, bool]:
        """Returns whether something changed that others read, and whether that was about patterns."""
        before = await self._tags(url, spec.name)
        topics = {*_words(before, TOPICS), *map(tag_word, spec.topics)}
        wanted = _identity(spec, self._settings.prefix, stamp)
        wanted |= placed(topics, TOPICS, TOPIC_TAGS)
        wanted |= placed(map(tag_word, spec.patterns), PATTERNS, PATTERN_TAGS)
        new = {key: value for key, value in wanted.items() if before.get(key) != value}
        old = [key for key in before if key.startswith((f"{TOPICS}.", f"{PATTERNS}.")) and key not in wanted]
        if new:
            await self._clients.ask("TagQueue", queue=spec.name, QueueUrl=url, Tags=new)
        if old:
            await self._clients.ask("UntagQueue", queue=spec.name, QueueUrl=url, TagKeys=old)
        changed = [key for key in (*new, *old) if not key.startswith(ALIVE)]
        return bool(changed), any(key.startswith(PATTERNS) for key in changed)

    async def _take_away(self, other: Entry, words: frozenset[str]) -> None:
        before = await self._tags(other.url, other.name)
        left = placed({*_words(before, TOPICS)} - words, TOPICS, TOPIC_TAGS)
        gone = [key for key in before if key.startswith(f"{TOPICS}.") and key not in left]
        if left:
            await self._clients.ask("TagQueue", queue=other.name, QueueUrl=other.url, Tags=left)
        if gone:
            await self._clients.ask("UntagQueue", queue=other.name, QueueUrl=other.url, TagKeys=gone)

    async def _announce(self) -> None:
        """Tell the others that something has changed."""
        self.forget()
        fresh = {GENERATION: token_hex(8)}
        try:
            if self._url is None:
                self._url = await self._find_register()
            await self._clients.ask("TagQueue", queue="the register", QueueUrl=self._url, Tags=fresh)
        except QueueNotFound:
            if self._settings.create != "all":
                return  # Then everybody reads all tags whenever the time of its cache has passed.
            name = self._settings.prefix + REGISTER
            self._url = str((await self._clients.ask("CreateQueue", QueueName=name))["QueueUrl"])
            # Apart from making it, which changes nothing where somebody else was faster.
            await self._clients.ask("TagQueue", queue="the register", QueueUrl=self._url, Tags=fresh)

    async def removed(self) -> None:
        """A queue was deleted."""
        try:
            await self._announce()
        except BuslineError:
            pass  # Who sends there is told that it is gone, and reads again.


def _identity(spec: QueueSpec, prefix: str, stamp: float) -> dict[str, str]:
    tags = {QUEUE: tag_word(spec.name), SERVICE: tag_word(spec.service), PREFIX: prefix}
    tags[KIND] = "ephemeral" if spec.ephemeral else "dead" if spec.for_dead_letters else "work"
    if spec.ephemeral:
        tags[ALIVE] = str(int(stamp))
    return tags
