"""Lifecycle events: free while nobody listens, and never a harm to the work that they tell of."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from busline import Bus, Context, Retry
from busline.codec import decode
from busline.errors import ConnectionLost
from busline.events import BACKLOG, DEAF, REMEMBERED, Events
from busline.message import Message
from busline.testing.clock import VirtualClock
from busline.wire import Envelope, decode_envelope


class Broker:
    """Publishes to nobody, or to somebody, or fails."""

    def __init__(self, *, heard: bool = False, error: BaseException | None = None) -> None:
        self.heard = heard
        self.error = error
        self.published: list[Message] = []
        self.blocked: asyncio.Event | None = None

    async def publish(self, topic: str, message: Message) -> bool:
        if self.blocked is not None:
            await self.blocked.wait()
        assert topic == message.topic
        self.published.append(message)
        if self.error is not None:
            raise self.error
        return self.heard

    @property
    def topics(self) -> list[str]:
        return [message.topic for message in self.published]


class Scene:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.clock = VirtualClock()
        self.events = Events(broker, self.clock)  # type: ignore[arg-type]  # all that it uses of a transport

    def emit(self, kind: str = "event.started", topic: str = "orders.create", **fields: Any) -> None:
        self.events.emit(kind, topic, Envelope("the-id", 0.0, attempt=2, correlation_id="root"), **fields)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_what_nobody_hears_is_left_alone_for_a_while() -> None:
    scene = Scene(Broker())
    for _ in range(3):
        for _ in range(10):
            scene.emit()
            await scene.settle()
        await scene.clock.advance(DEAF)
    assert scene.broker.topics == ["busline.event.started.orders.create"] * 3
    await scene.events.aclose()


async def test_what_waits_to_be_told_is_dropped_once_it_is_known_that_nobody_hears_it() -> None:
    """A busy worker emits many while it is found out; to publish all of them would take longer than that holds."""
    scene = Scene(Broker())
    scene.broker.blocked = asyncio.Event()
    for _ in range(50):
        scene.emit()
        scene.emit("fault")
    await scene.settle()
    scene.broker.blocked.set()
    await scene.events.aclose()
    assert scene.broker.topics == ["busline.event.started.orders.create", "busline.fault.orders.create"]
    assert scene.events.dropped == 0


async def test_what_somebody_hears_is_told_each_time() -> None:
    scene = Scene(Broker(heard=True))
    for _ in range(10):
        scene.emit()
        await scene.settle()
    assert len(scene.broker.published) == 10
    await scene.events.aclose()


async def test_a_new_subscriber_is_heard_after_a_while() -> None:
    scene = Scene(Broker())
    scene.emit()
    await scene.settle()
    scene.broker.heard = True
    await scene.clock.advance(DEAF)
    for _ in range(3):
        scene.emit()
        await scene.settle()
    assert len(scene.broker.published) == 4
    await scene.events.aclose()


async def test_each_kind_and_topic_has_ears_of_its_own() -> None:
    scene = Scene(Broker())
    for topic in ("a", "b"):
        for kind in ("event.started", "fault"):
            scene.emit(kind, topic)
            scene.emit(kind, topic)
            await scene.settle()
            scene.emit(kind, topic)
    await scene.events.aclose()
    assert sorted(set(scene.broker.topics)) == [
        "busline.event.started.a",
        "busline.event.started.b",
        "busline.fault.a",
        "busline.fault.b",
    ]


async def test_an_event_tells_what_it_is_about() -> None:
    scene = Scene(Broker(heard=True))
    scene.emit("event.retried", error="OSError", message="x")
    await scene.events.aclose()
    (message,) = scene.broker.published
    assert decode(message.body) == {
        "id": "the-id",
        "topic": "orders.create",
        "attempt": 2,
        "at": scene.clock.time(),
        "error": "OSError",
        "message": "x",
    }
    envelope = decode_envelope(message, 0.0)
    assert (envelope.correlation_id, envelope.causation_id, envelope.attempt) == ("root", "the-id", 1)
    assert envelope.id != "the-id"


@pytest.mark.parametrize("topic", ["busline.event.started.a", "busline.fault.x", "busline.anything"])
async def test_events_about_events_would_never_end(topic: str) -> None:
    scene = Scene(Broker(heard=True))
    scene.emit("event.started", topic)
    await scene.events.aclose()
    assert scene.broker.published == []


@pytest.mark.parametrize("topic", ["x" * 255, "ü" * 127])
async def test_a_topic_that_leaves_no_room_for_the_events_name_has_none(topic: str) -> None:
    scene = Scene(Broker(heard=True))
    scene.emit("event.started", topic)
    await scene.events.aclose()
    assert scene.broker.published == []


@pytest.mark.parametrize(
    "error", [ConnectionLost("away"), RuntimeError("a bug in a driver"), OSError("file-\udcff")], ids=repr
)
async def test_a_broker_that_fails_does_no_harm_and_is_left_alone_for_a_while(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scene = Scene(Broker(error=error))
    for _ in range(5):
        scene.emit()
        await scene.settle()
    assert len(scene.broker.published) == 1
    assert [record.levelname for record in caplog.records] == ["INFO"]
    scene.broker.error, scene.broker.heard = None, True
    await scene.clock.advance(DEAF)
    scene.emit()
    await scene.events.aclose()
    assert len(scene.broker.published) == 2


async def test_what_cannot_be_written_down_is_dropped_and_counted() -> None:
    scene = Scene(Broker(heard=True))
    scene.emit(message="file-\udcff")
    scene.emit(message=object())
    scene.emit(message="fine")
    await scene.events.aclose()
    assert (len(scene.broker.published), scene.events.dropped) == (1, 2)


async def test_what_waits_is_bounded_and_the_oldest_is_dropped() -> None:
    scene = Scene(Broker(heard=True))
    scene.broker.blocked = asyncio.Event()
    for number in range(BACKLOG + 10):
        scene.emit(number=number)
    scene.broker.blocked.set()
    await scene.events.aclose()
    numbers = [decode(message.body)["number"] for message in scene.broker.published]
    assert numbers == list(range(10, BACKLOG + 10))
    assert scene.events.dropped == 10


async def test_topics_without_end_take_no_memory_without_end() -> None:
    scene = Scene(Broker())
    for number in range(REMEMBERED + 10):
        scene.emit(topic=f"user.{number}")
        if number % 1000 == 0:
            await scene.settle()
    await scene.events.aclose()
    assert len(scene.events._deaf_until) <= REMEMBERED


async def test_closing_publishes_what_waits() -> None:
    scene = Scene(Broker(heard=True))
    for _ in range(3):
        scene.emit()
    assert scene.broker.published == []
    await scene.events.aclose()
    assert len(scene.broker.published) == 3
    await scene.events.aclose()


async def test_closing_without_an_event_is_fine() -> None:
    await Scene(Broker()).events.aclose()


async def test_closing_does_not_wait_for_a_broker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busline.events.CLOSING", 0.01)
    scene = Scene(Broker())
    scene.broker.blocked = asyncio.Event()
    scene.emit()
    async with asyncio.timeout(5):
        await scene.events.aclose()
    assert {task.get_name() for task in asyncio.all_tasks()} == {asyncio.current_task().get_name()}  # type: ignore[union-attr]  # this test runs in one


async def test_the_life_of_a_message_is_told_in_order() -> None:
    bus = Bus("memory://life-of-a-message", service="svc", retry=Retry(delays=[0.01], jitter=False))
    told: list[tuple[str, int]] = []

    @bus.subscriber("busline.#")
    async def listen(event: dict[str, Any], ctx: Context) -> None:
        if event["topic"] == "work":
            told.append((ctx.topic, event["attempt"]))

    @bus.handler("work")
    async def work() -> None:
        raise KeyError

    async with bus.worker():
        await bus.send("work")
        async with asyncio.timeout(5):
            while not any(topic == "busline.fault.work" for topic, _ in told):  # noqa: ASYNC110  # it comes by the broker
                await asyncio.sleep(0.001)
    assert sorted(told, key=lambda item: (item[1], item[0])) == [
        ("busline.event.received.work", 1),
        ("busline.event.retried.work", 1),
        ("busline.event.sent.work", 1),
        ("busline.event.started.work", 1),
        ("busline.event.failed.work", 2),
        ("busline.event.received.work", 2),
        ("busline.event.started.work", 2),
        ("busline.fault.work", 2),
    ]
