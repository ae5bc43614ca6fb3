"""What the SQS driver does beyond the contract: long delays, queues of others, refusals, order in FIFO queues."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from busline import Bus, Queue, Retry
from busline.cli.describing import described
from busline.cli.doctor.online import examine
from busline.dead_letters import DeadLetters, Selection
from busline.errors import ConfigurationError, NoHandler, QueueNotFound
from busline.message import Message, QueueSpec, ToQueue, ToTopic
from busline.testing.bus_checks import BusCheck, control_bus_checks
from busline.testing.harnesses import SqsHarness
from busline.testing.scenes import eventually
from busline.testing.steps import take
from busline.transports.sqs import SqsTransport, from_url, register, wire
from busline.transports.sqs.clients import Clients
from busline.transports.sqs.url import parse
from tests.ministack import Ministack


class Place:
    """An SQS of one's own, as far as queues go."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.prefix = f"{uuid.uuid4().hex[:8]}-"

    def url(self, **options: object) -> str:
        fixed = {"prefix": self.prefix, "wait": 1, "lease": 2, "cache": 0, **options}
        chosen = "&".join(f"{name}={value}" for name, value in fixed.items())
        return f"sqs://us-east-1?endpoint_url={self._endpoint}&{chosen}"

    @asynccontextmanager
    async def client(self, **options: object) -> AsyncIterator[SqsTransport]:
        transport = from_url(self.url(**options))
        await transport.open()
        try:
            yield transport
        finally:
            await transport.aclose()

    async def ask(self, action: str, **request: Any) -> dict[str, Any]:
        """SQS itself, as somebody with a client of his own."""
        clients = Clients(parse(self.url()))
        await clients.open()
        try:
            return await clients.ask(action, **request)
        finally:
            await clients.close()

    async def make(self, name: str, **attributes: str) -> str:
        """A queue of somebody else's, by its name at SQS after the prefix."""
        return str((await self.ask("CreateQueue", QueueName=self.prefix + name, Attributes=attributes))["QueueUrl"])

    async def attributes(self, transport: SqsTransport, name: str) -> dict[str, str]:
        return (await transport._queues.look(name)).attributes  # type: ignore[return-value]  # a dict, seen as a mapping


@pytest.fixture
def place(ministack: Ministack) -> Place:
    return Place(ministack.endpoint)


async def test_a_delay_beyond_the_longest_is_composed_of_hops_that_are_no_attempts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LONGEST_DELAY", 1)
    async with place.client() as transport:
        await transport.attach(QueueSpec("jobs"))
        consumer = await transport.consume("jobs", slots=1)
        sent = asyncio.get_running_loop().time()
        await transport.send(ToQueue("jobs"), Message("a.topic", b"1", delay=2.6))
        (delivery,) = await take(consumer)
        assert asyncio.get_running_loop().time() - sent >= 2.5
        assert delivery.deliveries == 1
        await consumer.ack(delivery)


async def test_a_queue_of_somebody_else_is_used_as_it_is(place: Place) -> None:
    """`create=false`: what is missing is an error that names it, and nothing is made."""
    async with place.client(create="false") as transport:
        with pytest.raises(QueueNotFound, match=r"orders.*--orders") as error:
            await transport.attach(QueueSpec("svc.orders", "svc"))
        assert error.value.queue == "svc.orders"
        with pytest.raises(ConfigurationError, match="create=ephemeral"):
            await transport.open_inbox(lambda _: None, lambda: None)
    await place.make("import_queue")
    async with place.client(create="false") as transport:
        await transport.attach(QueueSpec("import_queue", "svc", frozenset({"import.csv"})))
        await transport.send(ToTopic("import.csv"), Message("import.csv", b"{}"))
        consumer = await transport.consume("import_queue", slots=1)
        assert len(await take(consumer)) == 1


