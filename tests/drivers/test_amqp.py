"""What only RabbitMQ has: its wire, foreign clients, hostile messages, arguments that cannot be edited, its URL."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
import uuid
from dataclasses import replace
from math import inf
from typing import Any

import aiormq
import pika
import pytest
from pamqp import commands, header
from pamqp.commands import Basic

from busline import Bus, Queue, Retry
from busline.errors import ConfigurationError, ConnectionLost, NoHandler, QueueFull, QueueNotFound
from busline.message import Binding, Message, QueueSpec, ToQueue, ToTopic
from busline.testing.scenes import eventually
from busline.transports import from_url as any_url
from busline.transports.amqp import AmqpTransport, from_url, ladder, patience
from busline.transports.amqp.link import Session
from busline.transports.amqp.url import Kind, parse
from tests.proxy import Proxy
from tests.servers import Rabbit

pytestmark = pytest.mark.timeout(90)


def name(prefix: str) -> str:
    """Nobody else's."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


async def opened(rabbit: Rabbit, options: str = "") -> AmqpTransport:
    """A client."""
    transport = from_url(rabbit.url + options)
    await transport.open()
    return transport


# -- the address --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp://broker.example/", "allow_plaintext"),
        ("amqps://broker.example/", "names no user"),
        ("amqps://u:p@broker.example/?no_verify_ssl=1", "no option 'no_verify_ssl'"),
        ("amqps://u:p@broker.example/?auth=plain", "no option 'auth'"),
        ("amqp://localhost/?cafile=x", "cafile= is for amqps"),
        ("amqp://localhost/?heartbeat=0", "heartbeat"),
        ("amqp://localhost/?kind=stream", "quorum or classic"),
        ("amqp://localhost/a/b", "%2F"),
        ("amqp://localhost:notaport/", "looks like"),
    ],
)
def test_what_is_unsafe_or_unknown_in_a_url_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        from_url(url)


def test_the_password_is_nowhere_to_be_seen() -> None:
    transport = any_url("amqps://me:s3cr%23t@broker.example/shop?heartbeat=5")
    assert transport.where == "amqps://broker.example:5671/shop"
    assert "s3cr" not in repr(parse("amqps://me:s3cr%23t@broker.example/shop"))
    with pytest.raises(ConfigurationError) as refused:
        from_url("amqp://me:s3cret@broker.example/")
    assert "s3cret" not in str(refused.value)


def test_a_missing_client_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.startswith("busline.transports.amqp")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "aio_pika", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'busline\[amqp\]'"):
        any_url("amqp://localhost/")


async def test_what_broke_the_brokers_limit_says_so(rabbit: Rabbit) -> None:
    queue = name("queue")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(f"{queue}.dead", "svc", for_dead_letters=True))
        await transport.attach(QueueSpec(queue, "svc", dead_letter=f"{queue}.dead"))
        await transport.send(ToQueue(queue), Message("t", b"1", "{}", {"h": "1"}))
        connection = await aiormq.connect(rabbit.url)
        channel = await connection.channel()
        for _ in range(41):
            got = await channel.basic_get(queue)
            await channel.basic_nack(got.delivery_tag or 0, requeue=True)
        await connection.close()
        until = time.monotonic() + 10
        letters: list[Message] = []
        while not letters and time.monotonic() < until:
            letters = list(await transport.peek(f"{queue}.dead", 1))
        (letter,) = letters
        assert (letter.body, letter.meta, letter.headers["h"]) == (b"1", "{}", "1")
        assert json.loads(letter.headers["busline-died"])["reason"] == "delivery_limit"
        assert json.loads(letter.headers["busline-died"])["queue"] == queue
    finally:
        await transport.aclose()


def test_escapes_arrive_unescaped() -> None:
    settings = parse("amqp://a%40b:p%2F%23@localhost/my%2Fhost")
    assert (settings.user, settings.password, settings.vhost) == ("a@b", "p/#", "my/host")
    url = settings.wire_url("x")
    assert (url.user, url.password) == ("a@b", "p/#")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("guest:guest", "guest:wr0ng"), "refuses user 'guest'"),
        (("guest:guest", "nobody:x"), "refuses user 'nobody'"),
        (("?", "missing?"), "missing"),
    ],
)
async def test_wrong_credentials_and_hosts_are_told_at_open(change: tuple[str, str], says: str, rabbit: Rabbit) -> None:
    transport = from_url((rabbit.url + "?heartbeat=5").replace(*change))
    with pytest.raises(ConfigurationError, match=says) as refused:
        await transport.open()
    assert "wr0ng" not in str(refused.value)
    await transport.aclose()


