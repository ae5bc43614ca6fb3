"""`basic.get`, for a queue of any name."""

from __future__ import annotations

from aiormq.channel import Channel
from pamqp.commands import Basic

from busline.transports.amqp.wire import Delivered, Get


async def get(channel: Channel, queue: str) -> Delivered | None:
    """The first message that waits, unacked; None if none does. One at a time on a channel."""
    channel.getter = channel.create_future()
    await channel.rpc(Get(queue=queue))
    frame, message = await channel.getter
    return Delivered.of(message) if isinstance(frame, Basic.GetOk) else None
