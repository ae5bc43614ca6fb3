"""Each illness that `busline doctor` knows is found where it is; what is well is left in peace."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from busline import Bus, Idempotency, Queue
from busline.cli.doctor import offline, online
from busline.cli.doctor.findings import ILLNESSES, Finding
from busline.cli.exits import Exit
from busline.clock import SystemClock
from busline.errors import TransportError
from busline.message import Destination, Limits, Message, QueueStats
from busline.stores.memory import MemoryStore, MemoryVault
from busline.testing.harnesses import MemoryHarness, WithoutFanout
from busline.transports.memory import MemoryBroker, MemoryTransport
from process.commands import Folder
from tests.aws_proxy import AwsProxy, refuse
from tests.ministack import Ministack
from tests.servers import Rabbit, free_ports

ROOT = Path(__file__).parent.parent.parent


async def nothing() -> None: ...


async def findings(bus: Bus, timeout: float = 20.0) -> dict[str, Finding]:
    """By code; the last of each."""
    plan, found = offline.examine(bus)
    found += await online.examine(bus, plan, timeout)
    return {each.code: each for each in found}


async def found(bus: Bus, *codes: str, timeout: float = 20.0) -> dict[str, Finding]:
    """The doctor finds exactly these."""
    told = await findings(bus, timeout)
    assert set(told) == set(codes), told
    return told


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


def bus_at(broker: MemoryBroker, *topics: str, service: str = "orders", **options: Any) -> Bus:
    """A bus of a client of its own, with handlers of these topics."""
    bus = Bus(MemoryTransport(broker), service=service, **options)
    for topic in topics:
        bus.handler(topic)(nothing)
    return bus


def test_every_code_is_in_the_table_of_the_documents_and_in_a_test() -> None:
    table = (ROOT / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    assert rows == [(code, *illness) for code, illness in ILLNESSES.items()]
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_doctor*.py"))
    sources = "".join(path.read_text() for path in (ROOT / "busline").rglob("*.py"))
    for code in ILLNESSES:
        assert f'"{code}"' in here, f"no test finds {code}"
        assert sources.count(f'"{code}"') > 1, f"nobody diagnoses {code}"


def test_one_refusal_does_not_hide_the_others() -> None:
    bus = Bus("memory://", service="orders")
    bus.handler("one", queue=Queue("own"))(nothing)
    bus.handler("two", queue="own")(nothing)
    bus.handler("three")(nothing)
    bus.handler("three")(nothing)
    bus.handler("four")(lambda *many: None)
    plan, told = offline.examine(bus)
    assert [each.code for each in told] == ["cannot_serve", "two_owners", "cannot_serve", "memory_broker"]
    assert [topic for queue in plan.queues.values() for topic in queue.handlers] == ["one", "three"]


async def test_a_healthy_service_has_nothing(broker: MemoryBroker) -> None:
    bus = bus_at(broker, "orders.create", control=True)
    async with bus.worker():
        await found(bus_at(broker, "orders.create"))
    names = {each.name for each in await stats(broker)}
    assert names == {"orders", "orders.dead"}  # what the doctor made is gone


async def stats(broker: MemoryBroker) -> Sequence[QueueStats]:
    async with Bus(MemoryTransport(broker)) as bus:
        assert isinstance(bus.transport, MemoryTransport)
        return await bus.transport.stats()


async def test_what_is_not_there_yet_is_a_note_and_what_others_should_have_made_is_an_error(
    broker: MemoryBroker,
) -> None:
    bus = bus_at(broker, "orders.create")
    bus.handler("legacy", queue=Queue("legacy", passive=True))(nothing)
    told = await found(bus, "queue_missing", "queue_foreign", "no_workers")
    assert {code: each.severity for code, each in told.items()} == {
        "queue_missing": "note",
        "queue_foreign": "error",
        "no_workers": "note",
    }


async def test_what_waits_without_a_consumer_is_left_over_paused_or_dead_is_found(broker: MemoryBroker) -> None:
    old = bus_at(broker, "orders.create")
    old.subscriber("user.*")(nothing)
    async with old.worker():
        pass
    async with bus_at(broker) as sender, sender.control() as control:
        await sender.send("orders.create")
        await sender.send("orders.unknown", queue="orders.dead")
        await control.pause("orders", timeout=0.1)
    told = await found(
        bus_at(broker, "orders.create", "orders.cancel"),
        *("queue_unconsumed", "queue_orphaned", "queue_paused", "dead_letters", "queue_differs", "no_workers"),
    )
    assert told["queue_orphaned"].about == "orders.nothing.dead"  # the last of two
    assert "orders.cancel" in told["queue_differs"].text


async def test_a_topic_that_another_service_owns_is_found(broker: MemoryBroker) -> None:
    async with bus_at(broker, "orders.create", service="shop", control=True).worker():
        told = await found(bus_at(broker, "orders.create"), "two_owners", "queue_missing", "no_workers")
    assert "queue 'shop'" in told["two_owners"].text


async def test_a_worker_whose_clock_is_wrong_is_found(broker: MemoryBroker) -> None:
    class Ahead(SystemClock):
        def time(self) -> float:
            return super().time() + 60

    async with bus_at(broker, "orders.create", control=True, clock=Ahead()).worker():
        told = await found(bus_at(broker, "orders.create"), "clock_skew")
    assert "differs by +60" in told["clock_skew"].text or "differs by +59" in told["clock_skew"].text


async def test_workers_are_asked_by_way_of_the_store_where_the_broker_cannot() -> None:
    place, vault = WithoutFanout(MemoryHarness()), MemoryVault()

    def bus(**options: Any) -> Bus:
        bus = Bus(place.transport(), service="orders", store=MemoryStore(vault), **options)
        bus.handler("orders.create")(nothing)
        return bus

    async with bus(control=True).worker():
        await found(bus(), timeout=0.1)
    await found(bus(), "no_workers")


class Deaf(MemoryTransport):
    """Its broker loses what is sent to queues, and does not count them."""

    async def send(self, to: Destination, *messages: Message) -> None: ...

    async def stats(self) -> Sequence[QueueStats]:
        raise TransportError("the counter is broken")


async def test_a_message_that_does_not_come_back_and_a_check_that_fails_are_found(broker: MemoryBroker) -> None:
    bus = Bus(Deaf(broker), service="orders")
    bus.handler("orders.create")(nothing)
    await found(bus, "round_trip", "check_failed", "queue_missing", "no_workers", timeout=0.3)


async def test_a_store_that_is_needed_and_missing_or_away_is_found(broker: MemoryBroker, tmp_path: Path) -> None:
    bus = Bus("amqp://localhost/", service="orders")  # the transports of one machine bring a store of their own
    bus.handler("orders.pay", idempotency=Idempotency())(nothing)
    _, told = offline.examine(bus)
    assert [(each.code, each.about) for each in told] == [("no_store", "nothing")]
    bus = bus_at(broker, "orders.create", store=f"sqlite:///{tmp_path}/no/such/folder/store.db")
    await found(bus, "store_unreachable", "queue_missing")  # there may be workers who listen there only


class Poor(MemoryBroker):
    """Keeps a message for a minute at most, and has no events."""

    def limits(self) -> Limits:
        return replace(super().limits(), max_lease=60.0, fanout=False)


async def test_what_a_queue_cannot_do_is_found(broker: MemoryBroker) -> None:
    bus = bus_at(Poor())
    bus.handler("slow", time_limit=3600)(nothing)
    bus.handler("endless")(nothing)
    bus.handler("careless", ack="early")(nothing)
    bus.subscriber("user.*", time_limit=1)(nothing)
    codes = ("queue_cannot", "time_limit_too_long", "time_limit_missing", "queue_missing")
    await found(bus, *codes, "no_workers")  # they were asked by way of the store


async def test_a_broker_that_is_away_or_refuses_is_found(rabbit: Rabbit) -> None:
    def bus(url: str) -> Bus:
        bus = Bus(url, service="orders")
        bus.handler("orders.create")(nothing)
        return bus

    await found(bus(f"amqp://guest:guest@127.0.0.1:{free_ports(1)[0]}/"), "broker_unreachable")
    await found(bus(f"amqp://guest:wrong@127.0.0.1:{rabbit.port}/"), "broker_refused")


@pytest.fixture
async def vhost(rabbit: Rabbit) -> str:
    """A virtual host of one's own, with the queue that the doctor is to look at, of the type classic."""
    url = rabbit.empty_url()
    bus = Bus(f"{url}?kind=classic", service="orders")
    bus.handler("orders.create", time_limit=60)(nothing)
    async with bus.worker():
        pass
    return url