async def test_nobody_at_the_address_is_a_lost_connection(unused_tcp_port: int) -> None:
    transport = from_url(f"amqp://localhost:{unused_tcp_port}/")
    with pytest.raises(ConnectionLost):
        await transport.open()
    await transport.aclose()


async def test_tls_verifies_the_chain_and_the_name(rabbit: Rabbit) -> None:
    trusted = f"amqps://guest:guest@localhost:{rabbit.tls_port}/?cafile={rabbit.ca}"
    transport = from_url(trusted)
    await transport.open()
    queue = name("queue")
    await transport.attach(QueueSpec(queue, "svc"))
    await transport.send(ToQueue(queue), Message("t", b"1"))
    await transport.aclose()
    for untrusted in (trusted.partition("?")[0], trusted.replace("@localhost", "@127.0.0.1")):
        transport = from_url(untrusted)
        with pytest.raises(ConfigurationError, match="certificate that is not trusted"):
            await transport.open()
        await transport.aclose()


# -- the wire -----------------------------------------------------------------------------------------------------


async def test_every_consumer_has_a_prefetch_of_its_own(rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []
    marshal = aiormq.abc.ChannelFrame.marshall.__func__  # type: ignore[attr-defined]

    def spy(cls: Any, channel_number: int, frames: Any, **rest: Any) -> Any:
        frames = list(frames)
        for frame in frames:
            if isinstance(frame, commands.Basic.Qos):
                sent.append(("qos", frame.prefetch_count, frame.global_))
            if isinstance(frame, commands.Basic.Consume):
                sent.append(("consume", frame.queue))
        return marshal(cls, channel_number, frames, **rest)

    monkeypatch.setattr(aiormq.abc.ChannelFrame, "marshall", classmethod(spy))
    queue = name("queue")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc"))
        consumer = await transport.consume(queue, slots=3)
        waiting = [asyncio.create_task(consumer.receive(1)) for _ in range(3)]
        await transport.send(ToQueue(queue), *[Message("t", b"") for _ in range(3)])
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
    finally:
        await transport.aclose()
    assert {frame for frame in sent if frame[0] == "qos"} == {("qos", 1, False)}
    assert sent.count(("consume", queue)) == 3


def ask_with_pika(rabbit: Rabbit, queue: str, body: bytes) -> bytes:
    """What a program that has never heard of busline does."""
    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", rabbit.port, rabbit.vhost))
    channel = connection.channel()
    answers: list[bytes] = []
    channel.basic_consume(
        "amq.rabbitmq.reply-to", lambda ch, method, props, answer: answers.append(answer), auto_ack=True
    )
    asked = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id="abc", headers={"n": 7, "ok": True})
    channel.basic_publish("", queue, body, asked)
    until = time.monotonic() + 10
    while not answers and time.monotonic() < until:
        connection.process_data_events(0.1)
    connection.close()
    return answers[0]


async def test_a_foreign_client_gets_a_json_answer(rabbit: Rabbit) -> None:
    service = name("svc")
    bus = Bus(rabbit.url, service=service)

    @bus.handler("math.add")
    async def add(a: int, b: int) -> dict[str, int]:
        return {"sum": a + b}

    async with bus.worker():
        answer = await asyncio.to_thread(ask_with_pika, rabbit, service, b'{"a": 1, "b": 2}')
    assert json.loads(answer) == {"sum": 3}


async def test_a_foreign_exchange_feeds_a_queue_and_its_key_is_the_topic(rabbit: Rabbit) -> None:
    queue, exchange = name("import_queue"), name("import_tasks")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc", bindings=(Binding(exchange, "import.csv"),)))
        consumer = await transport.consume(queue, slots=1)

        def publish() -> None:
            connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", rabbit.port, rabbit.vhost))
            properties = pika.BasicProperties(headers={"depth": 3, "flag": True, "none": None, "list": [1]})
            connection.channel().basic_publish(exchange, "import.csv", b"{}", properties)
            connection.close()

        await asyncio.to_thread(publish)
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
        assert delivery.message.topic == "import.csv"
        assert delivery.message.headers == {"depth": "3", "flag": "True", "none": "", "list": "[1]"}
    finally:
        await transport.aclose()


