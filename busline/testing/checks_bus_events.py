"""Events over one transport: subscribers and broadcasts."""

from __future__ import annotations

from busline.bus import Bus
from busline.context import Context
from busline.errors import ConfigurationError
from busline.testing.harness import Harness
from busline.testing.scenes import (
    SOON,
    caller,
    dead_letters,
    eventually,
)
from busline.transports.base import Inspectable


async def check_every_subscriber_gets_each_event_once(h: Harness) -> None:
    """Its processes share a queue; patterns are exact; one that fails does not disturb the others."""
    service = h.unique("svc")
    got: list[tuple[str, str]] = []
    buses = [Bus(h.transport(), service=service) for _ in range(2)]
    for bus in buses:

        @bus.subscriber(f"{service}.user.*")
        async def users(name: str, ctx: Context) -> None:
            got.append(("users", ctx.topic))

        @bus.subscriber(f"{service}.#", retry=SOON)
        async def everything(name: str, ctx: Context) -> None:
            got.append(("everything", ctx.topic))
            raise ValueError("disturbed")

    async with buses[0].worker(), buses[1].worker(), caller(h) as other:
        for topic in ("user.created", "user.deleted.hard"):
            await other.publish(f"{service}.{topic}", "ann")
        await dead_letters(other, f"{service}.everything", 2)
        assert sorted(set(got)) == sorted(
            {
                ("users", f"{service}.user.created"),
                ("everything", f"{service}.user.created"),
                ("everything", f"{service}.user.deleted.hard"),
            }
        )
        assert len(got) == 1 + 2 * 3


async def check_a_subscriber_listens_with_the_queue_that_it_names(h: Harness) -> str | None:
    """Where that queue can get events; else its worker does not start, and says why."""
    service, queue = h.unique("svc"), h.unique("listener")
    bus = Bus(h.transport(), service=service)
    got: list[tuple[str, str]] = []

    @bus.subscriber(f"{service}.user.*", queue=queue)
    async def on_user(name: str, ctx: Context) -> None:
        got.append((ctx.queue, name))

    try:
        async with bus.worker(), caller(h) as other:
            await other.publish(f"{service}.user.made", "ann")
            await eventually(lambda: got == [(queue, "ann")])
    except ConfigurationError as refused:
        assert queue in str(refused)  # noqa: PT017  # free of pytest
        assert "events" in str(refused)  # noqa: PT017  # free of pytest
        return "fanout"
    return None


async def check_a_broadcast_reaches_every_process(h: Harness) -> None:
    """While it is there; nothing is kept for it afterwards."""
    service = h.unique("svc")
    got: list[int] = []
    buses = [Bus(h.transport(), service=service) for _ in range(3)]
    for number, bus in enumerate(buses):

        @bus.subscriber(f"{service}.config.#", broadcast=True)
        async def reload(version: int, number: int = number) -> None:
            got.append(number)

    async with caller(h) as other:
        async with buses[0].worker(), buses[1].worker(), buses[2].worker():
            await other.publish(f"{service}.config.new", {"version": 1})
            await eventually(lambda: sorted(got) == [0, 1, 2])
        await other.publish(f"{service}.config.new", {"version": 2})
        assert isinstance(other.transport, Inspectable)
        assert not [stats for stats in await other.transport.stats() if stats.name.startswith(f"{service}.reload")]
