"""What is the memory transport's own; what it shares with all others is in tests/conformance."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from busline.errors import ConfigurationError
from busline.message import Binding, Message, QueueSpec, ToQueue, ToTopic
from busline.testing.clock import VirtualClock
from busline.testing.steps import take
from busline.transports import from_url
from busline.transports.base import Inspectable
from busline.transports.memory import MemoryBroker, MemoryTransport

QUEUE = QueueSpec("queue", "service", frozenset({"a.topic"}))


@asynccontextmanager
async def client(broker: MemoryBroker) -> AsyncIterator[MemoryTransport]:
    transport = MemoryTransport(broker)
    await transport.open()
    await transport.attach(QUEUE)
    yield transport
    await transport.aclose()


async def send(transport: MemoryTransport, *bodies: bytes, **fields: object) -> None:
    template = Message("a.topic", b"", **fields)  # type: ignore[arg-type]  # each test knows its fields
    await transport.send(ToTopic("a.topic"), *(replace(template, body=body) for body in bodies))


async def order_of_arrival(seed: int) -> list[bytes]:
    async with client(MemoryBroker(seed=seed)) as transport:
        await send(transport, *[b"%02d" % number for number in range(30)])
        consumer = await transport.consume("queue", slots=30)
        return [(await take(consumer))[0].message.body for _ in range(30)]


async def test_equals_arrive_shuffled_and_a_seed_repeats_it() -> None:
    orders = [await order_of_arrival(seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


async def test_nothing_is_overtaken_for_ever() -> None:
    order = await order_of_arrival(5)
    assert all(abs(order.index(body) - place) < 20 for place, body in enumerate(sorted(order)))


async def test_a_receiver_never_sees_the_senders_objects() -> None:
    async with client(MemoryBroker()) as transport:
        message = Message("a.topic", b"1", headers={"h": "sent"})
        await transport.send(ToQueue("queue"), message)
        message.headers["h"] = message.topic = "changed"  # type: ignore[index]  # what nobody should do
        consumer = await transport.consume("queue", slots=1)
        (first,) = await take(consumer)
        assert first.message == Message("a.topic", b"1", headers={"h": "sent"})
        first.message.headers["h"] = first.message.topic = "changed"  # type: ignore[index]  # nor this
        await consumer.release(first)
        (again,) = await take(consumer)
        assert again.message == Message("a.topic", b"1", headers={"h": "sent"})


async def test_two_queues_get_two_copies_of_an_event() -> None:
    async with client(MemoryBroker()) as transport:
        for name in ("one", "two"):
            await transport.attach(QueueSpec(name, patterns=frozenset({"#"})))
        await transport.publish("an.event", Message("an.event", b"1"))
        (one,), (two,) = [await take(await transport.consume(name, slots=1)) for name in ("one", "two")]
        assert one.message == two.message
        assert one.message is not two.message


async def test_the_headers_of_a_reply_are_a_copy() -> None:
    async with client(MemoryBroker()) as transport:
        replies: list[Message] = []
        inbox = await transport.open_inbox(replies.append, lambda: None)
        reply = Message("reply", b"1", headers={"h": "sent"})
        assert await transport.reply(inbox.address, reply)
        reply.headers["h"] = "changed"  # type: ignore[index]  # what nobody should do
        assert replies == [Message("reply", b"1", headers={"h": "sent"})]


async def test_a_message_assigned_to_a_cancelled_receive_is_not_counted() -> None:
    async with client(MemoryBroker()) as transport:
        consumer = await transport.consume("queue", slots=2)
        first = asyncio.create_task(consumer.receive(1))
        second = asyncio.create_task(consumer.receive(1))
        await asyncio.sleep(0)
        await send(transport, b"1")
        first.cancel()
        (delivery,) = await second
        assert first.cancelled()
        assert delivery.deliveries == 1


async def test_cancelled_receives_leave_nothing_behind() -> None:
    broker = MemoryBroker()
    async with client(broker) as transport:
        consumer = await transport.consume("queue", slots=1)
        for _ in range(50):
            task = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert len(broker.queue("queue")._waiters) == 0


async def test_closing_after_a_message_was_assigned_gives_it_back_and_says_closed() -> None:
    async with client(MemoryBroker()) as transport:
        consumer = await transport.consume("queue", slots=1)
        waiting = asyncio.create_task(consumer.receive(1))
        await asyncio.sleep(0)
        await send(transport, b"1")
        await consumer.aclose()
        assert "closed" in str((await asyncio.gather(waiting, return_exceptions=True))[0])
        (delivery,) = await take(await transport.consume("queue", slots=1))
        assert delivery.deliveries == 1


async def test_a_backlog_lets_the_loop_turn() -> None:
    async with client(MemoryBroker()) as transport:
        await send(transport, *[b"1"] * 100)
        consumer = await transport.consume("queue", slots=1)
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        for _ in range(100):
            await consumer.ack(*await consumer.receive(1))
        counting.cancel()
        await asyncio.wait([counting])
        assert turns >= 5


async def test_an_instant_between_leases_ends_each_lease_in_its_own_time() -> None:
    clock = VirtualClock()
    async with client(MemoryBroker(clock, lease=10.0)) as transport:
        consumer = await transport.consume("queue", slots=3)
        await send(transport, b"1", b"2")
        (first,) = await take(consumer)
        await clock.advance(4.0)
        (second,) = await take(consumer)
        await clock.advance(6.0)
        assert await consumer.extend(first, second, lease=1.0) == [first]
        await clock.advance(1.0)
        assert await consumer.extend(second, lease=1.0) == [second]


async def test_a_lost_lease_makes_room_for_the_next_message() -> None:
    clock = VirtualClock()
    async with client(MemoryBroker(clock, lease=10.0)) as transport:
        consumer = await transport.consume("queue", slots=1)
        await send(transport, b"1")
        (lost,) = await take(consumer)
        await clock.advance(10.0)
        (again,) = await take(consumer)
        assert (lost.deliveries, again.deliveries) == (1, 2)


async def test_a_killed_client_is_missed_after_a_lease_and_not_before() -> None:
    clock = VirtualClock()
    broker = MemoryBroker(clock, lease=10.0)
    async with client(broker) as living:
        dying = MemoryTransport(broker)
        await dying.open()
        await dying.attach(QueueSpec("mine", ephemeral=True))
        address = (await dying.open_inbox(lambda _: None, lambda: None)).address
        dying.die()
        dying.die()
        await clock.advance(9.0)
        assert await living.reply(address, Message("reply", b"1"))
        assert [found.name for found in await living.stats()] == ["mine", "queue"]
        await clock.advance(1.0)
        assert not await living.reply(address, Message("reply", b"1"))
        assert [found.name for found in await living.stats()] == ["queue"]
        await dying.aclose()
        assert dying.health().detail == "killed"


async def test_a_deleted_queue_settles_in_silence() -> None:
    async with client(MemoryBroker()) as transport:
        consumer = await transport.consume("queue", slots=2)
        await send(transport, b"1", b"2")
        held, other = await take(consumer, 2)
        await transport.detach("queue", delete=True)
        await transport.attach(QUEUE)
        await consumer.ack(held)
        await consumer.release(other)
        assert (await transport.stats())[0].ready == 0


async def test_an_ephemeral_queue_does_not_become_a_durable_one() -> None:
    async with client(MemoryBroker()) as transport:
        with pytest.raises(ConfigurationError, match="ephemeral=False"):
            await transport.attach(replace(QUEUE, ephemeral=True))


async def test_a_moved_message_keeps_the_rest_of_its_delay() -> None:
    clock = VirtualClock()
    async with client(MemoryBroker(clock)) as transport:
        await transport.attach(QueueSpec("other"))
        await send(transport, b"1", delay=10.0)
        await clock.advance(4.0)
        assert await transport.move("queue", "other", 5) == 1
        consumer = await transport.consume("other", slots=1)
        waiting = asyncio.create_task(consumer.receive(1))
        await clock.advance(5.0)
        assert not waiting.done()
        await clock.advance(1.0)
        assert (await waiting)[0].message.body == b"1"


@pytest.mark.parametrize("option", [{"kind": "quorum"}, {"bindings": (Binding("orders", "#"),)}])
async def test_what_only_rabbitmq_has_is_refused(option: dict[str, object]) -> None:
    async with client(MemoryBroker()) as transport:
        with pytest.raises(ConfigurationError, match="only RabbitMQ"):
            await transport.attach(QueueSpec("other", **option))  # type: ignore[arg-type]  # one of each
        assert [found.name for found in await transport.stats()] == ["queue"]


async def test_a_passive_queue_is_verified() -> None:
    async with client(MemoryBroker()) as transport:
        await transport.attach(replace(QUEUE, patterns=frozenset({"e.#"}), max_priority=3))
        before = await transport.stats()
        passive = replace(QUEUE, service="guests", patterns=frozenset({"e.#"}), max_priority=3, passive=True)
        assert (await transport.attach(passive)).priorities == 3
        for other in (
            replace(passive, max_priority=4),
            replace(passive, max_length=1),
            replace(passive, ephemeral=True),
        ):
            with pytest.raises(ConfigurationError, match="is passive, with"):
                await transport.attach(other)
        with pytest.raises(ConfigurationError, match=r"no \['e.x'\]"):
            await transport.attach(replace(passive, patterns=frozenset({"e.x"})))
        assert await transport.stats() == before


async def test_expired_messages_are_deleted_by_the_clock_alone() -> None:
    clock = VirtualClock()
    broker = MemoryBroker(clock, lease=10.0)
    async with client(broker) as transport:
        await send(transport, b"1", ttl=5.0, expendable=True)
        await send(transport, b"2", ttl=7.0, delay=20.0, expendable=True)
        await send(transport, b"held", ttl=7.0, expendable=True, priority=1)
        (held,) = await take(await transport.consume("queue", slots=1))
        assert held.message.body == b"held"
        queue = broker.queue("queue")
        await clock.advance(5.0)
        assert (queue._ready.size, len(queue._delayed), len(queue._mortal)) == (0, 1, 1)
        await clock.advance(2.0)
        assert (queue._ready.size, len(queue._delayed), len(queue._mortal)) == (0, 0, 0)
        await clock.advance(3.0)
        assert (await transport.stats())[0].leased == queue._ready.size == 0


async def test_what_left_the_queue_is_not_kept_until_its_ttl_has_passed() -> None:
    broker = MemoryBroker()
    async with client(broker) as transport:
        await send(transport, b"1", b"2", b"3", ttl=3600.0, expendable=True)
        consumer = await transport.consume("queue", slots=1)
        await consumer.ack(*await take(consumer))
        assert len(broker.queue("queue")._mortal) == 2
        assert await transport.purge("queue") == 2
        assert len(broker.queue("queue")._mortal) == 0


async def test_a_transport_has_one_inbox() -> None:
    async with client(MemoryBroker()) as transport:
        await transport.open_inbox(lambda _: None, lambda: None)
        with pytest.raises(ConfigurationError, match="one"):
            await transport.open_inbox(lambda _: None, lambda: None)


async def test_it_may_be_opened_again_and_tells_its_health() -> None:
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    assert transport.health().status == "unknown"
    for _ in range(2):
        await transport.open()
        assert transport.health().status == "healthy"
        await transport.attach(QUEUE)
        assert len(await transport.stats()) == 1
        await transport.aclose()
        assert transport.health().status == "down"
    assert isinstance(transport, Inspectable)


def test_a_broker_may_serve_one_loop_after_another() -> None:
    broker = MemoryBroker(lease=0.05)

    async def leave_one_leased() -> None:
        transport = MemoryTransport(broker)
        await transport.open()
        await transport.attach(QUEUE)
        await send(transport, b"1")
        await take(await transport.consume("queue", slots=1))
        transport.die()

    async def find_it_again() -> int:
        async with client(broker) as transport:
            (delivery,) = await take(await transport.consume("queue", slots=1))
            return delivery.deliveries

    asyncio.run(leave_one_leased())
    assert asyncio.run(find_it_again()) == 2


async def test_a_name_is_shared_and_no_name_is_private() -> None:
    one, two, private = from_url("memory://shared"), from_url("memory://shared?"), from_url("memory://")
    for transport in (one, two, private):
        await transport.open()
    await one.attach(QUEUE)
    await two.send(ToQueue("queue"), Message("a.topic", b"1"))
    assert isinstance(private, Inspectable)
    assert await private.stats() == []
    assert (one.where, private.where) == ("memory://shared", "memory://")
    for transport in (one, two, private):
        await transport.aclose()


async def test_a_named_broker_ends_with_its_last_transport() -> None:
    transport = from_url("memory://short-lived?lease=3")
    await transport.open()
    await transport.attach(QUEUE)
    await transport.aclose()
    del transport
    gc.collect()
    fresh = from_url("memory://short-lived?lease=4")
    await fresh.open()
    assert (await fresh.attach(QUEUE)).lease == 4.0
    await fresh.aclose()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://?leese=3", "lease"),
        ("memory://x?lease=3&durable=1&a=", "a, durable; it knows: lease"),
        ("memory://?lease=soon", "seconds above 0"),
        ("memory://?lease=0", "seconds above 0"),
        ("memory://?lease=nan", "seconds above 0"),
        ("memory://?lease=", "seconds above 0"),
    ],
)
def test_an_option_that_it_does_not_know_is_refused(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        from_url(url)


def test_one_name_has_one_lease() -> None:
    first = from_url("memory://one-lease?lease=3")
    with pytest.raises(ConfigurationError, match="lease=3, not 4"):
        from_url("memory://one-lease?lease=4")
    assert from_url("memory://one-lease").where == first.where