# -- hostile messages ---------------------------------------------------------------------------------------------


def _shortstr(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def _nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = _shortstr(b"k") + b"F" + struct.pack(">I", len(table)) + table
    return struct.pack(">I", len(table)) + table


HOSTILE = {
    "a correlation id that is no text": (0x0400, _shortstr(b"\xff\xfe")),
    "a header key that is no text": (0x2000, (lambda t: struct.pack(">I", len(t)) + t)(_shortstr(b"\xff") + b"t\x01")),
    "a timestamp beyond all time": (0x0040, struct.pack(">Q", 2**63)),
    "headers nested without end": (0x2000, _nested(3000)),
}


async def publish_raw(rabbit: Rabbit, queue: str, flags: int, properties: bytes) -> None:
    """A message whose properties are these bytes."""

    class Raw(header.ContentHeader):
        def marshal(self) -> bytes:
            return struct.pack(">HxxQ", 60, self.body_size) + struct.pack(">H", flags) + properties

    connection = await aiormq.connect(rabbit.url)
    channel = await connection.channel(publisher_confirms=False)
    frames = [Basic.Publish(exchange="", routing_key=queue), Raw(body_size=1), *channel._split_body(b"x")]  # type: ignore[attr-defined]
    await channel.write_queue.put(  # type: ignore[attr-defined]
        aiormq.abc.ChannelFrame.marshall(frames=frames, channel_number=channel.number)
    )
    await channel.queue_declare(queue, passive=True)
    await connection.close()


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_hostile_properties_are_dead_lettered_with_no_reconnect(kind: str, rabbit: Rabbit) -> None:
    queue = name("queue")
    dead = queue + ".dead"
    proxy = Proxy(rabbit.port)
    await proxy.start()
    transport = from_url(rabbit.url.replace(str(rabbit.port), str(proxy.port)) + f"?kind={kind}")
    await transport.open()
    try:
        await transport.attach(QueueSpec(dead, "svc", for_dead_letters=True))
        await transport.attach(QueueSpec(queue, "svc", dead_letter=dead))
        consumer = await transport.consume(queue, slots=1)
        for flags, properties in HOSTILE.values():
            await publish_raw(rabbit, queue, flags, properties)
        connections = proxy.connections
        await transport.send(ToQueue(queue), Message("t", b"good"))
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 5)
        assert delivery.message.body == b"good"
        await consumer.ack(delivery)
        letters = 0
        until = time.monotonic() + 10
        while letters < len(HOSTILE) and time.monotonic() < until:
            letters = len(await transport.peek(dead, 10))
        assert letters == len(HOSTILE)
        assert proxy.connections == connections
    finally:
        await transport.aclose()
        await proxy.close()


# -- queues -------------------------------------------------------------------------------------------------------


async def test_editing_an_option_never_bricks_a_queue(rabbit: Rabbit) -> None:
    queue = name("queue")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc", kind="classic", max_priority=5, max_length=10))
        await transport.attach(QueueSpec(queue, "svc", kind="classic", max_priority=10, max_length=10))
        assert transport.health().status == "healthy"
        await transport.attach(QueueSpec(queue, "svc", kind="classic", dead_letter="elsewhere"))
        health = transport.health()
        assert health.status == "degraded"
        assert queue in health.detail
        assert "x-max-length" in health.detail or "x-dead-letter" in health.detail
        await transport.send(ToQueue(queue), Message("t", b"1"))
    finally:
        await transport.aclose()


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_a_full_queue_holds_up_neither_its_own_retries_nor_the_delays_of_others(
    rabbit: Rabbit, kind: str
) -> None:
    full, free = name("full"), name("free")
    transport = await opened(rabbit, f"?kind={kind}")
    try:
        await transport.attach(QueueSpec(full, "svc", max_length=40))
        await transport.attach(QueueSpec(free, "svc"))
        await transport.send(ToQueue(full), *[Message("t", b"first")] * 40)
        consumer = await transport.consume(full, slots=40)
        held = [(await asyncio.wait_for(consumer.receive(1), 10))[0] for _ in range(40)]
        await transport.send(ToQueue(full), *[Message("t", b"second")] * 40)
        await consumer.release(*held, delay=0.2)
        await asyncio.sleep(0.5)
        with pytest.raises(QueueFull):
            await transport.send(ToQueue(full), Message("t", b"never"))
        await transport.send(ToQueue(free), Message("t", b"1", delay=0.2))
        other = await transport.consume(free, slots=1)
        assert len(await asyncio.wait_for(other.receive(1), 5)) == 1
        bodies = []
        for _ in range(80):
            (delivery,) = await asyncio.wait_for(consumer.receive(1), 5)
            bodies.append(delivery.message.body)
            await consumer.ack(delivery)
        assert sorted(bodies) == [b"first"] * 40 + [b"second"] * 40
    finally:
        await transport.aclose()