async def test_what_rabbitmq_has_otherwise_and_what_it_takes_away_is_found(vhost: str) -> None:
    bus = Bus(vhost, service="orders", max_deliveries=50)
    bus.handler("orders.create", time_limit=60)(nothing)
    bus.handler("orders.slow", queue="slow", time_limit=3600)(nothing)
    bus.handler("orders.endless", queue="slow")(nothing)
    told = await found(
        bus,
        "queue_refused",
        "time_limit_too_long",
        "time_limit_missing",
        "queue_missing",
        "no_workers",
    )
    assert "quorum" in told["queue_refused"].text
    quorum = Bus(vhost, service="other", max_deliveries=50)
    quorum.handler("other.create", time_limit=60)(nothing)
    async with quorum.worker():
        pass
    told = await found(quorum, "redrive", "no_workers")
    assert "after 40 starts, and busline only after 50" in told["redrive"].text


async def test_missing_rights_are_found_and_the_other_checks_are_made(rabbit: Rabbit, vhost: str) -> None:
    user, name = f"doctor{secrets.token_hex(4)}", vhost.rsplit("/", 1)[1]
    rabbit.ctl("add_user", user, "secret")
    rabbit.ctl("set_permissions", "-p", name, user, "^busline.*", ".*", ".*")
    bus = Bus(vhost.replace("guest:guest", f"{user}:secret"), service="orders")
    bus.handler("orders.create", time_limit=60)(nothing)
    told = await findings(bus)
    assert {"rights_missing", "no_workers"} <= set(told), told
    assert told["rights_missing"].about.startswith("orders.doctor-")


