"""`busline queues`, `purge` and `dlq` against SQS, which lets nobody look without taking."""

from __future__ import annotations

import json
import signal
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from busline.cli.exits import Exit
from busline.storing import STORE_VARIABLE
from process.commands import Folder, tail, until
from tests.ministack import Ministack

DEBTS = """
import os
from pathlib import Path
from busline import Bus, Context, Retry

HERE = Path(__file__).parent
bus = Bus(service="shop", retry=Retry(max_retries=0))

@bus.handler("orders.bill")
async def bill(order: dict, ctx: Context):
    if not (HERE / "repaired").exists():
        raise ConnectionError(f"no printer for {order['customer']}")
    with open(HERE / "notes", "a") as notes:
        notes.write(f"{order['customer']} {ctx.attempt} {ctx.id}\\n")
"""


@pytest.fixture
def shop(ministack: Ministack, tmp_path: Path) -> Iterator[Folder]:
    """Two letters in shop.dead, of a worker that has left."""
    options = f"prefix={uuid.uuid4().hex[:8]}-&wait=1&lease=2&cache=0"
    folder = Folder(tmp_path, f"sqs://us-east-1?endpoint_url={ministack.endpoint}&{options}")
    folder.write("shop", DEBTS)
    yield folder
    folder.end()


def waiting(folder: Folder) -> dict[str, int]:
    """Messages that wait, by queue, as `busline queues` tells."""
    run = folder.run("queues", "--json")
    assert run.returncode == Exit.OK, run.stderr
    return {each["queue"]: each["ready"] for each in json.loads(run.stdout)}


def letters(folder: Folder, *command: str) -> list[dict[str, Any]]:
    run = folder.run("dlq", *command, "--json")
    assert run.returncode == Exit.OK, run.stderr
    return sorted(json.loads(run.stdout), key=lambda letter: str(letter.get("message")))


@pytest.mark.timeout(180)
def test_queues_are_looked_after_at_sqs_as_anywhere_else(shop: Folder) -> None:
    worker = shop.worker("shop:bus", "--processes", "0")
    worker.until_ready()
    for customer in ("Ada", "Ben"):
        shop.send(("orders.bill", {"customer": customer}))
    worker.until_logged("dead_lettered", 2)
    ada, ben = letters(shop, "show", "shop")
    assert [each["message"] for each in (ada, ben)] == ["no printer for Ada", "no printer for Ben"]
    assert {(each["topic"], each["reason"], each["type"]) for each in (ada, ben)} == {
        ("orders.bill", "failed", "ConnectionError")
    }
    shown = shop.run("dlq", "show", "shop", "--id", ada["id"])
    assert shown.returncode == Exit.OK, shown.stderr
    assert '"customer": "Ada"' in shown.stdout
    assert "Ben" not in shown.stdout
    (shop.path / "repaired").touch()
    replayed = shop.run("dlq", "replay", "shop", "--id", ada["id"])
    assert (replayed.returncode, replayed.stdout) == (Exit.OK, "replayed 1 dead letter of shop.dead\n"), replayed.stderr
    assert shop.until_notes(1, 60) == [f"Ada 1 {ada['id']}"]
    assert [each["id"] for each in letters(shop, "list", "shop")] == [ben["id"]], "the other one is still there"
    worker.tell()
    assert worker.exit_code(60) == Exit.OK
    shop.send(("orders.bill", {"customer": "Cem"}), ("orders.bill", {"customer": "Dee"}))
    until(lambda: waiting(shop) == {"shop": 2, "shop.dead": 1}, "they wait")
    run = shop.run("purge", "shop", "--yes")
    assert (run.returncode, "2 messages" in run.stdout) == (Exit.OK, True), run.stdout + run.stderr
    assert waiting(shop) == {"shop": 0, "shop.dead": 1}
    assert shop.run("purge", "absent", "--yes").returncode == Exit.NO_HANDLER