async def test_a_bound_is_known_to_whoever_sends_to_a_topic(rabbit: Rabbit) -> None:
    queue, topic = name("bounded"), name("topic")
    owner, stranger = await opened(rabbit), await opened(rabbit)
    try:
        await owner.attach(QueueSpec(queue, "svc", frozenset({topic})))
        await stranger.send(ToTopic(topic), Message(topic, b"1"))
        await owner.attach(QueueSpec(queue, "svc", max_length=2))
        await stranger.send(ToTopic(topic), Message(topic, b"2"))
        with pytest.raises(QueueFull) as full:
            await stranger.send(ToTopic(topic), Message(topic, b"3"))
        assert (full.value.queue, full.value.max_length) == (queue, 2)
        await owner.attach(QueueSpec(queue, "svc"))
        await (late := await opened(rabbit)).send(ToTopic(topic), Message(topic, b"4"))
        await late.aclose()
    finally:
        await stranger.aclose()
        await owner.aclose()


async def test_a_bound_of_a_subscribers_queue_is_refused_with_what_to_do(rabbit: Rabbit) -> None:
    queue = name("queue")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc"))
        with pytest.raises(ConfigurationError, match="set a policy at the broker"):
            await transport.attach(QueueSpec(queue, "svc", patterns=frozenset({"a.#"}), max_length=10))
        await transport.send(ToQueue(queue), Message("t", b"1"))
    finally:
        await transport.aclose()


async def test_a_queue_of_another_type_is_refused_and_the_difference_named(rabbit: Rabbit) -> None:
    queue = name("queue")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc", kind="classic"))
        with pytest.raises(ConfigurationError, match=r"x-queue-type is 'classic' there, asked for is 'quorum'"):
            await transport.attach(QueueSpec(queue, "svc", kind="quorum"))
        await transport.attach(QueueSpec(name("other"), "svc"))
    finally:
        await transport.aclose()


async def test_a_full_queue_says_so(rabbit: Rabbit) -> None:
    queue = name("queue")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc", kind="classic", max_length=2))
        await transport.send(ToQueue(queue), Message("t", b"1"))
        await transport.send(ToQueue(queue), Message("t", b"2"))
        with pytest.raises(QueueFull) as full:
            await transport.send(ToQueue(queue), Message("t", b"3"))
        assert (full.value.queue, full.value.max_length) == (queue, 2)
    finally:
        await transport.aclose()


async def test_a_passive_queue_is_used_and_never_made(rabbit: Rabbit) -> None:
    queue = name("theirs")
    transport = await opened(rabbit)
    try:
        with pytest.raises(QueueNotFound):
            await transport.attach(QueueSpec(queue, "svc", passive=True))
        connection = await aiormq.connect(rabbit.url)
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True, arguments={"x-max-length": 7})
        await connection.close()
        await transport.attach(QueueSpec(queue, "svc", passive=True))
        assert transport.health().status == "healthy"
        consumer = await transport.consume(queue, slots=1)
        await transport.send(ToQueue(queue), Message("t", b"1"))
        assert len(await asyncio.wait_for(consumer.receive(1), 10)) == 1
    finally:
        await transport.aclose()


