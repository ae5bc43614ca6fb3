"""RabbitMQ under the driver checks: a private broker, quorum or classic queues."""

from __future__ import annotations

import asyncio
import uuid

from busline.transports.amqp import AmqpTransport, from_url
from busline.transports.base import Transport


class AmqpHarness:
    """Clients of one broker whose queues are of one kind."""

    takeover = 3.0

    def __init__(self, url: str, kind: str = "quorum") -> None:
        self.name = f"amqp-{kind}"
        self.url = f"{url}?kind={kind}"

    def transport(self) -> AmqpTransport:
        return from_url(self.url)

    def unique(self, prefix: str) -> str:
        return f"{prefix}-{uuid.uuid4().hex[:8]}"

    async def kill(self, transport: Transport) -> None:
        assert isinstance(transport, AmqpTransport)
        await transport._die()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
