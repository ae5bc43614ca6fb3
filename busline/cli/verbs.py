"""`busline call`, `send` and `publish`: the three verbs, by hand."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from busline.bus import Bus
from busline.cli.exits import Exit, Failure
from busline.cli.terminal import GREEN, RED, paint, say, show_json
from busline.codec import decode
from busline.errors import CallError, CodecError, TransportError

TopicName = Annotated[str, typer.Argument(metavar="TOPIC", help="For example orders.create.")]
Payload = Annotated[
    str | None, typer.Argument(metavar="[JSON]", help="The payload, for example '{\"id\": 1}'; - reads it from stdin.")
]
Url = Annotated[str | None, typer.Option(help="The broker; default: $BUSLINE_URL, else sqlite:///busline.db.")]
QueueName = Annotated[str | None, typer.Option(help="Straight to this queue, whoever owns the topic.")]
Headers = Annotated[list[str] | None, typer.Option("--header", metavar="KEY=VALUE", help="May be repeated.")]
Priority = Annotated[int | None, typer.Option(min=0, help="Higher goes first.")]
Ttl = Annotated[float | None, typer.Option(help="Seconds in which it must start.")]


def call(
    topic: TopicName,
    payload: Payload = None,
    url: Url = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30.0,
    queue: QueueName = None,
    header: Headers = None,
    priority: Priority = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Ask so often, and report each and all.")] = None,
) -> None:
    """Ask, wait for the answer and print it as JSON."""
    value, headers = read_payload(payload), read_headers(header)

    async def ask() -> None:
        async with Bus(url) as bus:

            async def once() -> Any:
                return await bus.call(topic, value, timeout=timeout, queue=queue, headers=headers, priority=priority)

            if repeat is None:
                show_json(await once())
            else:
                await _repeat(once, repeat)

    asyncio.run(ask())


def send(
    topic: TopicName,
    payload: Payload = None,
    url: Url = None,
    queue: QueueName = None,
    header: Headers = None,
    priority: Priority = None,
    delay: Annotated[float | None, typer.Option(min=0.0, help="Seconds before it may be delivered.")] = None,
    ttl: Ttl = None,
    track: Annotated[bool, typer.Option("--track", help="So that `busline jobs` can tell of it.")] = False,
    key: Annotated[str | None, typer.Option(help="Idempotency key: one effect for all that have it.")] = None,
    store: Annotated[
        str | None, typer.Option(help="URL of the store; default: $BUSLINE_STORE, or the bus's own.")
    ] = None,
) -> None:
    """Hand over a job; prints its id once the broker has it durably."""
    value, headers = read_payload(payload), read_headers(header)

    async def hand_over() -> None:
        async with Bus(url, store=store) as bus:
            job = await bus.send(
                topic,
                value,
                queue=queue,
                headers=headers,
                priority=priority,
                delay=delay,
                ttl=ttl,
                track=track,
                idempotency_key=key,
            )
            say(job.id)

    asyncio.run(hand_over())


def publish(
    topic: TopicName, payload: Payload = None, url: Url = None, header: Headers = None, ttl: Ttl = None
) -> None:
    """Tell every subscriber; none is fine. Returns once the broker has the event durably."""
    value, headers = read_payload(payload), read_headers(header)

    async def tell() -> None:
        async with Bus(url) as bus:
            await bus.publish(topic, value, headers=headers, ttl=ttl)

    asyncio.run(tell())
    say(f"published {topic}")


def read_payload(text: str | None) -> Any:
    """The JSON value in `text`, or on standard input for `-`. Raises Failure."""
    if text is None:
        return None
    body = sys.stdin.buffer.read() if text == "-" else text.encode()
    try:
        return decode(body)
    except CodecError as error:
        raise Failure(
            Exit.USAGE,
            f"the payload is not JSON: {error.__cause__}; a text needs double quotes within the shell's: '\"text\"'",
        ) from error


def read_headers(pairs: list[str] | None) -> dict[str, str]:
    """Headers from `key=value`. Raises Failure."""
    headers = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not key or not separator:
            raise Failure(Exit.USAGE, f"--header {pair!r} is not KEY=VALUE")
        headers[key] = value
    return headers


@dataclass(slots=True)
class Tally:
    """What became of repeated calls; times are milliseconds."""

    times: list[float] = field(default_factory=list)
    failed: int = 0

    def summary(self) -> str:
        """One line: how many, and how fast the good ones were."""
        text = f"{len(self.times)} ok, {self.failed} failed"
        if not self.times:
            return text
        ordered = sorted(self.times)
        p50, p99 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
        return f"{text}; p50 {p50:.1f} ms, p99 {p99:.1f} ms"


async def _repeat(once: Callable[[], Awaitable[Any]], repeat: int) -> None:
    tally = Tally()
    for number in range(1, repeat + 1):
        started_at = time.perf_counter()
        try:
            await once()
        except (CallError, TransportError) as error:
            tally.failed += 1
            say(f"{number}/{repeat} {paint('FAILED', RED, sys.stdout)}: {' '.join(str(error).split())}")
        else:
            tally.times.append((time.perf_counter() - started_at) * 1000)
            say(f"{number}/{repeat} {paint('ok', GREEN, sys.stdout)} {tally.times[-1]:.1f} ms")
    say(tally.summary())
    if tally.failed:
        raise typer.Exit(Exit.FAILED)