HELD = """
from busline import Bus

bus = Bus(service="work", control=True)

@bus.handler("hold")
async def hold(): ...
"""


PLAIN = """
from busline import Bus

bus = Bus(service="work")

@bus.handler("hold")
async def hold(): ...
"""


@pytest.mark.timeout(180)
def test_a_worker_keeps_to_what_is_paused_and_answers_if_it_is_told_to_while_it_lives(shop: Folder) -> None:
    """Over SNS; where nobody asked for it, it takes neither a queue for the process nor a subscription."""
    shop.write("plain", PLAIN)
    ping = ("inspect", "ping", "--worker", "blue")
    silent = shop.worker("plain:bus", "--name", "blue")
    silent.until_ready()
    run = shop.run(*ping, "--timeout", "0.5")
    assert (run.returncode, "busline worker --control (BUSLINE_CONTROL=1)" in run.stderr) == (Exit.TIMEOUT, True)
    assert shop.run("pause", "work", "--timeout", "0.1").stdout == (
        "work is paused in no processes; one that runs will within a minute, a worker that starts will keep to it\n"
    )
    silent.end()
    worker = shop.worker("plain:bus", "--name", "blue", "--control")
    worker.until_ready()
    worker.until_logged("paused")
    assert shop.run(*ping, "--expect", "1", "--timeout", "30").returncode == Exit.OK
    assert shop.run("resume", "work", "--timeout", "10").stdout == "work is resumed in 1 process\n"
    worker.end()
    assert shop.run(*ping, "--timeout", "2").returncode == Exit.TIMEOUT, "who is dead does not answer"


@pytest.mark.timeout(120)
def test_workers_are_asked_by_way_of_the_store_where_sns_may_not_be_used(
    shop: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.url += "&events=0"
    shop.write("held", HELD)
    store = ("--store", f"sqlite:///{shop.path}/store.db")
    worker = shop.worker("held:bus", "--name", "blue", store=store[1])
    (pid,) = worker.until_ready()
    ping = ("inspect", "ping", "--worker", f"blue/{pid}", *store)
    assert shop.run(*ping, "--expect", "1", "--timeout", "30").returncode == Exit.OK
    monkeypatch.setenv(STORE_VARIABLE, store[1])
    assert "no_workers" not in shop.run("doctor", "held:bus", "--timeout", "30").stdout
    worker.end()
    assert shop.run(*ping, "--timeout", "0.1").returncode == Exit.TIMEOUT, "who is dead does not answer"
    assert "no_workers" in shop.run("doctor", "held:bus", "--timeout", "30").stdout


@pytest.mark.timeout(120)
def test_what_happens_is_shown_by_way_of_the_store_where_sns_may_not_be_used(shop: Folder) -> None:
    shop.url += "&events=0"
    shop.write("held", HELD)
    store = ("--store", f"sqlite:///{shop.path}/store.db")
    refused = shop.run("events")
    assert (refused.returncode, "A store will do instead" in refused.stderr) == (Exit.CONFIGURATION, True)
    worker = shop.worker("held:bus", store=store[1])
    worker.until_ready()
    with tail(shop, "--json", "--topic", "hold", *store) as events:

        def is_told() -> bool:
            shop.send(("hold", None))
            return {"received", "started", "succeeded"} <= {json.loads(line)["kind"] for line in events.lines}

        until(is_told, "it is told")
        events.process.send_signal(signal.SIGINT)
        assert events.process.wait(20) == Exit.INTERRUPTED
    told = [json.loads(line) for line in events.lines]
    assert {each["queue"] for each in told if each["kind"] == "started"} == {"work"}
    assert "sent" not in {each["kind"] for each in told}, "who only sends does not look after questions"
    with closing(sqlite3.connect(shop.path / "store.db")) as db:
        left = {topic for (topic,) in db.execute("SELECT topic FROM busline_job")}
    assert "busline.control.watched" not in left, "who leaves is not watched for"