async def test_a_passive_queue_is_given_nothing_that_its_owner_did_not_give(rabbit: Rabbit) -> None:
    queue, topic = name("theirs"), name("topic")
    owner, guest = await opened(rabbit), await opened(rabbit)
    try:
        limits = await owner.attach(QueueSpec(queue, "svc", frozenset({topic}), max_priority=3, max_length=7))
        passive = QueueSpec(queue, "guests", passive=True)
        assert await guest.attach(passive) == limits
        assert await guest.attach(replace(passive, topics=frozenset({topic}), max_length=7)) == limits
        for unlike in ({"max_length": 8}, {"kind": "quorum"}, {"max_priority": 4}, {"patterns": frozenset({"a.#"})}):
            with pytest.raises(ConfigurationError, match=r"is passive"):
                await guest.attach(replace(passive, **unlike))
        with pytest.raises(ConfigurationError, match="highest is 3"):
            await guest.send(ToQueue(queue), Message("t", b"1", priority=4))
    finally:
        await guest.aclose()
        await owner.aclose()


async def test_a_user_who_may_not_declare_is_told_at_start_what_to_do(rabbit: Rabbit) -> None:
    unused = rabbit.empty_url().replace("guest:guest", "limited:guest")
    with pytest.raises(ConfigurationError, match=r"'busline.calls' yet.* refused for user 'limited'.*connect first"):
        await Bus(unused).__aenter__()
    async with Bus(rabbit.url):
        bus = Bus(rabbit.limited_url, service=name("svc"))

    @bus.handler(name("topic"))
    async def handle() -> None: ...

    with pytest.raises(ConfigurationError, match=r"access to queue .* refused for user 'limited'.*passive=True"):
        async with bus.worker():
            pass


async def test_a_caller_needs_no_right_to_declare(rabbit: Rabbit) -> None:
    topic, sent = name("topic"), asyncio.Event()
    bus = Bus(rabbit.url, service=name("svc"))

    @bus.handler(topic)
    async def handle(number: int) -> int:
        if number == 2:
            sent.set()
        return number

    async with bus.worker(), Bus(rabbit.limited_url) as caller:
        assert await caller.call(topic, 1, timeout=10) == 1
        await caller.send(topic, 2)
        await asyncio.wait_for(sent.wait(), 10)
        with pytest.raises(NoHandler):
            await caller.call(name("nobody"), timeout=10)
        with pytest.raises(ConfigurationError, match="refused for user 'limited'"):
            await caller.send(topic, 3, delay=60)


async def test_a_worker_without_the_right_to_declare_works_on_queues_of_others(rabbit: Rabbit) -> None:
    queue, handled = name("theirs"), asyncio.Event()
    bus = Bus(rabbit.limited_url, service="guests")

    @bus.handler("import.csv", queue=Queue(queue, passive=True), retry=Retry(max_retries=0))
    async def handle(file: str) -> str:
        handled.set()
        if file == "broken":
            raise ValueError("broken")
        return file.upper()

    connection = await aiormq.connect(rabbit.url)
    channel = await connection.channel()
    for each in (queue, f"{queue}.dead"):
        await channel.queue_declare(each, durable=True)
    async with Bus(rabbit.url), bus, bus.worker():
        answer = await asyncio.to_thread(ask_with_pika, rabbit, queue, b'"a.csv"')
        assert json.loads(answer) == "A.CSV"
        handled.clear()
        await channel.basic_publish(b'"broken"', routing_key=queue)
        await asyncio.wait_for(handled.wait(), 10)
        async with asyncio.timeout(10):
            while not (letter := await channel.basic_get(f"{queue}.dead", no_ack=True)).body:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert letter.body == b'"broken"'
    await connection.close()


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_what_expired_behind_a_message_that_stays_is_neither_seen_nor_moved_nor_delivered(
    rabbit: Rabbit, kind: str
) -> None:
    queue, other = name("queue"), name("other")
    transport = await opened(rabbit, f"?kind={kind}")
    try:
        for each in (queue, other):
            await transport.attach(QueueSpec(each, "svc"))
        for body, ttl, expendable in ((b"job", None, False), (b"gone", 2.0, True), (b"later", 60.0, True)):
            await transport.send(ToQueue(queue), Message("t", body, ttl=ttl, expendable=expendable))
        assert {message.body for message in await transport.peek(queue, 10)} == {b"job", b"gone", b"later"}

        async def without_the_expired() -> dict[bytes, Message]:
            found = {message.body: message for message in await transport.peek(queue, 10)}
            return found if b"gone" not in found else {}

        peeked = await eventually(without_the_expired)
        assert set(peeked) == {b"job", b"later"}
        assert 50 < (peeked[b"later"].ttl or 0) < 60
        assert await transport.move(queue, other, 10) == 2
        consumer = await transport.consume(other, slots=2)
        got = [*await asyncio.wait_for(consumer.receive(1), 10), *await asyncio.wait_for(consumer.receive(1), 10)]
        assert {delivery.message.body for delivery in got} == {b"job", b"later"}
    finally:
        await transport.aclose()


