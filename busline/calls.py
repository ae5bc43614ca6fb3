"""The caller's side of `call`: one inbox per process, one table of pending calls, one wheel of deadlines.

A pending call ends in exactly one of: its reply, its deadline, the loss of the way back, the caller's cancellation.
Whichever comes first, its entry is gone from table and wheel when `ask` returns.
"""

from __future__ import annotations

import asyncio

import anyio

from busline.clock import Clock
from busline.errors import (
    CallState,
    CallTimeout,
    CodecError,
    ConnectionLost,
    OutcomeUnknown,
    ReplyLost,
    TransportClosed,
)
from busline.message import Destination, Message
from busline.structs import entity
from busline.telemetry import Telemetry, log
from busline.transports.base import Inbox, Transport
from busline.wheel import Wheel
from busline.wire import new_id, reply_status

AGAIN = (0.05, 1.0)
"""First and longest pause before a call that lost its way back is asked again, seconds."""


@entity
class _Pending:
    reply: asyncio.Future[Message]
    sender: asyncio.Task[object] | None
    """The caller's task while it hands the call to the transport, which the deadline must be able to interrupt."""
    state: CallState = "queued"
    interrupted: bool = False
    """Its sender was cancelled by us; `reply` is done."""

    def fail(self, error: Exception) -> None:
        """End it with `error`, if it has not ended."""
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # Seen: a caller that is cancelled meanwhile will not look at it.

    def interrupt(self, error: Exception) -> None:
        """End it with `error` now, also if it is still being sent."""
        self.fail(error)
        if self.sender is not None and not self.interrupted:
            self.interrupted = True
            self.sender.cancel()


class Calls:
    """Calls in flight from this process. `close` ends those that are left."""

    def __init__(self, transport: Transport, clock: Clock, telemetry: Telemetry) -> None:
        self._transport = transport
        self._clock = clock
        self._telemetry = telemetry
        self._pending: dict[str, _Pending] = {}
        self._wheel: Wheel[_Pending] = Wheel(clock, _expire)
        self._inbox: Inbox | None = None
        self._opening = asyncio.Lock()
        self._loop = asyncio.get_running_loop()  # known, as to ask for it is a system call, and twice a call
        self._closed = False

    def __len__(self) -> int:
        return len(self._pending)

    async def ask_again(self, to: Destination, message: Message, timeout: float, deadline: float) -> Message:
        """As `ask`, for a call that may be handled twice: when the broker goes away it is asked once more, with the
        same message and a fresh correlation id, until an answer or the deadline ends it. The cause of a CallTimeout is
        what went wrong last."""
        pause, longest = AGAIN
        lost: Exception | None = None
        while True:
            try:
                return await self.ask(to, message, timeout, deadline)
            except CallTimeout as error:
                raise error from lost
            except (ReplyLost, ConnectionLost, OutcomeUnknown) as error:
                if self._closed or self._clock.time() + pause >= deadline:
                    raise
                lost = error
            await anyio.sleep(pause)
            pause = min(longest, pause * 2)

    async def ask(self, to: Destination, message: Message, timeout: float, deadline: float) -> Message:
        """Send `message` and return the reply to it. Raises CallTimeout at `deadline`, ReplyLost if no reply can come
        any more, and what sending raises. `timeout` is what the caller asked for, for the error's text."""
        if self._closed:
            raise TransportClosed("the bus is closed")
        task = asyncio.current_task(self._loop)
        assert task is not None, "an event loop runs tasks"
        cancelling = task.cancelling()
        key = message.correlation_id = new_id()
        pending = _Pending(self._loop.create_future(), task)
        ticket = self._wheel.add(pending, deadline)
        self._pending[key] = pending
        try:
            try:  # Sending ends also when it was interrupted: then there is an end to the call in `pending.reply`.
                inbox = self._inbox or await self._open()
                await inbox.send(to, message)
            except asyncio.CancelledError:
                # Ours and the caller's own may arrive as one; his must never be taken for ours.
                if not pending.interrupted or task.cancelling() > cancelling + 1:
                    raise
            finally:
                pending.sender = None
                if pending.interrupted:
                    task.uncancel()
            return await pending.reply
        except _Expired:
            raise CallTimeout(message.topic, timeout, pending.state, self._transport.where) from None
        finally:
            del self._pending[key]
            self._wheel.discard(pending, ticket)

    async def _open(self) -> Inbox:
        async with self._opening:
            if self._inbox is None:
                self._inbox = await self._transport.open_inbox(self._on_reply, self._on_lost)
            return self._inbox

    async def close(self) -> None:
        """Fail what is pending with ReplyLost and give the inbox up. Idempotent."""
        self._closed = True
        self._on_lost()
        for pending in self._pending.values():
            pending.interrupt(ReplyLost("the bus was closed"))
        self._wheel.close()
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            await inbox.aclose()

    def _on_reply(self, message: Message) -> None:
        pending = self._pending.get(message.correlation_id or "")
        if pending is None or pending.reply.done():
            self._telemetry.late_reply()
            return
        try:
            started = reply_status(message) == "started"
        except CodecError as error:
            pending.fail(error)
            return
        if started:
            pending.state = "started"
        else:
            pending.reply.set_result(message)

    def _on_lost(self) -> None:
        for pending in self._pending.values():
            pending.fail(ReplyLost("the way back was lost; the handler may have run"))
        if self._pending:
            log.warning("%d calls lost their way back", len(self._pending), extra={"event": "replies_lost"})


def _expire(pending: _Pending) -> None:
    pending.interrupt(_Expired())


class _Expired(Exception):
    """Between the wheel and `ask` only."""