async def test_ephemeral_queues_are_enough_to_call(place: Place) -> None:
    await place.make("svc")
    await place.make("svc--dead")
    url = place.url(create="ephemeral")
    bus = Bus(url, service="svc")

    @bus.handler("svc.double")
    async def double(number: int) -> int:
        return 2 * number

    async with bus.worker(), Bus(url) as caller:
        assert await caller.call("svc.double", 4, timeout=60) == 8


async def test_early_acked_queues_give_other_clients_twice_the_time_limit(place: Place) -> None:
    bus = Bus(place.url(), service="svc")

    @bus.handler("svc.early", queue="svc.early", ack="early", time_limit=1800)
    async def early() -> None: ...

    @bus.handler("svc.late", time_limit=1800)
    async def late() -> None: ...

    async with bus.worker():
        transport = bus.transport
        assert isinstance(transport, SqsTransport)
        assert (await place.attributes(transport, "svc.early"))["VisibilityTimeout"] == "3600"
        assert (await place.attributes(transport, "svc"))["VisibilityTimeout"] == "2"
        policy = json.loads((await place.attributes(transport, "svc"))["RedrivePolicy"])
        assert policy["deadLetterTargetArn"].endswith("svc--dead")
        assert policy["maxReceiveCount"] == 40, "twice what core allows before it writes a letter itself"
        assert (await place.attributes(transport, "svc.dead"))["MessageRetentionPeriod"] == str(14 * 86_400)


async def _refuses(bus: Bus, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        async with bus.worker():
            raise AssertionError("it started")


async def test_what_cannot_be_right_is_refused_at_startup(place: Place) -> None:
    unrenewed = Bus(place.url(renew=0, lease=30), service="svc")

    @unrenewed.handler("svc.slow", time_limit=60)
    async def slow() -> None: ...

    await _refuses(unrenewed, "handed out again after 30 s")

    dead = await place.make("other--dead")
    arn = (await place.ask("GetQueueAttributes", QueueUrl=dead, AttributeNames=["QueueArn"]))["Attributes"]["QueueArn"]
    await place.make("impatient", RedrivePolicy=json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 2}))
    impatient = Bus(place.url(), service="impatient", retry=Retry(max_retries=5))

    @impatient.handler("impatient.work")
    async def work() -> None: ...

    await _refuses(impatient, "away after 2 deliveries")

    await place.make("short", MessageRetentionPeriod="60")
    short = Bus(place.url(), service="short")

    @short.handler("short.work")
    async def brief() -> None: ...

    await _refuses(short, "MessageRetentionPeriod")


async def test_sns_that_is_not_allowed_refuses_subscribers_and_nobody_else(place: Place) -> None:
    url = place.url(events=0)
    bus = Bus(url, service="svc")

    @bus.subscriber("user.*")
    async def on_user(name: str) -> None: ...

    await _refuses(bus, "events")
    async with place.client(events=0) as transport:
        assert await transport.publish("user.made", Message("user.made", b"1")) is False
        assert not (await transport.attach(QueueSpec("jobs"))).fanout


def serving(url: str) -> Bus:
    """Its workers are to be asked."""
    bus = Bus(url, service="svc", control=True)

    @bus.handler("svc.nothing")
    async def nothing() -> None: ...

    return bus


async def test_workers_are_asked_where_sns_is_permitted_without_any_store(place: Place) -> None:
    bus = serving(place.url())
    async with bus.worker(name="blue"), Bus(place.url()).control() as control:
        (alone,) = await control.ping(timeout=20, expect=1)
        assert (alone.worker, alone.state, alone.service) == ("blue", "serving", "svc")


@pytest.mark.parametrize("check", control_bus_checks(), ids=lambda check: check.__name__.removeprefix("check_"))
async def test_workers_are_asked_and_directed_by_way_of_a_store_where_sns_is_not_permitted(
    check: BusCheck, ministack: Ministack
) -> None:
    h = SqsHarness(ministack.endpoint)
    h.url += "&events=0"
    await check(h)


