"""SQS that throttles, fails, hangs, loses its answers or is gone, and one that says yes to whoever comes too late."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from busline import Bus
from busline.errors import ConfigurationError, ConnectionLost, LeaseLost, OutcomeUnknown, TransportError
from busline.message import Delivery, Message, QueueSpec, ToQueue
from busline.testing.scenes import eventually
from busline.transports.sqs import SqsTransport, from_url
from busline.transports.sqs.consuming import SqsConsumer
from tests.aws_proxy import AwsProxy, cut_the_reply, fail_entries, refuse, say_yes, swallow
from tests.ministack import CREDENTIALS, Ministack

QUEUE = QueueSpec("jobs", "svc", frozenset({"a.topic"}))
LONG = 30.0


@pytest.fixture
async def proxy(ministack: Ministack) -> AsyncIterator[AwsProxy]:
    async with AwsProxy(ministack.endpoint) as started:
        yield started


def url(endpoint: str, **options: object) -> str:
    fixed = {"prefix": f"{uuid.uuid4().hex[:8]}-", "wait": 1, "lease": 2, "cache": 0, **options}
    return f"sqs://us-east-1?endpoint_url={endpoint}&" + "&".join(f"{name}={value}" for name, value in fixed.items())


@asynccontextmanager
async def client(url: str) -> AsyncIterator[SqsTransport]:
    transport = from_url(url)
    await transport.open()
    try:
        await transport.attach(QUEUE)
        yield transport
    finally:
        await transport.aclose()


async def take(consumer: SqsConsumer, number: int = 1) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(LONG):
        while len(taken) < number:
            taken += await consumer.receive(number - len(taken))
    return taken


async def send(transport: SqsTransport, *bodies: bytes) -> None:
    await transport.send(ToQueue("jobs"), *(Message("a.topic", body) for body in bodies))


async def bodies(transport: SqsTransport) -> list[bytes]:
    """What is in the queue."""
    return sorted(message.body for message in await transport.peek("jobs", 100))


async def test_a_throttled_send_is_sent_once_it_may_be(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint)) as transport:
        proxy.fail("SendMessageBatch", refuse("ThrottlingException"), 2)
        await send(transport, b"1")
        assert await bodies(transport) == [b"1"]
        assert proxy.actions.count("SendMessageBatch") == 3


async def test_a_send_that_failed_at_sqs_is_not_repeated_but_told(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint)) as transport:
        proxy.fail("SendMessageBatch", refuse("InternalError", 500))
        with pytest.raises(OutcomeUnknown):
            await send(transport, b"1")
        assert proxy.actions.count("SendMessageBatch") == 1
        await send(transport, b"2")
        assert await bodies(transport) == [b"2"]


async def test_a_send_whose_answer_is_lost_has_an_unknown_outcome_and_is_there_once(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint)) as transport:
        proxy.fail("SendMessageBatch", cut_the_reply)
        with pytest.raises(OutcomeUnknown):
            await send(transport, b"1")
        assert await bodies(transport) == [b"1"]


async def test_a_send_into_a_black_hole_ends(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint, timeout=1)) as transport:
        proxy.fail("SendMessageBatch", swallow)
        async with asyncio.timeout(LONG):
            with pytest.raises(OutcomeUnknown):
                await send(transport, b"1")


async def test_entries_that_fail_for_the_moment_are_sent_again_and_the_others_are_not(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint)) as transport:
        proxy.fail("SendMessageBatch", fail_entries("1"))
        await send(transport, b"1", b"2", b"3")
        assert await bodies(transport) == [b"1", b"2", b"3"]


async def test_an_entry_that_is_refused_is_told_and_the_others_are_sent(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint)) as transport:
        proxy.fail("SendMessageBatch", fail_entries("1", code="InvalidMessageContents", sender=True))
        with pytest.raises(ConfigurationError, match="InvalidMessageContents"):
            await send(transport, b"1", b"2", b"3")
        assert await bodies(transport) == [b"1", b"3"]


async def test_polls_that_fail_are_asked_again_and_told_in_health(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint)) as transport:
        consumer = await transport.consume("jobs", slots=1)
        proxy.fail("ReceiveMessage", refuse("InternalError", 500), 3)
        await send(transport, b"1")
        receiving = asyncio.create_task(take(consumer))
        await eventually(lambda: transport.health().status == "down")
        assert "InternalError" in transport.health().detail
        assert [each.message.body for each in await receiving] == [b"1"]
        assert transport.health().status == "healthy"


async def test_a_lease_that_cannot_be_renewed_is_lost_when_it_ends_here_and_not_later(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint)) as transport:
        consumer = await transport.consume("jobs", slots=1)
        await send(transport, b"1")
        (delivery,) = await take(consumer)
        began = time.monotonic()
        proxy.fail("ChangeMessageVisibilityBatch", swallow)
        lost: list[Delivery] = []
        while not lost:
            try:
                lost = list(await consumer.extend(delivery, lease=2.0))
            except TransportError:
                continue
        assert lost == [delivery]
        assert time.monotonic() - began < LONG
        with pytest.raises(LeaseLost):
            await consumer.ack(delivery, confirm=True)


async def test_a_renewal_that_is_not_answered_while_another_message_is_acked_is_an_error_of_ours(
    proxy: AwsProxy,
) -> None:
    """One that ends the lease keeper, and the worker with it, if it is any other."""
    async with client(url(proxy.endpoint)) as transport:
        consumer = await transport.consume("jobs", slots=2)
        await send(transport, b"1", b"2")
        short, long = await take(consumer, 2)
        assert await consumer.extend(long, lease=30.0) == []
        proxy.fail("ChangeMessageVisibilityBatch", swallow)
        renewing = asyncio.create_task(consumer.extend(short, long, lease=2.0))
        await eventually(lambda: not proxy.rules[-1].times)
        await consumer.ack(short, confirm=True)
        with pytest.raises(ConnectionLost, match="ChangeMessageVisibility"):
            await renewing


async def test_a_throttled_renewal_keeps_the_lease(proxy: AwsProxy) -> None:
    async with client(url(proxy.endpoint, lease=20)) as transport:
        consumer = await transport.consume("jobs", slots=1)
        await send(transport, b"1")
        (delivery,) = await take(consumer)
        before = delivery.leased_until
        proxy.fail("ChangeMessageVisibilityBatch", refuse("RequestThrottled"), 2)
        assert await consumer.extend(delivery, lease=40.0) == []
        assert delivery.leased_until > before + 10


async def test_a_yes_to_an_old_receipt_handle_is_not_believed(proxy: AwsProxy) -> None:
    """SQS says yes to whoever held a message before; the emulator does not, so the proxy does."""
    async with client(url(proxy.endpoint, lease=1)) as transport:
        consumer = await transport.consume("jobs", slots=2)
        await send(transport, b"1")
        (old,) = await take(consumer)
        (new,) = await take(consumer)  # its lease has ended
        assert new.deliveries == 2
        await consumer.extend(new, lease=30.0)
        proxy.fail("ChangeMessageVisibilityBatch", say_yes, 100)
        proxy.fail("DeleteMessageBatch", say_yes, 100)
        asked = len(proxy.actions)
        assert list(await consumer.extend(old, lease=30.0)) == [old]
        with pytest.raises(LeaseLost):
            await consumer.ack(old, confirm=True)
        await consumer.release(old)
        assert "DeleteMessageBatch" not in proxy.actions[asked:], "the message is somebody else's"


async def test_a_message_whose_deletion_failed_is_deleted_when_it_comes_again_and_does_not_run(
    proxy: AwsProxy,
) -> None:
    async with client(url(proxy.endpoint, lease=1)) as transport:
        consumer = await transport.consume("jobs", slots=1)
        await send(transport, b"done")
        (delivery,) = await take(consumer)
        proxy.fail("DeleteMessageBatch", refuse("InternalError", 500), 1)
        proxy.fail("DeleteMessageBatch", fail_entries("0", code="ReceiptHandleIsInvalid", sender=True), 1)
        with pytest.raises(LeaseLost):
            await consumer.ack(delivery, confirm=True)
        receiving = asyncio.create_task(take(consumer))

        async def is_empty() -> bool:
            return await _counts(transport) == (0, 0)

        await eventually(is_empty)
        assert not receiving.done()
        await send(transport, b"next")
        assert [each.message.body for each in await receiving] == [b"next"]


async def _counts(transport: SqsTransport) -> tuple[int, int | None]:
    (stats,) = [each for each in await transport.stats() if each.name == "jobs"]
    return stats.ready, stats.leased


async def test_a_missing_right_is_lived_with_where_it_can_be_and_throttling_is_none(proxy: AwsProxy) -> None:
    """Without tags nobody can be asked who owns a topic; the queues work all the same, by their names."""
    address = url(proxy.endpoint)
    async with client(address) as owner:
        proxy.fail("ListQueueTags", refuse("ThrottlingException"), 2)
        await owner.attach(QUEUE)
        for action in ("ListQueueTags", "TagQueue"):
            proxy.fail(action, refuse("AccessDenied", 403), 1000)
        plain = QueueSpec("plain", "svc", frozenset({"b.topic"}))
        await owner.attach(plain)
        await owner.send(ToQueue("plain"), Message("b.topic", b"1"))
        assert [m.body for m in await owner.peek("plain", 1)] == [b"1"]
        assert "ListQueueTags" in owner.health().detail or "TagQueue" in owner.health().detail


async def test_sns_that_denies_refuses_who_listens_tells_who_publishes_and_leaves_calls_alone(proxy: AwsProxy) -> None:
    address = url(proxy.endpoint)
    listening = Bus(address, service="listening")

    @listening.subscriber("user.*")
    async def on_user(name: str) -> None: ...

    async with listening.worker():
        pass  # allowed once, so that there is somebody to publish to
    for action in ("CreateTopic", "PublishBatch"):
        proxy.fail(action, refuse("AccessDenied", 403), 1000)
    other = Bus(address, service="other")
    other.subscriber("user.*")(on_user)
    with pytest.raises(ConfigurationError, match=r"cannot listen to events.*sns:CreateTopic is not permitted"):
        async with other.worker():
            raise AssertionError("it started")
    async with client(address) as transport:
        with pytest.raises(ConfigurationError, match="does not permit sns:Publish:"):
            await transport.publish("user.made", Message("user.made", b"1"))
    calling = Bus(address, service="calling")

    @calling.handler("calling.double")
    async def double(number: int) -> int:
        return 2 * number

    async with calling.worker(), Bus(address) as caller:
        assert await caller.call("calling.double", 4, timeout=LONG) == 8


async def test_the_page_of_a_proxy_instead_of_an_answer_is_one_of_our_errors(proxy: AwsProxy) -> None:
    async def page(*_: object) -> web.StreamResponse:
        return web.Response(status=502, text="Bad <gateway", content_type="text/html")

    async with client(url(proxy.endpoint)) as transport:
        await transport.attach(QueueSpec("events", "svc", patterns=frozenset({"user.*"})))
        proxy.fail("PublishBatch", page)
        with pytest.raises(OutcomeUnknown):
            await transport.publish("user.made", Message("user.made", b"1"))
        proxy.fail("GetQueueUrl", page)
        with pytest.raises(ConnectionLost):
            await transport.attach(QueueSpec("others"))


@pytest.mark.parametrize("action", ["ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"])
async def test_a_worker_that_may_not_receive_or_settle_does_not_start(proxy: AwsProxy, action: str) -> None:
    bus = Bus(url(proxy.endpoint), service="svc")

    @bus.handler("svc.double")
    async def double(number: int) -> int:
        return 2 * number

    proxy.fail(action, refuse("AccessDenied", 403), 1000)
    with pytest.raises(ConfigurationError, match=f"does not permit sqs:{action.removesuffix('Batch')}"):
        async with bus.worker():
            raise AssertionError("it started")


async def test_to_be_idle_costs_the_polls_and_nothing_else(proxy: AwsProxy) -> None:
    """One poll each `wait` seconds for each queue, as `docs/sqs.md` counts them."""
    bus = Bus(url(proxy.endpoint, cache=2), service="svc")

    @bus.handler("svc.double")
    async def double(number: int) -> int:
        return 2 * number

    @bus.handler("svc.other", queue="svc.other")
    async def other() -> None: ...

    async with bus.worker():
        await eventually(lambda: proxy.actions[-4:] == ["ReceiveMessage"] * 4)
        before, began = len(proxy.actions), time.monotonic()
        await asyncio.sleep(2.5)  # what is sent meanwhile is what is counted
        polls = proxy.actions[before:]
        assert set(polls) == {"ReceiveMessage"}
        assert len(polls) <= 2 * (time.monotonic() - began + 1)


async def test_expired_credentials_are_no_missing_right(proxy: AwsProxy) -> None:
    transport = from_url(url(proxy.endpoint, timeout=2))
    for action in ("GetQueueUrl", "ListQueues", "ListQueueTags"):
        proxy.fail(action, refuse("ExpiredToken", 403), 100)
    with pytest.raises(TransportError, match="ExpiredToken"):
        await transport.open()
    await transport.aclose()


async def test_a_worker_goes_on_when_its_server_was_killed_and_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    server = Ministack()
    server.start()
    address = url(server.endpoint, timeout=2)
    bus = Bus(address, service="svc")

    @bus.handler("svc.double")
    async def double(number: int) -> int:
        return 2 * number

    try:
        async with bus.worker(), Bus(address) as caller:
            assert await caller.call("svc.double", 1, timeout=LONG) == 2
            server.stop()
            server.start()  # empty: the queues are gone, too
            async with asyncio.timeout(60):
                while True:
                    try:
                        assert await caller.call("svc.double", 2, timeout=5) == 4
                        break
                    except Exception:  # whatever it is while it is away: it must end, and pass
                        await asyncio.sleep(0.2)
            assert bus.transport.health().status == "healthy"  # the consumer of the queue that was deleted is history
    finally:
        server.stop()


async def test_idle_polls_do_not_hold_up_a_send(ministack: Ministack) -> None:
    """Twelve polls wait for 8 s each; the library's connections, by default ten, would all be theirs."""
    async with client(url(ministack.endpoint, wait=8)) as transport:
        waiting = []
        for number in range(12):
            spec = QueueSpec(f"idle{number}")
            await transport.attach(spec)
            consumer = await transport.consume(spec.name, slots=1)
            waiting.append(asyncio.create_task(consumer.receive(1)))
        await asyncio.sleep(0)
        async with asyncio.timeout(6):
            await send(transport, b"1")
            assert await bodies(transport) == [b"1"]
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_workers_are_asked_by_way_of_the_store_where_sns_denies(proxy: AwsProxy, tmp_path: Path) -> None:
    """Nothing in the URL says that events may not be used."""
    for action in ("CreateTopic", "PublishBatch"):
        proxy.fail(action, refuse("AccessDenied", 403), 1000)
    address, store = url(proxy.endpoint), f"sqlite:///{tmp_path / 'store.db'}"
    bus = Bus(address, service="svc", store=store, control=True)

    @bus.handler("svc.wait")
    async def wait() -> None: ...

    async with bus.worker(name="blue"), Bus(address, store=store).control() as control:
        (alone,) = await control.ping(timeout=LONG, expect=1)
        assert (alone.worker, alone.state) == ("blue", "serving")
        (told,) = await control.set_concurrency("svc", 3, timeout=LONG, expect=1)
        assert told.data["concurrency"] == 3
