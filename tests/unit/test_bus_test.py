"""What `busline.testing` promises to the tests of programs that use busline."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from itertools import pairwise

import pytest
from pydantic import BaseModel

from busline import (
    Bus,
    CallTimeout,
    ConfigurationError,
    Context,
    Idempotency,
    NoHandler,
    Queue,
    Reject,
    RemoteError,
    Retry,
    SoftTimeLimitExceeded,
)
from busline.observing import Observer
from busline.testing import BusTest
from busline.testing.bus_test import seconds_of


class Order(BaseModel):
    sku: str


def shop() -> Bus:
    bus = Bus("amqp://nowhere.invalid/", service="shop")

    @bus.handler("order.create")
    async def create(order: Order, ctx: Context) -> Order:
        await ctx.publish("order.created", order)
        return order

    @bus.subscriber("order.created")
    async def bill(order: Order, ctx: Context) -> None:
        await ctx.send("mail.send", order.sku, delay=60.0)

    @bus.handler("mail.send")
    def send_mail(text: str) -> None:
        time.sleep(0.01)

    return bus


async def test_a_message_and_all_that_follows_from_it_has_been_handled_when_it_has_settled() -> None:
    async with BusTest(shop()) as t:
        await t.send_and_settle("order.create", Order(sku="tea"))
        assert t.published.one("order.created").read(Order) == Order(sku="tea")
        assert t.sent.topics == ["order.create", "mail.send"]
        assert t.handled.topics == ["order.create", "order.created"], "the mail is delayed"
        assert t.sent.one("mail.*").delay == 60.0
        await t.advance(59)
        assert not t.handled.to("mail.send")
        await t.advance("1s")
        assert t.handled.one("mail.send").payload == "tea"
        assert not t.failed


async def test_an_event_has_been_handled_by_its_subscribers_when_it_has_settled() -> None:
    async with BusTest(shop()) as t:
        await t.publish_and_settle("order.created", Order(sku="tea"))
        assert t.handled.topics == ["order.created"]
        assert t.sent.topics == ["mail.send"]


async def test_a_call_returns_what_the_handler_returns_and_raises_what_it_raises() -> None:
    async with BusTest(shop()) as t:
        assert await t.call("order.create", Order(sku="tea"), returns=Order) == Order(sku="tea")
        assert t.called.payloads == [{"sku": "tea"}]
        t.fail_next("order.create", Reject("sold out"))
        with pytest.raises(RemoteError, match="sold out"):
            await t.call("order.create", Order(sku="tea"))
        with pytest.raises(NoHandler):
            await t.call("order.cancel")


async def test_a_planned_failure_is_retried_as_any_other_and_becomes_a_dead_letter_as_any_other() -> None:
    async with BusTest(shop()) as t:
        t.fail_next("mail.*", ConnectionError("no route"), times=2)
        await t.send_and_settle("mail.send", "tea")
        assert t.retried.one().attempt == 1
        await t.advance("1h")
        assert [failure.attempt for failure in t.retried] == [1, 2]
        assert t.handled.one("mail.send").attempt == 3
        assert not t.dead_lettered

        t.fail_next("mail.send", ConnectionError("no route"), times=4)
        await t.send_and_settle("mail.send", "milk")
        assert not t.dead_lettered
        await t.advance(timedelta(hours=1))
        letter = t.dead_lettered.one("mail.send")
        assert (letter.payload, letter.attempt, letter.reason, str(letter.error)) == ("milk", 4, "failed", "no route")


async def test_a_failure_that_no_message_reached_is_an_error_of_the_test() -> None:
    with pytest.raises(AssertionError, match=r"fail_next\('mail.send'\) was never reached"):
        async with BusTest(shop()) as t:
            t.fail_next("mail.send")


async def test_what_went_wrong_in_the_test_is_not_hidden_by_a_failure_that_was_never_reached() -> None:
    async def mistaken() -> None:
        async with BusTest(shop()) as t:
            t.fail_next("mail.send")
            await t.call("mail.sned")

    with pytest.raises(NoHandler):
        await mistaken()


async def test_a_final_failure_is_raised_where_the_test_asked_for_that() -> None:
    async with BusTest(shop(), propagate=True) as t:
        t.fail_next("mail.send", ConnectionError("no route"), times=4)
        await t.send_and_settle("mail.send", "tea")
        with pytest.raises(ConnectionError, match="no route"):
            await t.advance("1h")
        await t.settle()


async def test_a_message_that_expires_or_does_not_fit_is_a_dead_letter_with_its_reason() -> None:
    async with BusTest(shop()) as t:
        await t.send_and_settle("order.create", {"sku": 7})
        assert t.dead_lettered.one().reason == "invalid"
        await t.send("mail.send", "late", delay=10, ttl=5)
        await t.advance(60)
        assert t.dead_lettered.one("mail.send").reason == "expired"


async def test_a_call_passes_the_time_that_it_needs_and_no_other() -> None:
    bus = Bus(service="ai")

    @bus.handler("ai.answer", retry=Retry(delays=[5, 15, 30], jitter=False))
    async def answer(ctx: Context) -> int:
        if ctx.attempt < 4:
            raise ConnectionError("the model is away")
        return ctx.attempt

    async with BusTest(bus) as t:
        began, machine = t.clock.time(), time.monotonic()
        assert await t.call("ai.answer", timeout=300) == 4
        assert 50 <= t.clock.time() - began < 51
        assert time.monotonic() - machine < 20
        with pytest.raises(RemoteError, match="away"):
            await t.call("ai.answer", timeout=10)  # its retry after 5 s is made, the one after 15 more is not


async def test_a_call_that_nobody_answers_times_out_at_once() -> None:
    bus = Bus(service="deaf")

    async def never() -> bool:
        return False

    @bus.handler("deaf.call", requires=[never])
    async def handle() -> None: ...

    async with BusTest(bus) as t:
        began = t.clock.time()
        with pytest.raises(CallTimeout):
            await t.call("deaf.call", timeout=3600)
        assert t.clock.time() - began == pytest.approx(3600, abs=1)


async def test_time_limits_come_when_the_test_lets_them_come() -> None:
    bus = Bus(service="slow")
    seen: list[str] = []

    @bus.handler("slow.job", soft_time_limit=600, time_limit=3600, retry=Retry(max_retries=0))
    async def slow(stubborn: bool) -> None:
        try:
            await asyncio.sleep(1000)
        except SoftTimeLimitExceeded:
            seen.append("soft")
            if stubborn:
                await asyncio.sleep(1000)

    async with BusTest(bus, patience=0.2, timeout=0.2) as t:
        await t.send("slow.job", False)
        with pytest.raises(AssertionError, match=r"slow\.job: still running after 0.2 s"):
            await t.settle()
        await t.advance(599)
        assert seen == []
        await t.advance(2)
        assert seen == ["soft"]
        assert len(t.handled) == 1
        await t.send("slow.job", True)
        await t.advance("1h")
        await t.advance(1)
        assert seen == ["soft", "soft"]
        assert t.dead_lettered.one().payload is True


async def test_leaving_does_not_wait_for_a_handler_that_waits() -> None:
    bus = Bus(service="slow")
    cancelled: list[bool] = []

    @bus.handler("slow.job")
    async def slow() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.append(True)

    async with asyncio.timeout(20), BusTest(bus, patience=0.1) as t:
        await t.send("slow.job")
        await t.advance(1)
    assert cancelled == [True]


async def test_rates_pauses_and_health_checks_go_by_the_clock_of_the_test() -> None:
    bus = Bus(service="ai")
    up = False
    times: list[float] = []

    async def model_is_up() -> bool:
        return up

    @bus.handler("ai.generate", queue=Queue(), rate_limit="10/m", requires=[model_is_up])
    async def generate(prompt: str) -> None:
        times.append(t.clock.time())

    async with BusTest(bus) as t:
        for number in range(3):
            await t.send("ai.generate", str(number))
        await t.settle()
        assert times == []
        up = True
        await t.advance("5s")
        assert len(times) == 1
        await t.advance("1m")
        assert [round(later - earlier) for earlier, later in pairwise(times)] == [6, 6]


async def test_services_that_talk_to_each_other_are_tested_together() -> None:
    orders, billing = Bus(service="orders"), Bus(service="billing")

    @orders.handler("orders.create")
    async def create(order: Order) -> str:
        return str(await orders.call("billing.charge", order.sku))

    @billing.handler("billing.charge")
    async def charge(sku: str) -> str:
        return f"charged for {sku}"

    async with BusTest(orders, billing, Bus()) as t:
        assert await t.call("orders.create", Order(sku="tea")) == "charged for tea"
        assert t.called.topics == ["orders.create", "billing.charge"]


async def test_the_bus_is_afterwards_what_it_was_and_can_be_tested_again() -> None:
    class Watching(Observer):
        seen = 0

        def received(self, delivery: object, envelope: object) -> None:
            self.seen += 1

    bus, watching = shop(), Watching()
    bus.instrument(watching)
    for _ in range(2):
        async with BusTest(bus) as t:
            async with bus:  # as the application under test does
                await bus.send("mail.send", "tea")
            await t.settle()
            assert len(t.handled) == 1
    assert bus.url == "amqp://nowhere.invalid/"
    assert bus.observers == (watching,)
    assert watching.seen == 2
    assert bus.stats.handled == 2
    async with Bus("memory://") as open_bus:
        with pytest.raises(ConfigurationError, match="open already"):
            await BusTest(open_bus).__aenter__()
    with pytest.raises(ConfigurationError, match="give it the bus"):
        BusTest()


async def test_a_bus_with_a_store_has_one_in_memory_that_goes_by_the_clock_of_the_test() -> None:
    runs: list[str] = []
    bus = Bus("amqp://nowhere.invalid/", service="shop", store="redis://nowhere.invalid/0")

    @bus.handler("charge", idempotency=Idempotency(ttl=3600, lease=10))
    async def charge(sku: str) -> str:
        runs.append(sku)
        return f"charged {sku}"

    async with BusTest(bus) as t:
        for _ in range(2):
            assert await t.call("charge", "tea", idempotency_key="order 7") == "charged tea"
        assert runs == ["tea"]
        job = await t.send_and_settle("charge", "milk", track=True)
        assert await job.status() == "SUCCESS"
        await t.advance("2h")
        assert await t.call("charge", "tea", idempotency_key="order 7") == "charged tea"
        assert runs == ["tea", "milk", "tea"]


async def test_a_bus_without_a_store_has_none_in_its_tests_either() -> None:
    async with BusTest(shop()) as t:
        with pytest.raises(ConfigurationError, match="store"):
            await t.send("mail.send", "tea", track=True)
    own = Bus(service="shop")  # SQLite has one beside its messages

    @own.handler("mail.send")
    async def send(text: str) -> None: ...

    async with BusTest(own) as t:
        job = await t.send_and_settle("mail.send", "tea", track=True)
        assert await job.status() == "SUCCESS"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("1h30m", 5400.0), ("500ms", 0.5), ("2d", 172800.0), (7, 7.0), (timedelta(minutes=1), 60.0)],
)
def test_durations(text: str | float | timedelta, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1 h", "h", "1w", "-1s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigurationError, match="'1h30m'"):
        seconds_of(text)
