"""The wire client: its bytes are the library's own, and whatever comes is taken as the library would take it."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pamqp.frame
import pytest
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError, ChannelPreconditionFailed
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from busline.message import Message, QueueSpec, ToQueue
from busline.transports.amqp import from_url
from busline.transports.amqp.properties import properties
from busline.transports.amqp.wire import Delivered, Header, Lane, Outcome, Turn, encode, reading, writing
from busline.transports.amqp.wire.stream import FRAME_MAX, GATHERED, Stream, Writer
from tests.proxy import Proxy
from tests.servers import Rabbit

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda text: len(text.encode()) < 256)
values = st.one_of(texts, st.integers(-(2**63), 2**63 - 1))
tables = st.dictionaries(texts, values, max_size=5)

HEADER = (
    ContentHeader(body_size=3).marshal()[:12]
    + properties(Message("orders.create", b"", '{"v":1}', {"ü": "☃"}, "c" * 32, "amq.rabbitmq.reply-to.x", 4)).payload
)


def by_the_library(payload: bytes) -> Basic.Properties | None:
    """What it decodes; None if it cannot."""
    header = ContentHeader()
    try:
        header.unmarshal(payload)
    except Exception:
        return None
    return header.properties


def kept(found: Any) -> list[Any]:
    """The properties that a transport reads."""
    return [getattr(found, name) for name in reading._KEPT]


# -- encoding -----------------------------------------------------------------------------------------------------


@given(
    *(texts, st.integers(0, 2**32 - 1), st.sampled_from([1, 2]), tables, st.integers(0, 255)),
    *(texts, texts, texts, texts),
)
def test_properties_are_encoded_so_that_the_library_finds_them(
    message_id: str,
    timestamp: int,
    mode: int,
    headers: dict[str, str | int],
    priority: int,
    correlation_id: str,
    reply_to: str,
    expiration: str,
    topic: str,
) -> None:
    header = encode(
        message_id=message_id,
        timestamp=timestamp,
        mode=mode,
        content_type="application/json",
        app_id="busline",
        message_type=topic,
        headers=headers,
        priority=priority,
        correlation_id=correlation_id,
        reply_to=reply_to,
        expiration=expiration,
    )
    found = by_the_library(HEADER[:12] + header.payload)
    assert found == Basic.Properties(
        content_type="application/json",
        headers=headers or None,
        delivery_mode=mode,
        priority=priority or None,
        correlation_id=correlation_id or None,
        reply_to=reply_to or None,
        expiration=expiration or None,
        message_id=message_id,
        timestamp=datetime.fromtimestamp(timestamp, UTC),
        message_type=topic or None,
        app_id="busline",
    )


@given(
    *(st.sampled_from(["", "busline.calls", "busline.events"]), texts, st.booleans()),
    *(st.binary(max_size=300), st.integers(1, 65535), st.integers(60, 200)),
)
def test_a_message_leaves_in_the_frames_that_the_library_would_send(
    exchange: str, key: str, mandatory: bool, body: bytes, channel: int, frame_max: int
) -> None:
    found = Basic.Properties(delivery_mode=2, message_id="m", message_type="t")
    sent = writing.publish(channel, exchange, key, Header.of(found), body, mandatory=mandatory, frame_max=frame_max)
    method = Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    most = frame_max - 8
    parts = [ContentBody(body[at : at + most]) for at in range(0, len(body), most)]
    frames = [method, ContentHeader(properties=found, body_size=len(body)), *parts]
    assert sent == b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)


@given(st.integers(1, 65535), st.integers(1, 2**63 - 1), st.booleans())
def test_settlements_are_the_librarys(channel: int, tag: int, requeue: bool) -> None:
    assert writing.ack(channel, tag) == pamqp.frame.marshal(Basic.Ack(tag), channel)
    nack = Basic.Nack(delivery_tag=tag, requeue=requeue)
    assert writing.nack(channel, tag, requeue=requeue) == pamqp.frame.marshal(nack, channel)


def test_what_has_no_room_in_a_frame_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="longer than 255"):
        writing.publish(1, "", "ü" * 128, Header(b"\0\0", ""), b"", mandatory=True, frame_max=FRAME_MAX)


# -- decoding -----------------------------------------------------------------------------------------------------


def test_whatever_properties_come_they_are_decoded_as_the_library_does_or_not_at_all() -> None:
    dice, decodable = random.Random(1), 0
    for _ in range(5_000):
        spoiled = bytearray(HEADER)
        for _ in range(dice.randrange(1, 4)):
            spoiled[dice.randrange(12, len(spoiled))] = dice.randrange(256)
        payload = bytes(spoiled[: dice.randrange(len(spoiled) - 5, len(spoiled) + 1)])
        found, expected = reading.decode(payload), by_the_library(payload)
        if expected is None:
            assert found is reading.SPOILED
        else:
            assert kept(found) == kept(expected)
            decodable += 1
    assert decodable > 500


fields = st.recursive(
    st.one_of(values, st.booleans(), st.none(), st.floats(allow_nan=False, width=32), st.builds(bytearray)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(texts, fields, max_size=4), texts, texts, st.integers(0, 9))
def test_foreign_headers_are_decoded_as_the_library_does(
    headers: dict[str, Any], topic: str, correlation_id: str, priority: int
) -> None:
    sent = Basic.Properties(headers=headers, message_type=topic, correlation_id=correlation_id, priority=priority)
    payload = ContentHeader(properties=sent).marshal()
    found = reading.decode(payload)
    assert kept(found) == kept(by_the_library(payload))
    assert found.full() == by_the_library(payload)


# -- a stream of frames -------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """Keeps what is written, call by call."""

    def __init__(self, log: list[bytes], *, closing: bool = False) -> None:
        super().__init__()
        self.log = log
        self._closing = closing

    def write(self, data: Any) -> None:
        self.log.append(bytes(data))

    def is_closing(self) -> bool:
        return self._closing


class Number:
    """Of a channel, what a lane asks of the library's."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.consumers: dict[str, Any] = {}
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class End:
    """One end of a connection, the other is the test."""

    def __init__(self, turn: Turn | None = None, *, first: bool = True, log: list[bytes] | None = None) -> None:
        self.written: list[bytes] = [] if log is None else log
        self.notices: list[str | None] = []
        reader = asyncio.StreamReader()
        self.stream = Stream(reader, turn or Turn(), first, self.notices.append)
        self.stream.connection_made(Wire(self.written))
        self.writer = Writer(Wire(self.written, closing=True), self.stream, reader)
        self._reader = reader
        self._receiver = FrameReceiver(reader)

    def lane(self, number: int = 1) -> Lane:
        """One more channel."""
        return Lane(Number(number), self.stream)  # type: ignore[arg-type]  # what it asks of it is there

    async def left(self) -> list[Any]:
        """What was left to the library, as it reads it: channels and frames."""
        seen = []
        while self._reader._buffer:  # type: ignore[attr-defined]
            seen.append((await self._receiver.get_frame())[1:])
        return seen


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def delivery(channel: int, tag: int, body: bytes, parts: int = 1) -> list[bytes]:
    """Its frames."""
    method = Basic.Deliver(consumer_tag="c", delivery_tag=tag, redelivered=tag % 2 == 0, exchange="x", routing_key="k")
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(message_type=f"t{tag}", message_id="m"))
    size = max(1, -(-len(body) // parts))
    bodies = [ContentBody(body[at : at + size]) for at in range(0, len(body), size)]
    return [pamqp.frame.marshal(each, channel) for each in (method, header, *bodies)]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
async def test_frames_are_parted_alike_wherever_the_stream_is_split(seed: int) -> None:
    dice, end = random.Random(seed), End()
    came: dict[int, list[Delivered]] = {1: [], 2: []}
    for number, messages in came.items():
        end.lane(number).subscribe("c", messages.append)
    queues: dict[int, list[bytes]] = {1: [], 2: [], 3: [], 0: []}
    sent: dict[int, list[bytes]] = {1: [], 2: []}
    for channel, bodies in sent.items():
        for tag in range(1, dice.randrange(1, 6)):
            bodies.append(dice.randbytes(dice.choice([0, 1, 30, 3000])))
            queues[channel] += delivery(channel, tag, bodies[-1], dice.randrange(1, 4))
            queues[channel] += [pamqp.frame.marshal(commands.Basic.QosOk(), channel)] * dice.randrange(2)
    queues[3] = delivery(3, 1, b"of a channel without a lane", 2)
    queues[0] = [pamqp.frame.marshal(Heartbeat(), 0)] * 2
    expected = [(channel, each) for channel in (1, 2) for each in queues[channel] if b"\x00\x3c\x00\x0b" in each[7:11]]
    stream = b""
    while any(queues.values()):
        stream += queues[dice.choice([channel for channel, frames in queues.items() if frames])].pop(0)
    cuts = sorted({0, len(stream), *(dice.randrange(len(stream)) for _ in range(dice.choice([0, 3, 200])))})
    for start, stop in pairwise(cuts):
        end.stream.data_received(stream[start:stop])
    for channel, messages in came.items():
        assert [each.body for each in messages] == sent[channel]
        assert [each.delivery_tag for each in messages] == list(range(1, len(messages) + 1))
        assert [each.redelivered for each in messages] == [each.delivery_tag % 2 == 0 for each in messages]
        assert [each.properties.message_type for each in messages] == [f"t{each.delivery_tag}" for each in messages]
        assert {(each.consumer_tag, each.exchange, each.routing_key) for each in messages} <= {("c", "x", "k")}
    left = await end.left()
    assert [type(each) for channel, each in left if channel == 3] == [Basic.Deliver, ContentHeader] + [ContentBody] * 2
    assert sum(channel in (1, 2) for channel, _ in left) == len(expected)
    assert sum(isinstance(each, Heartbeat) for _, each in left) in (2, 3)


async def test_the_library_is_told_that_the_peer_lives_while_lanes_take_everything() -> None:
    end = End()
    end.lane().subscribe("c", lambda message: None)
    for tag in range(1, 100):
        end.stream.data_received(b"".join(delivery(1, tag, b"x")))
    assert [type(each) for _, each in await end.left()] == [Heartbeat]


async def test_an_undecodable_header_becomes_one_that_says_so_and_the_stream_goes_on() -> None:
    spoiled, end = HEADER[:12] + struct.pack(">H", 0x0040) + struct.pack(">Q", 2**63), End()
    end.stream.data_received(frame(2, 1, spoiled) + frame(8, 0, b"") + frame(2, 1, HEADER))
    frames = [each for _, each in await end.left()]
    assert [getattr(each, "body_size", None) for each in frames] == [3, None, 3]
    assert frames[0].properties.delivery_mode == reading.UNREADABLE
    assert frames[2].properties.message_type == "orders.create"


async def test_a_stream_tells_that_the_connection_is_blocked_and_why_it_is_closed() -> None:
    end = End()
    blocked = frame(1, 0, struct.pack(">HH", 10, 60) + b"\x03low") + frame(1, 0, struct.pack(">HH", 10, 61))
    end.stream.data_received(blocked)
    assert end.notices == ["low", None]
    end.stream.data_received(pamqp.frame.marshal(commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0))
    assert end.stream.farewell == "CONNECTION_FORCED"


@pytest.mark.parametrize(
    "bytes_of_a_stranger",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"AMQP\x00\x00\x09\x01",
        frame(1, 1, b"\x00\x3c\x00\x50")[:-1] + b"\x00",
        struct.pack(">BHI", 3, 1, FRAME_MAX + 1),
        frame(1, 1, b"\x00\x3c\x00\x50\x00"),
        frame(1, 1, b"\x00\x3c\x00\x3c\xff"),
        b"".join(delivery(1, 1, b"body")[:2]) + frame(3, 1, b"a longer body"),
    ],
)
async def test_what_is_no_amqp_ends_the_connection_for_the_library(bytes_of_a_stranger: bytes) -> None:
    end = End()
    end.lane()
    end.stream.data_received(bytes_of_a_stranger)
    end.stream.data_received(b"whatever follows is not looked at")
    with pytest.raises(AMQPConnectionError):
        await FrameReceiver(end._reader).get_frame()


async def test_a_consumer_that_fails_costs_no_other_frame() -> None:
    end, seen, told = End(), list[bytes](), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def arrived(message: Delivered) -> None:
        seen.append(message.body)
        if message.body == b"1":
            raise ZeroDivisionError

    end.lane().subscribe("c", arrived)
    end.stream.data_received(b"".join(delivery(1, 1, b"1") + delivery(1, 2, b"2")))
    assert seen == [b"1", b"2"]
    assert [type(error) for error in told] == [ZeroDivisionError]


# -- lanes --------------------------------------------------------------------------------------------------------


def note(message_id: str = "") -> Header:
    """Properties of no interest."""
    return Header.of(Basic.Properties(message_id=message_id))


def send(lane: Lane, number: int) -> list[asyncio.Future[Outcome]]:
    """So many messages, whose ids are their numbers."""
    return [lane.publish_confirmed("", "q", note(str(each + 1)), b"x", 5.0) for each in range(number)]


def receive(end: End, *methods: Any) -> None:
    """These, on the first channel."""
    end.stream.data_received(b"".join(pamqp.frame.marshal(each, 1) for each in methods))


async def test_confirmations_come_one_by_one_and_many_at_once() -> None:
    end = End()
    sent = send(end.lane(), 6)
    receive(end, Basic.Ack(2), Basic.Ack(4, multiple=True), Basic.Nack(5), Basic.Ack(5), Basic.Ack(0, multiple=True))
    assert [each.result().name for each in sent] == ["CONFIRMED"] * 4 + ["REFUSED", "CONFIRMED"]


async def test_a_message_that_is_returned_is_not_confirmed_by_the_ack_that_follows() -> None:
    end = End()
    sent = send(end.lane(), 3)
    returned = Basic.Return(312, "NO_ROUTE", "", "q")
    receive(end, returned, ContentHeader(body_size=1, properties=Basic.Properties(message_id="2")), ContentBody(b"x"))
    receive(end, Basic.Ack(3, multiple=True))
    assert [each.result().name for each in sent] == ["CONFIRMED", "RETURNED", "CONFIRMED"]


async def test_whoever_was_cancelled_is_passed_over_and_hostile_confirmations_confirm_nothing() -> None:
    end = End()
    sent = send(end.lane(), 3)
    sent[0].cancel()
    receive(end, Basic.Ack(99), Basic.Nack(7), Basic.Ack(1), Basic.Ack(1), Basic.Ack(2))
    assert [each.done() for each in sent] == [True, True, False]
    receive(end, Basic.Ack(2**63 - 1, multiple=True))
    assert sent[2].result() is Outcome.CONFIRMED
    (later,) = send(end.stream.lanes[1], 1)  # type: ignore[arg-type]  # it is a lane
    assert not later.done()


async def test_a_confirmation_that_is_late_is_told_and_disturbs_nobody_when_it_comes() -> None:
    end = End()
    lane = end.lane()
    early, late = (lane.publish_confirmed("", "q", note(), b"", timeout=0.01) for _ in range(2))
    receive(end, Basic.Ack(1))
    with pytest.raises(TimeoutError):
        await late
    receive(end, Basic.Ack(2))
    assert early.result() is Outcome.CONFIRMED
    again = lane.publish_confirmed("", "q", note(), b"", timeout=0.01)
    receive(end, Basic.Ack(3))
    assert again.result() is Outcome.CONFIRMED


async def test_what_ends_a_channel_ends_whatever_waits_on_it() -> None:
    end = End()
    lane = end.lane()
    sent = send(lane, 2)
    lane.channel.closing.set_exception(ChannelPreconditionFailed("as the broker says"))
    for each in sent:
        with pytest.raises(ChannelPreconditionFailed):
            await each
    assert not lane.is_open


@pytest.mark.parametrize("side", ["broker", "library"])
@pytest.mark.parametrize("method", [commands.Channel.Close(404, "x", 0, 0), commands.Connection.Close(320, "x", 0, 0)])
async def test_nothing_is_sent_on_a_channel_once_either_side_has_closed_it(side: str, method: Any) -> None:
    end = End()
    lane = end.lane()
    lane.ack(1)
    closing = pamqp.frame.marshal(method, 0 if isinstance(method, commands.Connection.Close) else 1)
    if side == "broker":
        end.stream.data_received(closing)
    else:
        end.writer.write(closing)
        assert b"".join(end.written) == writing.ack(1, 1) + closing, "what was sent before comes before"
    attempts: list[Callable[[], object]] = [
        lambda: lane.ack(2),
        lambda: lane.nack(2, requeue=True),
        lambda: lane.publish("", "q", note(), b""),
        lambda: lane.publish_confirmed("", "q", note(), b"", 1.0),
    ]
    for attempt in attempts:
        with pytest.raises(ChannelInvalidStateError):
            attempt()


async def test_a_turn_of_the_loop_writes_once_and_replies_before_acks() -> None:
    turn, log = Turn(), list[bytes]()
    acks, replies = End(turn, first=False, log=log).lane(), End(turn, log=log).lane()
    for tag in range(1, 4):
        acks.ack(tag)
        replies.publish("", "reply", note(), b"answer")
    assert log == []
    await asyncio.sleep(0)
    assert [each.count(b"answer") for each in log] == [3, 0]
    assert log[1] == b"".join(writing.ack(1, tag) for tag in range(1, 4))


async def test_what_is_too_much_for_a_turn_leaves_at_once() -> None:
    end = End()
    end.lane().publish("", "q", note(), bytes(GATHERED))
    assert len(end.written) == 1


async def test_whoever_waits_for_room_goes_on_when_there_is_some_or_the_connection_ends() -> None:
    end = End()
    lane = end.lane()
    end.stream.pause_writing()
    waiting = asyncio.create_task(lane.room())
    await asyncio.sleep(0)
    assert lane.is_full
    assert not waiting.done()
    end.stream.resume_writing()
    await asyncio.wait_for(waiting, 5)
    end.stream.pause_writing()
    waiting = asyncio.create_task(lane.room())
    await asyncio.sleep(0)
    end.stream.connection_lost(None)
    await asyncio.wait_for(waiting, 5)
    assert not lane.is_open


# -- with a broker ------------------------------------------------------------------------------------------------


class Slicer(Proxy):
    """Passes on in pieces of any size, and cuts each connection when so many bytes have come from the server."""

    def __init__(self, target: int, seed: int, most: int) -> None:
        super().__init__(target)
        self._dice = random.Random(seed)
        self._most = most

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._dice.randrange(self._most // 2, self._most)
        while left > 0 and (data := await reader.read(min(left, self._dice.choice([1, 7, 50, 5000])))):
            left -= len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


async def test_wherever_in_a_frame_a_connection_is_cut_every_message_comes_whole(rabbit: Rabbit) -> None:
    queue, proxy = f"cut-{random.randbytes(4).hex()}", Slicer(rabbit.port, 1, 9000)
    await proxy.start()
    sender, receiver = from_url(rabbit.url), from_url(rabbit.url.replace(f":{rabbit.port}/", f":{proxy.port}/"))
    bodies = {number: random.Random(number).randbytes(number * 11) for number in range(60)}
    try:
        await sender.open()
        await sender.attach(QueueSpec(queue, "svc"))
        await sender.send(ToQueue(queue), *[Message(str(number), body) for number, body in bodies.items()])
        while True:
            try:
                await receiver.open()
                consumer = await receiver.consume(queue, slots=5)
                break
            except Exception:
                await asyncio.sleep(0)
        seen: set[int] = set()
        async with asyncio.timeout(60):
            while len(seen) < len(bodies):
                for each in await consumer.receive(5):
                    assert each.message.body == bodies[int(each.message.topic)]
                    seen.add(int(each.message.topic))
                    await consumer.ack(each)
        assert proxy.connections > 5
    finally:
        await receiver.aclose()
        await sender.aclose()
        await proxy.close()


async def test_a_body_of_many_frames_goes_and_comes_whole(rabbit: Rabbit) -> None:
    queue, transport = f"large-{random.randbytes(4).hex()}", from_url(rabbit.url)
    body = random.Random(2).randbytes(5 * FRAME_MAX + 17)
    await transport.open()
    try:
        await transport.attach(QueueSpec(queue, "svc"))
        consumer = await transport.consume(queue, slots=1)
        for size in (len(body), FRAME_MAX - 8, FRAME_MAX - 7, 0):
            await transport.send(ToQueue(queue), Message("t", body[:size]))
            (each,) = await asyncio.wait_for(consumer.receive(1), 20)
            assert each.message.body == body[:size]
            await consumer.ack(each)
    finally:
        await transport.aclose()