@pytest.fixture
async def aws(ministack: Ministack) -> AsyncIterator[AwsProxy]:
    async with AwsProxy(ministack.endpoint) as proxy:
        yield proxy


def sqs_url(aws: AwsProxy, prefix: str, **options: object) -> str:
    fixed = {"prefix": prefix, "wait": 1, "lease": 2, "cache": 0, **options}
    return f"sqs://us-east-1?endpoint_url={aws.endpoint}&" + "&".join(f"{key}={value}" for key, value in fixed.items())


async def test_what_sqs_has_otherwise_and_what_it_takes_away_is_found(aws: AwsProxy) -> None:
    """Its redrive policy is below max_deliveries, and its visibility timeout below what early acks are given."""
    prefix = f"{secrets.token_hex(4)}-"
    bus = Bus(sqs_url(aws, prefix), service="orders", max_deliveries=50)
    bus.handler("orders.create", time_limit=60)(nothing)
    bus.handler("orders.early", queue="early", ack="early", time_limit=60)(nothing)
    async with bus.worker():
        pass
    told = await found(bus, "redrive", "no_workers")
    assert "after 40 starts, and busline only after 50" in told["redrive"].text
    slower = Bus(sqs_url(aws, prefix), service="orders")
    slower.handler("orders.create", time_limit=60)(nothing)
    slower.handler("orders.early", queue="early", ack="early", time_limit=600)(nothing)
    told = await found(slower, "queue_differs", "no_workers")
    assert "120 s, and 1200 s are wanted" in told["queue_differs"].text
    unrenewed = Bus(sqs_url(aws, prefix, renew=0), service="orders")
    unrenewed.handler("orders.create", time_limit=60)(nothing)
    told = await found(unrenewed, "time_limit_too_long", "no_workers")
    assert "takes a message back 2 s after" in told["time_limit_too_long"].text


async def test_rights_that_sqs_does_not_grant_are_found(aws: AwsProxy) -> None:
    prefix = f"{secrets.token_hex(4)}-"
    bus = Bus(sqs_url(aws, prefix), service="orders")
    bus.handler("orders.create", time_limit=60)(nothing)
    bus.subscriber("user.*", time_limit=60)(nothing)
    async with bus.worker():
        pass
    await found(bus, "no_workers")
    aws.fail("ListSubscriptionsByTopic", refuse("AccessDenied", 403), 1000)
    made_by_others = Bus(sqs_url(aws, prefix, create="false"), service="orders")
    made_by_others.handler("orders.create", time_limit=60)(nothing)
    made_by_others.subscriber("user.*", time_limit=60)(nothing)
    told = await findings(made_by_others)
    assert "sns:ListSubscriptionsByTopic" in told["rights_missing"].text
    assert told["rights_missing"].severity == "error"
    aws.rules.clear()
    aws.fail("GetQueueAttributes", refuse("AccessDenied", 403), 1000)
    plain = Bus(sqs_url(aws, prefix, create="false"), service="orders")
    plain.handler("orders.create", time_limit=60)(nothing)
    told = await findings(plain)
    assert "sqs:GetQueueAttributes" in told["rights_missing"].text
    assert told["rights_missing"].severity == "warning", "a worker lives with it"
    assert "check_failed" not in told, "nothing may be made there, so no message to itself is sent"


