"""The IAM policy that is printed is the one that is used: what is sent in each operator mode is allowed by it, and
nothing is allowed that is never sent."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import anyio
import pytest

from busline import Bus, Retry
from busline.cli.describing import policy_of
from busline.cli.doctor.online import examine
from busline.dead_letters import DeadLetters, Selection
from busline.errors import ConfigurationError, QueueNotFound
from busline.message import QueueSpec
from busline.tails import tail_of
from busline.testing.scenes import PATIENCE, eventually
from busline.transports.sqs import SqsTransport, from_url, iam_policy
from tests.aws_proxy import AwsProxy, refuse
from tests.ministack import Ministack


@pytest.fixture
async def proxy(ministack: Ministack) -> AsyncIterator[AwsProxy]:
    async with AwsProxy(ministack.endpoint) as started:
        yield started


class Shop:
    """Its queues are there already, made by somebody who may."""

    def __init__(self, proxy: AwsProxy, create: str, **options: object) -> None:
        chosen = {"wait": 1, "lease": 2, "cache": 0, "prefix": f"{uuid.uuid4().hex[:8]}-", **options}
        self.rest = "&".join(f"{name}={value}" for name, value in chosen.items())
        self.proxy = proxy
        self.url = self.made(create)
        self.heard: list[str] = []

    def made(self, create: str) -> str:
        return f"sqs://us-east-1?endpoint_url={self.proxy.endpoint}&create={create}&{self.rest}"

    def bus(self, url: str, *, listens_to: str = "user.made", alone: bool = False) -> Bus:
        """`alone`: without what takes a queue for each process."""
        bus = Bus(url, service="shop", control=not alone, retry=Retry(max_retries=0))

        @bus.handler("shop.work")
        async def work(number: int) -> int:
            if number < 0:
                raise ValueError("negative")
            return number

        @bus.subscriber(listens_to)
        async def on_user(name: str) -> None:
            self.heard.append(name)

        if not alone:

            @bus.subscriber("user.*", broadcast=True)
            async def reload(name: str) -> None:
                self.heard.append(f"{name} too")

        return bus


async def watch(bus: Bus) -> None:
    """What `busline events` does."""
    tail = await tail_of(bus.transport, None, frozenset({"busline.event.*.shop.work"}))

    async def sees() -> bool:  # what nobody listened to is told from some seconds later on
        await bus.send("shop.work", 1)
        with anyio.move_on_after(1.0):
            return bool((await tail.seen()).events)
        return False

    try:
        await eventually(sees)
    finally:
        await tail.aclose()


async def work(shop: Shop, *, alone: bool, may_pause: bool) -> None:
    """All that a worker does, and those who look after it."""
    bus = shop.bus(shop.url, alone=alone)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bus.worker(name="here"))
        if not alone:
            assert await bus.call("shop.work", 1) == 1
            control = await stack.enter_async_context(bus.control())
            assert len(await control.ping(timeout=PATIENCE, worker="here", expect=1)) == 1
            await watch(bus)
            if may_pause:
                assert len(await control.pause("shop", timeout=PATIENCE, expect=1)) == 1
                assert len(await control.resume("shop", timeout=PATIENCE, expect=1)) == 1
        await bus.send("shop.work", -1)
        await bus.publish("user.made", "ann")
        await eventually(lambda: sorted(shop.heard) == (["ann"] if alone else ["ann", "ann too"]))
        await eventually(lambda: bus.stats.dead_lettered == 1)
        letters = await DeadLetters.find(bus.transport, "shop")
        assert (await letters.replay(Selection())).done == 1
        await eventually(lambda: bus.stats.dead_lettered == 2)
        assert (await letters.purge(Selection())).done == 1
    doctored = shop.bus(shop.url, alone=alone)
    found = await examine(doctored, doctored.plan(), 5.0)
    assert [each for each in found if each.severity == "error"] == []


async def attach(url: str, *specs: QueueSpec) -> None:
    transport = from_url(url)
    await transport.open()
    try:
        for spec in specs:
            await transport.attach(spec)
    finally:
        await transport.aclose()


async def call(shop: Shop) -> None:
    """All that somebody does who has no handlers."""
    beside = shop.made("true").replace(shop.proxy.endpoint, shop.proxy.target)
    async with shop.bus(beside, alone=True).worker(), Bus(shop.url) as bus:
        assert await bus.call("shop.work", 1) == 1
        await bus.publish("user.made", "ann")
        await eventually(lambda: shop.heard == ["ann"])


def allows(statement: Mapping[str, Any], action: str, resource: str) -> bool:
    resources = statement["Resource"]
    patterns = [resources] if isinstance(resources, str) else resources
    return action in statement["Action"] and any(fnmatchcase(resource, pattern) for pattern in patterns)


def lacking(policy: Mapping[str, Any], rights: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return [each for each in sorted(rights) if not any(allows(statement, *each) for statement in policy["Statement"])]


def unused(policy: Mapping[str, Any], rights: set[tuple[str, str]]) -> Iterator[str]:
    for statement in policy["Statement"]:
        for action in statement["Action"]:
            if not any(allows(statement, action, resource) for used, resource in rights if used == action):
                yield f"{action} on {statement['Resource']}"


@pytest.mark.parametrize("create", ["true", "ephemeral", "false"])
async def test_what_a_worker_asks_for_is_what_its_policy_allows(proxy: AwsProxy, create: str) -> None:
    shop, alone = Shop(proxy, create), create == "false"
    if create != "true":
        others = shop.made("true").replace(proxy.endpoint, proxy.target)  # somebody else makes the queues
        await attach(others, *map(QueueSpec, ("shop", "shop.dead", "shop.on_user", "shop.on_user.dead")))
    async with shop.bus(shop.url, listens_to="user.once", alone=True).worker():
        pass
    policy = policy_of(shop.bus(shop.url, alone=alone))
    await work(shop, alone=alone, may_pause=create == "true")
    await attach(shop.url, QueueSpec("shop.on_user", "shop"))  # it listens no more
    assert lacking(policy, proxy.rights) == []
    assert list(unused(policy, proxy.rights)) == []


async def test_what_a_caller_asks_for_is_what_its_policy_allows(proxy: AwsProxy) -> None:
    shop = Shop(proxy, "true")
    await call(shop)
    policy = policy_of(Bus(shop.url))
    assert lacking(policy, proxy.rights) == []
    assert list(unused(policy, proxy.rights)) == []


async def test_where_leases_cannot_be_renewed_nobody_asks_for_it(proxy: AwsProxy) -> None:
    shop = Shop(proxy, "true", renew=0, events=0, lease=20)
    proxy.fail("ChangeMessageVisibilityBatch", refuse("AccessDenied", 403), 1000)
    bus = Bus(shop.url, service="shop", retry=Retry(max_retries=1, first=0.01))

    @bus.handler("shop.work", time_limit=10)
    async def work(number: int) -> int:
        raise ValueError("always")

    async with bus.worker():
        await bus.send("shop.work", 1)
        await eventually(lambda: bus.stats.dead_lettered == 1)
        assert isinstance(bus.transport, SqsTransport)
        assert len(await bus.transport.peek("shop.dead", 9)) == 1
    assert "sqs:ChangeMessageVisibility" not in {action for action, _ in proxy.rights}
    assert lacking(iam_policy(shop.url), proxy.rights) == []
    with pytest.raises(ConfigurationError, match=r"jobs.fifo.*renew=0"):
        await attach(shop.url, QueueSpec("jobs.fifo"))


async def test_where_nothing_may_be_made_control_and_broadcasts_say_so(proxy: AwsProxy) -> None:
    shop = Shop(proxy, "false")
    async with shop.bus(shop.made("true"), alone=True).worker():
        pass
    says = r"create=false forbids to make it: say create=ephemeral"
    with pytest.raises(ConfigurationError, match=f"asking the workers needs a queue for each process.*{says}"):
        async with Bus(shop.url).control():
            raise AssertionError("it began")
    asked = Bus(shop.url, service="shop", control=True)
    deaf = shop.bus(shop.url, alone=True)

    @asked.handler("shop.work")
    async def work(number: int) -> None: ...

    @deaf.subscriber("config.#", broadcast=True)
    async def config(name: str) -> None: ...

    for bus, why in ((asked, f"control=True needs a queue.*{says}"), (deaf, rf"shop\.config\..*{says}")):
        with pytest.raises((ConfigurationError, QueueNotFound), match=why):
            async with bus.worker():
                raise AssertionError("it started")
    async with Bus(shop.made("ephemeral")).control() as control:
        with pytest.raises(QueueNotFound, match=r"busline\.paused.*create=ephemeral forbids to make it"):
            await control.pause("shop")


async def test_where_nothing_may_be_made_workers_are_asked_by_way_of_the_store(proxy: AwsProxy, tmp_path: Path) -> None:
    shop, store = Shop(proxy, "false"), f"sqlite:///{tmp_path / 'store.db'}"
    async with shop.bus(shop.made("true"), alone=True).worker():
        pass
    bus = Bus(shop.url, service="shop", store=store, control=True)

    @bus.handler("shop.work")
    async def work(number: int) -> None: ...

    async with bus.worker(name="blue"), Bus(shop.url, store=store).control() as control:
        (alone,) = await control.ping(timeout=PATIENCE, expect=1)
        assert (alone.worker, alone.state) == ("blue", "serving")
