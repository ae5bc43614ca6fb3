"""Letters that RabbitMQ moved by itself: it tells little, and that is understood by `busline dlq`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiormq

from busline.cli.exits import Exit
from busline.message import DIED, Binding, Message, QueueSpec, ToQueue
from busline.transports.amqp import AmqpTransport, from_url
from busline.transports.amqp.topology import DELIVERY_LIMIT
from busline.wire import Envelope
from process.commands import Folder
from tests.servers import Rabbit

QUEUE, DEAD = "import_queue", "import_queue.dead"


async def attach(transport: AmqpTransport) -> None:
    """A queue that a foreign exchange feeds, and its dead letters."""
    await transport.open()
    await transport.attach(QueueSpec(DEAD, "svc", for_dead_letters=True))
    fed = (Binding("import_tasks", "import.csv"),)
    await transport.attach(QueueSpec(QUEUE, "svc", frozenset({"a", "b"}), bindings=fed, dead_letter=DEAD))


async def wear_out(url: str, transport: AmqpTransport) -> None:
    """Have the broker hand out a message of ours until it gives up."""
    meta = Envelope(id="0" * 32, sent_at=1.0).encode()
    await transport.send(ToQueue(QUEUE), Message("a", b"1", meta, {"who": "Ada"}))
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    for _ in range(DELIVERY_LIMIT + 1):
        got = await channel.basic_get(QUEUE)
        await channel.basic_nack(got.delivery_tag or 0, requeue=True)
    await connection.close()


async def let_expire(url: str) -> None:
    """Somebody else's message, whose time passes."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    brief = aiormq.spec.Basic.Properties(expiration="1", headers={"shop": 7})
    await channel.basic_publish(
        b'{"file": "a.csv"}', exchange="import_tasks", routing_key="import.csv", properties=brief
    )
    await connection.close()


async def test_letters_that_the_broker_moved_are_listed_and_go_back_where_they_were(
    rabbit: Rabbit, tmp_path: Path
) -> None:
    folder = Folder(tmp_path, rabbit.empty_url())
    transport = from_url(folder.url)

    async def dlq(*command: str) -> Any:
        run = await asyncio.to_thread(folder.run, "dlq", *command)
        assert run.returncode == Exit.OK, run.stderr
        return json.loads(run.stdout) if "--json" in command else run.stdout

    try:
        await attach(transport)
        await wear_out(folder.url, transport)
        await let_expire(folder.url)
        async with asyncio.timeout(20):
            while len(letters := await dlq("list", QUEUE, "--json")) < 2:
                pass
        by_reason = {letter["reason"]: letter for letter in letters}
        assert set(by_reason) == {"delivery_limit", "expired"}
        assert {(letter["queue"], bool(letter["when"])) for letter in letters} == {(QUEUE, True)}
        assert by_reason["expired"]["topic"] == "import.csv"
        assert (by_reason["delivery_limit"]["topic"], by_reason["delivery_limit"]["id"]) == ("a", "0" * 32)
        shown = await dlq("show", QUEUE, "--where", "reason=delivery_limit", "--json")
        assert [(one["message"], one["headers"]) for one in shown] == [
            ("the broker moved it here by itself: delivery_limit", {"who": "Ada"})
        ]
        assert await dlq("replay", QUEUE) == f"replayed 2 dead letters of {DEAD}\n"
        consumer = await transport.consume(QUEUE, slots=2)
        back = {}
        for _ in range(2):
            (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
            assert delivery.deliveries == 1
            assert DIED not in delivery.message.headers
            back[delivery.message.topic] = delivery.message
            await consumer.ack(delivery)
        assert back["import.csv"].body == b'{"file": "a.csv"}'
        assert back["import.csv"].headers == {"shop": "7"}
        assert (back["a"].body, back["a"].headers) == (b"1", {"who": "Ada"})
    finally:
        await transport.aclose()
        folder.end()
