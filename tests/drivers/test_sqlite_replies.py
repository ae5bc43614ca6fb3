"""Replies on SQLite: each process has one stream to each caller, and a caller that is busy misses none."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from busline.message import Message, QueueSpec, ToTopic
from busline.transports.sqlite import SqliteTransport
from busline.transports.sqlite import engine as engine_module
from busline.transports.sqlite import peers as peers_module
from busline.transports.sqlite import watch as watch_module

from .sqlite_files import eventually
from .sqlite_files import opened as opened_here

CALLS = 300


async def opened(path: Path) -> SqliteTransport:
    transport = SqliteTransport(str(path))
    await transport.open()
    return transport


async def served(transport: SqliteTransport, number: int) -> None:
    """Receive so many calls at once, and only then answer them, all at once."""
    consumer = await transport.consume("q", slots=number)
    deliveries = [delivery for _ in range(number) for delivery in await consumer.receive(1)]
    async with asyncio.TaskGroup() as tasks:
        for delivery in deliveries:
            message = delivery.message
            assert message.reply_to is not None
            answer = Message("t", message.body, correlation_id=message.correlation_id)
            tasks.create_task(transport.reply(message.reply_to, answer))
    await consumer.ack(*deliveries)


async def exchange(path: Path, workers: int) -> tuple[set[bytes], int]:
    """What the caller was answered, and how many streams were let in."""
    caller = await opened(path)
    await caller.attach(QueueSpec("q", "s", frozenset({"t"})))
    replies: set[bytes] = set()
    complete = asyncio.Event()

    def arrived(message: Message) -> None:
        replies.add(message.body)
        if len(replies) == CALLS:
            complete.set()

    inbox = await caller.open_inbox(arrived, lambda: None)
    for number in range(CALLS):
        await inbox.send(ToTopic("t"), Message("t", b"%d" % number, correlation_id=str(number)))
    siblings = [await opened(path) for _ in range(workers)]
    await asyncio.gather(*(served(sibling, CALLS // workers) for sibling in siblings))
    async with asyncio.timeout(30):
        await complete.wait()
    assert caller._session is not None
    streams = len(caller._session.peers._incoming)
    for transport in (*siblings, caller):
        await transport.aclose()
    return replies, streams


async def test_handlers_that_end_at_once_share_one_stream_to_the_caller(path: Path) -> None:
    replies, streams = await exchange(path, workers=3)
    assert len(replies) == CALLS
    assert streams <= 3


async def test_a_caller_that_can_let_nobody_in_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = iter(range(5))

    class Busy(peers_module.Outgoing):
        def __init__(self, address: str, lost: object) -> None:
            if next(refused, None) is not None:
                raise BlockingIOError("as a Unix socket whose backlog is full")
            super().__init__(address, lost)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(peers_module, "Outgoing", Busy)
    replies, _ = await exchange(path, workers=1)
    assert len(replies) == CALLS
    assert next(refused, None) is None


async def answered_calls(path: Path, number: int) -> list[str]:
    """The statements of a worker that answers so many calls, one after the other, and then closes its transport."""
    caller, worker = await opened(path), await opened(path)
    await caller.attach(QueueSpec("q", "s", frozenset({"t"})))
    arrived, statements = asyncio.Event(), list[str]()
    inbox = await caller.open_inbox(lambda reply: arrived.set(), lambda: None)
    consumer = await worker.consume("q", slots=1)
    worker._opened().db.set_trace_callback(statements.append)
    for _ in range(number):
        receiving = asyncio.ensure_future(consumer.receive(1))
        await inbox.send(ToTopic("t"), Message("t", b""))
        [asked] = await receiving
        await worker.reply(asked.message.reply_to or "", Message("t", b""))
        await consumer.ack(asked)
        await arrived.wait()
        arrived.clear()
    await worker.aclose()
    assert [(await caller.stats())[0].ready, (await caller.stats())[0].leased] == [0, 0]
    await caller.aclose()
    return statements


async def test_the_ack_of_an_answered_call_goes_along_with_what_comes_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LINGER", 100.0)
    monkeypatch.setattr(watch_module, "PERIOD", 100.0)
    statements = await answered_calls(path, 20)
    claims = [each for each in statements if each.startswith("UPDATE message SET token")]
    assert len(claims) == 20
    assert sum(each.startswith("BEGIN") for each in statements) <= 20 + 3  # the first look, and leaving


async def test_the_ack_of_the_last_call_waits_for_no_other(path: Path) -> None:
    async with opened_here(path) as caller, opened_here(path) as worker:
        await caller.attach(QueueSpec("q", "s", frozenset({"t"})))
        inbox = await caller.open_inbox(lambda reply: None, lambda: None)
        consumer = await worker.consume("q", slots=1)
        await inbox.send(ToTopic("t"), Message("t", b""))
        [asked] = await consumer.receive(1)
        await consumer.ack(asked)

        async def is_gone() -> bool:
            return worker._opened().db.execute("SELECT count(*) FROM message").fetchone() == (0,)

        await eventually(is_gone)


def test_a_unix_socket_whose_backlog_is_full_says_so(tmp_path: Path) -> None:
    """What the transport relies on: the kernel answers EAGAIN, not ECONNREFUSED, and not by waiting."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        try:
            for client in clients:
                client.setblocking(False)
            clients[0].connect(str(tmp_path / "s"))
            with pytest.raises(BlockingIOError):
                _connect(clients[1:], str(tmp_path / "s"))
        finally:
            for client in clients:
                client.close()


def _connect(clients: list[socket.socket], address: str) -> None:
    for client in clients:
        client.connect(address)
