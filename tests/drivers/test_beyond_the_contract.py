"""What memory and SQLite can tell, and the contract does not ask of every broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from busline.message import Message
from busline.testing.harness import Harness
from busline.testing.harnesses import MemoryHarness, SqliteHarness
from busline.testing.steps import client, eventually, join, line, prompt, stats
from busline.transports.base import Inspectable


@pytest.fixture(params=["memory", "sqlite"])
def h(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    return MemoryHarness() if request.param == "memory" else SqliteHarness(tmp_path)


async def test_stats_count_what_is_ready_delayed_and_leased_and_the_processes(h: Harness) -> None:
    async with line(h, slots=2) as one, client(h) as other:
        await one.send(b"late", delay=60.0)
        await one.send(b"1", b"2", b"3")
        await one.hold(2)
        seen = await stats(other, one.queue)
        assert seen is not None
        assert (seen.ready, seen.delayed, seen.leased, seen.consumers) == (1, 1, 2, 1)
        await join(other, one.spec)
        seen = await stats(other, one.queue)
        assert seen is not None
        assert seen.consumers == 2


async def test_what_expired_is_not_counted_whatever_was_before_it(h: Harness) -> None:
    async with line(h) as one:
        await one.send(b"job", ttl=0.1)
        await one.send(b"gone", ttl=0.1, expendable=True)
        await h.pass_time(0.2)
        seen = await stats(one.transport, one.queue)
        assert seen is not None
        assert (seen.ready, seen.delayed, seen.leased) == (1, 0, 0)


async def test_delayed_messages_are_peeked_last_and_purged_with_the_others(h: Harness) -> None:
    async with line(h) as one:
        assert isinstance(one.transport, Inspectable)
        await one.send(b"late", delay=60.0)
        await one.send(b"1")
        assert [message.body for message in await one.transport.peek(one.queue, 10)] == [b"1", b"late"]
        assert await one.transport.purge(one.queue) == 2


async def test_a_reply_to_a_caller_that_closed_is_false_within_a_second(h: Harness) -> None:
    async with client(h) as worker, client(h) as caller:
        address = (await caller.open_inbox(lambda _: None, lambda: None)).address
        assert await prompt(worker.reply(address, Message("reply", b"1"))) is True
        await caller.aclose()

        async def refused() -> bool:
            return await prompt(worker.reply(address, Message("reply", b"1"))) is False

        await eventually(h, refused, 1.0)


async def test_a_reply_to_a_caller_that_was_killed_is_false_once_that_is_known(h: Harness) -> None:
    async with client(h) as worker:
        dying = h.transport()
        await dying.open()
        address = (await dying.open_inbox(lambda _: None, lambda: None)).address
        await h.kill(dying)

        async def refused() -> bool:
            return await worker.reply(address, Message("reply", b"1")) is False

        await eventually(h, refused, h.takeover)


async def test_limits_promise_exact_bounds(h: Harness) -> None:
    async with line(h, max_length=3) as one:
        assert one.limits.exact_bounds