def test_the_command_tells_people_and_programs_and_fails_for_errors_only(folder: Folder) -> None:
    run = folder.run("doctor", "app:bus")
    assert run.returncode == Exit.OK, run.stderr
    assert "note queue_missing: work: " in run.stdout
    assert run.stdout.splitlines()[-1].startswith("app:bus at ")
    folder.write("bad", "from app import bus\n@bus.handler('add')\nasync def twice(): ...\n")
    run = folder.run("doctor", "bad:bus", "--json")
    assert run.returncode == Exit.FAILED
    told = json.loads(run.stdout)
    assert told[0]["code"] == "two_owners"
    assert set(told[0]) == {"code", "severity", "about", "text", "do"}
    assert json.loads(folder.run("doctor", "bad:bus", "--json", "--offline").stdout) == told[:1]


def test_queues_are_set_up_and_torn_down_as_steps_of_their_own(folder: Folder) -> None:
    names = ["work", "work.dead", "work.on_user", "work.on_user.dead"]

    def states(*arguments: str) -> dict[str, str]:
        run = folder.run(*arguments, "--json")
        return {row["queue"]: row["state"] for row in json.loads(run.stdout)}

    assert states("setup", "app:bus") == dict.fromkeys(names, "to be made")
    assert states("setup", "app:bus", "--yes") == dict.fromkeys(names, "made")
    assert states("setup", "app:bus") == dict.fromkeys(names, "there")
    folder.send(("hold", "it"))
    folder.write("less", "from busline import Bus\nbus = Bus(service='work')\n@bus.handler('add')\ndef add(): ...\n")
    orphans = {"work.on_user": "to be deleted", "work.on_user.dead": "to be deleted"}
    assert states("teardown", "less:bus", "--orphans") == orphans
    assert states("teardown", "less:bus", "--orphans", "--yes") == dict.fromkeys(orphans, "deleted")
    kept = states("teardown", "app:bus", "--yes")
    assert kept["work"] == "kept: 1 messages wait there, --with-messages deletes them, too"
    assert kept["work.dead"] == "deleted"
    worker = folder.worker("app:bus")
    worker.until_ready()
    assert states("teardown", "app:bus", "--yes", "--with-messages")["work"].startswith("kept: it is consumed")
    folder.open_gate()
    folder.until_noted("end it")
    worker.tell()
    worker.exit_code()
    assert states("teardown", "app:bus", "--yes") == dict.fromkeys(names, "deleted")
    assert json.loads(folder.run("queues", "--json").stdout) == []


def test_the_rights_that_a_service_needs_on_aws_are_told_offline(folder: Folder) -> None:
    made = "from busline import Bus\nbus = Bus(service='shop')\n"
    folder.write("caller", made)
    folder.write("shop", made + "@bus.handler('shop.sell')\nasync def sell(): ...\n")
    refused = folder.run("describe", "shop:bus", "--iam")
    assert (refused.returncode, "only sqs:// has an IAM policy" in refused.stderr) == (Exit.USAGE, True)
    folder.url = "sqs://eu-west-1?prefix=shop-"

    def actions(app: str) -> set[str]:
        run = folder.run("describe", app, "--iam")
        assert run.returncode == Exit.OK, run.stderr
        policy = json.loads(run.stdout)
        assert policy["Version"] == "2012-10-17"
        assert "arn:aws:sqs:eu-west-1:*:shop-*" in [each["Resource"] for each in policy["Statement"]]
        return {action for each in policy["Statement"] for action in each["Action"]}

    assert {"sqs:SendMessage", "sqs:ChangeMessageVisibility", "sns:Subscribe"} <= actions("shop:bus")
    assert "sqs:ChangeMessageVisibility" not in actions("caller:bus"), "it has no handlers, so it only calls and sends"


def test_a_bus_is_described_offline(folder: Folder) -> None:
    told = json.loads(folder.run("describe", "app:bus", "--json").stdout)
    assert [queue["queue"] for queue in told["queues"]] == ["work", "work.on_user"]
    assert {taken["topic"] for taken in told["queues"][0]["takes"]} >= {"add", "hold"}
    why = folder.run("describe", "app:bus", "--topic", "add").stdout.splitlines()
    assert why[0] == "a call or job of add goes to queue work, because add handles it there"
    why = json.loads(folder.run("describe", "app:bus", "--topic", "user.new", "--json").stdout)
    assert (why["queue"], why["subscribers"]) == (None, ["work.on_user"])
    assert not (folder.path / "bus.db").exists()