async def test_what_expired_is_dropped_and_no_dead_letter(rabbit: Rabbit) -> None:
    queue = name("dead")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc", for_dead_letters=True, dead_letter=name("elsewhere")))
        await transport.send(ToQueue(queue), Message("t", b"letter", ttl=0.05, expendable=True))
        await asyncio.sleep(0.1)
        assert list(await transport.peek(queue, 10)) == []
    finally:
        await transport.aclose()


@pytest.mark.parametrize(("option", "seconds"), [("", 1800.0), ("consumer_timeout=7200", 7200.0)])
async def test_a_late_handler_must_end_before_the_consumer_timeout(rabbit: Rabbit, option: str, seconds: float) -> None:
    bus = Bus(f"{rabbit.url}?{option}", service=name("svc"))

    @bus.handler(name("long"), time_limit=seconds + 1)
    async def long() -> None: ...

    with pytest.raises(ConfigurationError, match=rf"{seconds:g} s after.*ack='early'.*\?consumer_timeout="):
        async with bus.worker():
            pass
    patient = Bus(f"{rabbit.url}?consumer_timeout=0", service=name("svc"))
    patient.handler(name("long"), time_limit=seconds + 1)(long)
    async with patient.worker():
        pass


@pytest.mark.parametrize(
    ("kind", "version", "named", "longest", "asked"),
    [
        ("quorum", (3, 10), None, 1800.0, {}),
        ("classic", (4, 2), None, 1800.0, {}),
        ("quorum", (4, 2), 7200.0, 7200.0, {}),
        ("quorum", (4, 3), None, 2592000.0, {"x-consumer-timeout": 2592000000}),
        ("quorum", (4, 3), inf, 2592000.0, {"x-consumer-timeout": 2592000000}),
        ("quorum", (5, 0), 7200.0, 7200.0, {"x-consumer-timeout": 7200000}),
        ("classic", (4, 3), 7200.0, inf, {}),
        (None, (4, 3), 7200.0, 7200.0, {}),
    ],
)
def test_each_consumer_asks_for_its_timeout_where_the_broker_can_be_asked(
    kind: Kind | None,
    version: tuple[int, ...],
    named: float | None,
    longest: float,
    asked: dict[str, int],
) -> None:
    assert patience.longest(kind, version, named) == longest
    assert patience.wish(kind, version, named) == asked