async def test_workers_cannot_be_asked_where_there_is_neither_sns_nor_a_store(place: Place) -> None:
    with pytest.raises(ConfigurationError, match="on SQS that takes SNS topics"):
        async with Bus(place.url(events=0)).control():
            raise AssertionError("it began")
    await _refuses(serving(place.url(events=0)), "events")


async def test_a_moved_topic_is_found_by_those_who_believed_the_old_owner(place: Place) -> None:
    """With a cache, whoever takes a topic over waits until nobody believes otherwise."""
    topic = "orders.create"
    async with place.client(cache=0.5) as sender, place.client(cache=0.5) as owner:
        await owner.attach(QueueSpec("old", "svc", frozenset({topic})))
        await sender.send(ToTopic(topic), Message(topic, b"before"))
        await owner.attach(QueueSpec("new", "svc", frozenset({topic})))
        await sender.send(ToTopic(topic), Message(topic, b"after"))
        assert [message.body for message in await owner.peek("new", 9)] == [b"after"]
        await owner.detach("new", delete=True)
        with pytest.raises(NoHandler):
            await sender.send(ToTopic(topic), Message(topic, b"never"))


async def test_a_queue_without_tags_is_looked_at_again_soon_and_then_ever_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one of ours that was seen between its making and its first tags, which nobody announces again."""
    monkeypatch.setattr(register, "FIRST_LOOK", 0.2)
    monkeypatch.setattr(register, "LONGEST_LOOK", 0.8)
    async with place.client() as transport:
        await transport.attach(QueueSpec("other", "svc", frozenset({"other.topic"})))  # so that there is a register
        url = await place.make("svc")
        transport._register.forget()
        with pytest.raises(NoHandler):
            await transport.send(ToTopic("a.topic"), Message("a.topic", b"1"))
        pauses: list[float] = []

        async def looked_at() -> bool:
            await transport._register.entries(believed=0.0)
            pause = transport._register._untagged[url][1]
            if pause not in pauses:
                pauses.append(pause)
            return len(pauses) == 3

        await eventually(looked_at)
        assert pauses == [0.2, 0.4, 0.8]
        tags = {"busline:queue": "svc", "busline:service": "svc", "busline:prefix": place.prefix}
        await place.ask("TagQueue", QueueUrl=url, Tags={**tags, "busline:t.0": "a.topic"})

        async def found() -> bool:
            return bool((await transport._register.entries(believed=0.0))["svc"].topics)

        await eventually(found)
        await transport.send(ToTopic("a.topic"), Message("a.topic", b"1"))
        assert url not in transport._register._untagged


@pytest.mark.parametrize("dead", ["shop.fifo.dead", "shop-dead.fifo"])
async def test_fifo_queues_and_their_dead_letters_are_looked_after_like_others(place: Place, dead: str) -> None:
    """What `busline dlq list|show|replay|purge`, `queues`, `purge`, `describe` and `doctor` stand on."""
    bus = Bus(place.url(), service="shop", retry=Retry(max_retries=0))
    repaired: list[str] = []

    @bus.handler("orders.bill", queue=Queue("shop.fifo", dead_letter=dead), time_limit=60)
    async def bill(customer: str) -> None:
        if not repaired:
            raise ConnectionError(f"no printer for {customer}")
        repaired.append(customer)

    group = {"MessageGroupId": "all"}
    async with bus.worker():
        for customer in ("Ada", "Ben"):
            await bus.send("orders.bill", customer, headers=group)
        await eventually(lambda: bus.stats.dead_lettered == 2)
        letters = await DeadLetters.find(bus.transport, dead)
        found = {each.failure["message"]: each.id for each in await letters.peek(Selection(), 9)}
        assert set(found) == {"no printer for Ada", "no printer for Ben"}
        repaired.append("now")
        assert (await letters.replay(Selection(ids=[found["no printer for Ada"]]))).done == 1
        await eventually(lambda: repaired == ["now", "Ada"])
        assert await letters.waiting() == 1
        assert (await letters.purge(Selection())).done == 1
        assert await letters.waiting() == 0
    async with bus:
        for customer in ("Cem", "Dee"):
            await bus.send("orders.bill", customer, headers=group)
        transport = bus.transport
        assert isinstance(transport, SqsTransport)
        assert {each.name: each.ready for each in await transport.stats()} == {"shop.fifo": 2, dead: 0}
        policy = (await place.attributes(transport, "shop.fifo")).get("RedrivePolicy", "{}")
        assert ("deadLetterTargetArn" in json.loads(policy)) == dead.endswith(".fifo"), "SQS wants both of one kind"
    found_ill = [each.code for each in await examine(bus, bus.plan(), 5.0) if each.severity != "note"]
    assert found_ill == ["queue_unconsumed"]
    assert [each["queue"] for each in described("shop:bus", bus, bus.plan())["queues"]] == ["shop.fifo"]
    async with bus:
        assert await bus.transport.purge("shop.fifo") == 2  # type: ignore[attr-defined]  # of SQS


async def test_a_group_of_a_fifo_queue_comes_in_its_order_and_holds_up_no_other(place: Place) -> None:
    async with place.client(lease=20) as transport:
        await transport.attach(QueueSpec("jobs.fifo"))
        consumer = await transport.consume("jobs.fifo", slots=10)
        ordered = {"MessageGroupId": "customer 7"}
        for number in range(5):
            body = b"%d" % number
            await transport.send(ToQueue("jobs.fifo"), Message("a.topic", body, headers=ordered))
        await transport.send(ToQueue("jobs.fifo"), Message("a.topic", b"alone"))
        (first,) = await take(consumer)
        await consumer.release(first)
        bodies = []
        while len(bodies) < 6:
            for delivery in await take(consumer):
                bodies.append(delivery.message.body)
                await consumer.ack(delivery, confirm=True)
        bodies.remove(b"alone")
        assert bodies == [b"0", b"1", b"2", b"3", b"4"]


async def test_an_inbox_that_somebody_deleted_is_replaced_and_its_calls_are_told(place: Place) -> None:
    async with place.client(heartbeat=0.3) as transport:
        lost: list[int] = []
        replies: asyncio.Queue[Message] = asyncio.Queue()
        inbox = await transport.open_inbox(replies.put_nowait, lambda: lost.append(1))
        before = inbox.address
        url = (await place.ask("GetQueueUrl", QueueName=before))["QueueUrl"]
        await place.ask("DeleteQueue", QueueUrl=url)
        await eventually(lambda: lost)
        assert inbox.address != before
        assert await transport.reply(inbox.address, Message("a.topic", b"1"))
        assert (await asyncio.wait_for(replies.get(), 30)).body == b"1"
        assert await transport.reply(before, Message("a.topic", b"1")) is False


async def test_the_reply_queue_of_a_process_that_died_is_reaped_by_others(place: Place) -> None:
    dying = from_url(place.url(heartbeat=0.1))
    await dying.open()
    address = (await dying.open_inbox(lambda _: None, lambda: None)).address
    await dying._die()
    async with place.client(heartbeat=0.1) as other:
        await other.open_inbox(lambda _: None, lambda: None)

        async def gone() -> bool:
            try:
                await place.ask("GetQueueUrl", QueueName=address)
            except QueueNotFound:
                return True
            return False

        await eventually(gone)


async def test_a_message_near_the_limit_is_given_back_all_the_same(place: Place) -> None:
    """The copy by which it would be given back is some bytes larger than SQS takes; then it is merely shown again."""
    async with place.client() as transport:
        await transport.attach(QueueSpec("jobs"))
        consumer = await transport.consume("jobs", slots=1)
        await transport.send(ToQueue("jobs"), Message("a.topic", b"x" * 1000))
        (delivery,) = await take(consumer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire, "MAX_WIRE", 900)
            await consumer.release(delivery)
        (again,) = await take(consumer)
        assert again.message.body == b"x" * 1000
        await consumer.ack(again)
