"""What metrics and traces stand on, over one transport: headers that are added on the way arrive."""

from __future__ import annotations

from typing import Any

from busline.bus import Bus
from busline.context import Context
from busline.message import Delivery, Message
from busline.observing import Kind, Observer
from busline.testing.harness import Harness
from busline.testing.scenes import SOON, caller, eventually
from busline.wire import Envelope

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = "vendor=value,other=a b"


class _Marker(Observer):
    """Adds headers to whatever leaves, as traces do, and keeps those of replies."""

    def __init__(self) -> None:
        self.replies: list[dict[str, str]] = []

    def sending(self, kind: Kind, message: Message, envelope: Envelope, queue: str | None) -> None:
        message.headers = {**message.headers, "traceparent": TRACE, "tracestate": STATE}

    def calling(self, message: Message, envelope: Envelope, queue: str | None) -> None:
        self.sending("call", message, envelope, queue)

    def replying(self, delivery: Delivery, reply: Message) -> None:
        reply.headers = {**reply.headers, "traceparent": TRACE}

    def called(self, began: Any, reply: Message | None, error: BaseException | None) -> None:
        if reply is not None:
            self.replies.append(dict(reply.headers))


async def check_headers_that_an_observer_adds_arrive_with_message_retry_event_and_reply(h: Harness) -> None:
    """Beside those of the sender, in every attempt."""
    service, marker = h.unique("svc"), _Marker()
    seen: list[tuple[str, int, dict[str, str]]] = []
    bus = Bus(h.transport(), service=service)
    bus.instrument(marker)

    @bus.handler(f"{service}.do", retry=SOON)
    async def do(ctx: Context) -> str:
        seen.append(("do", ctx.attempt, dict(ctx.headers)))
        if ctx.attempt == 1:
            raise OSError("not yet")
        return "done"

    @bus.subscriber(f"{service}.on")
    async def on(ctx: Context) -> None:
        seen.append(("on", ctx.attempt, dict(ctx.headers)))

    async with bus.worker(), caller(h) as other:
        other.instrument(marker)
        assert await other.call(f"{service}.do", headers={"mine": "too"}) == "done"
        await other.send(f"{service}.do", headers={"mine": "too"})
        await other.publish(f"{service}.on", headers={"mine": "too"})
        await eventually(lambda: len(seen) == 5)
    headers = {"mine": "too", "traceparent": TRACE, "tracestate": STATE}
    assert sorted(what for what, _, _ in seen) == ["do", "do", "do", "do", "on"]
    assert sorted(attempt for what, attempt, _ in seen if what == "do") == [1, 1, 2, 2]
    assert all(each == headers for _, _, each in seen), seen
    assert marker.replies == [{"traceparent": TRACE}]
