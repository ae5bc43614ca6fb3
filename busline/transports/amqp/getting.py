"""`basic.get`, for a queue of any name."""

from __future__ import annotations

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic

from busline.transports.amqp.wire import Get


async def get(channel: Channel, queue: str) -> DeliveredMessage | None:
    """The first message that waits, unacked; None if none does. One at a time on a channel."""
    channel.getter = channel.create_future()
    await channel.rpc(Get(queue=queue))
    frame, message = await channel.getter
    assert isinstance(message, DeliveredMessage)
    return message if isinstance(frame, Basic.GetOk) else None
