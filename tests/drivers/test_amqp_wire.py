"""Decoding without trust, with no broker."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import Any

from aiormq.connection import FrameReceiver
from pamqp.header import ContentHeader

from busline.message import Message
from busline.transports.amqp import wire
from busline.transports.amqp.properties import properties

HEADER = ContentHeader(
    body_size=3,
    properties=properties(Message("orders.create", b"", '{"v":1}', {"ü": "☃"}, "c" * 32, "amq.rabbitmq.reply-to.x", 4)),
).marshal()


def is_decodable(payload: bytes) -> bool:
    try:
        ContentHeader().unmarshal(payload)
    except Exception:
        return False
    return True


def test_what_passes_at_a_glance_can_always_be_decoded() -> None:
    assert wire._is_usual(HEADER)
    dice, glances = random.Random(1), 0
    for _ in range(20_000):
        spoiled = bytearray(HEADER)
        for _ in range(dice.randrange(1, 4)):
            spoiled[dice.randrange(12, len(spoiled))] = dice.randrange(256)
        payload = bytes(spoiled[: dice.randrange(len(spoiled) - 5, len(spoiled) + 1)])
        assert wire._is_readable(payload) == is_decodable(payload)
        glances += is_decodable(payload)
    assert glances > 1000


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


async def receive(stream: bytes, notices: list[str | None]) -> list[Any]:
    """The frames that the library reads through a tap."""
    reader = asyncio.StreamReader()
    reader.feed_data(stream)
    tap = wire.Tap(reader, notices.append)
    receiver = FrameReceiver(tap)  # type: ignore[arg-type]  # of a reader it uses what the tap has
    frames = []
    while reader._buffer:  # type: ignore[attr-defined]
        frames.append((await receiver.get_frame())[2])
    return frames


async def test_an_undecodable_header_becomes_one_that_says_so_and_the_stream_goes_on() -> None:
    spoiled = HEADER[:12] + struct.pack(">H", 0x0040) + struct.pack(">Q", 2**63)
    frames = await receive(frame(2, 1, spoiled) + frame(8, 0, b"") + frame(2, 1, HEADER), [])
    assert [getattr(each, "body_size", None) for each in frames] == [3, None, 3]
    assert frames[0].properties.delivery_mode == wire.UNREADABLE
    assert frames[2].properties.message_type == "orders.create"


async def test_a_tap_tells_that_the_connection_is_blocked() -> None:
    notices: list[str | None] = []
    blocked = frame(1, 0, struct.pack(">HH", 10, 60) + b"\x03low") + frame(1, 0, struct.pack(">HH", 10, 61))
    await receive(blocked, notices)
    assert notices == ["low", None]