async def test_a_handler_that_runs_for_hours_is_served_by_a_consumer_that_asked_for_them(
    rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's version is a lie, which it takes no notice of: it knows no such argument, and keeps it."""
    monkeypatch.setattr(Session, "version", (4, 3))
    service = name("svc")
    bus = Bus(rabbit.url, service=service)

    @bus.handler(f"{service}.long", time_limit=7200)
    async def long() -> str:
        return "done"

    async with bus.worker():
        assert await bus.call(f"{service}.long", timeout=10) == "done"
        told = await asyncio.to_thread(rabbit.ctl, "list_consumers", "-p", rabbit.vhost, "queue_name", "arguments")
    mine = [line for line in told.splitlines() if line.startswith(f"{service}\t")]
    assert mine
    assert all("x-consumer-timeout" in line and "2592000000" in line for line in mine), told


async def test_patterns_of_an_earlier_process_are_taken_away(rabbit: Rabbit) -> None:
    queue, topic = name("queue"), name("event")
    earlier = await opened(rabbit)
    await earlier.attach(QueueSpec(queue, "svc", patterns=frozenset({f"{topic}.*"})))
    await earlier.aclose()
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc", patterns=frozenset({f"{topic}.new"})))
        await transport.publish(f"{topic}.old", Message(f"{topic}.old", b"old"))
        await transport.publish(f"{topic}.new", Message(f"{topic}.new", b"new"))
        consumer = await transport.consume(queue, slots=1)
        (delivery,) = await asyncio.wait_for(consumer.receive(1), 10)
        assert delivery.message.body == b"new"
    finally:
        await transport.aclose()


async def test_many_processes_may_attach_at_once(rabbit: Rabbit) -> None:
    queue = name("queue")
    transports = [await opened(rabbit) for _ in range(10)]
    try:
        specs = [QueueSpec(f"{queue}.{number}", "svc", frozenset({f"{queue}.{number}"})) for number in range(10)]
        await asyncio.gather(*(one.attach(spec) for one, spec in zip(transports, specs, strict=True)))
        seen = {found.name: found.topics for found in await transports[0].stats()}
        assert all(seen[spec.name] == spec.topics for spec in specs)
    finally:
        await asyncio.gather(*(one.aclose() for one in transports))


# -- replies and delays -------------------------------------------------------------------------------------------


async def test_a_reply_goes_to_inboxes_only(rabbit: Rabbit) -> None:
    queue = name("queue")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(queue, "svc"))
        assert await transport.reply(queue, Message("reply", b"1")) is False
        assert list(await transport.peek(queue, 1)) == []
    finally:
        await transport.aclose()


async def test_a_reply_queue_survives_a_lost_connection(rabbit: Rabbit) -> None:
    topic = name("slow")
    caller, worker = await opened(rabbit, "?reply=queue"), await opened(rabbit)
    replies: asyncio.Queue[Message] = asyncio.Queue()
    lost: list[bool] = []
    try:
        await worker.attach(QueueSpec(topic, "svc", frozenset({topic})))
        consumer = await worker.consume(topic, slots=1)
        inbox = await caller.open_inbox(replies.put_nowait, lambda: lost.append(True))
        await inbox.send(ToTopic(topic), Message(topic, b"1", correlation_id="c"))
        (call,) = await asyncio.wait_for(consumer.receive(1), 10)
        session = caller._out.current()
        assert session is not None
        session.cut()
        assert await worker.reply(call.message.reply_to or "", Message("reply", b"2", correlation_id="c"))
        assert (await asyncio.wait_for(replies.get(), 10)).body == b"2"
        assert lost == []
    finally:
        await caller.aclose()
        await worker.aclose()


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.11, 3.3, 9.99, 10.0, 61.7, 3600.0, 86_400.0, 30 * 86_400.0])
def test_the_ladder_reaches_every_delay_closely_enough(delay: float) -> None:
    number = ladder.ticks(delay)
    actual = number * ladder.TICK
    assert delay <= actual + 1e-6
    assert actual - delay <= (ladder.TICK if delay < 10 else delay * 0.01)
    assert number < 2**ladder.LEVELS
    assert bin(number).count("1") <= ladder.SIGNIFICANT


async def test_a_delayed_job_and_a_short_one_behind_a_long_one(rabbit: Rabbit) -> None:
    topic = name("job")
    transport = await opened(rabbit)
    try:
        await transport.attach(QueueSpec(topic, "svc", frozenset({topic})))
        consumer = await transport.consume(topic, slots=4)
        began = time.monotonic()
        for delay in (1.1, 0.3, 0.7):
            await transport.send(ToTopic(topic), Message(topic, b"%.1f" % delay, delay=delay))
        got = [(await asyncio.wait_for(consumer.receive(1), 10))[0] for _ in range(3)]
        assert [each.message.body for each in got] == [b"0.3", b"0.7", b"1.1"]
        assert 1.1 <= time.monotonic() - began < 3
        assert all(each.deliveries == 1 and not each.message.headers for each in got)
    finally:
        await transport.aclose()


async def test_services_of_either_kind_share_the_queues_that_are_ours(rabbit: Rabbit) -> None:
    """The record of pauses is one queue for all; its kind must not follow who happens to make it first."""
    for kind in ("quorum", "classic", "quorum"):
        transport = from_url(f"{rabbit.url}?kind={kind}")
        await transport.open()
        try:
            await transport.attach(QueueSpec("busline.shared-by-all", "busline"))
        finally:
            await transport.aclose()
