"""`busline dlq` against letters that a real worker wrote."""

import asyncio
import json
from typing import Any

import pytest

from busline import Bus
from busline.cli.exits import Exit
from busline.message import Message, ToQueue
from process.commands import Folder

DEBTS = """
import asyncio, os
from pathlib import Path
from busline import Bus, Context, Retry

HERE = Path(__file__).parent
bus = Bus("sqlite:///bus.db", service="shop", retry=Retry(delays=[0.05], jitter=False))

@bus.handler("orders.bill")
async def bill(order: dict, ctx: Context):
    if not (HERE / "repaired").exists():
        raise ConnectionError(f"no printer for {order['customer']}")
    with open(HERE / "notes", "a") as notes:
        notes.write(f"{order['customer']} {ctx.attempt} {ctx.id}\\n")

@bus.handler("orders.check")
async def check(number: int): ...
"""


@pytest.fixture
def debts(folder: Folder) -> Folder:
    """Three letters in shop.dead: two that failed, one whose payload did not fit."""
    folder.write("shop", DEBTS)
    worker = folder.worker("shop:bus")
    worker.until_ready()
    for customer in ("Ada", "Ben"):
        folder.send(("orders.bill", {"customer": customer}), headers={"who": customer})
    folder.send(("orders.check", "three"))
    worker.until_logged("dead_lettered", 3)
    return folder


def listed(folder: Folder, *options: str) -> list[dict[str, Any]]:
    """What `dlq list` tells, by topic and id."""
    found = json.loads(folder.run("dlq", "list", "shop", "--json", *options).stdout)
    return sorted(found, key=lambda letter: (letter["topic"], letter["id"]))


def test_letters_are_listed_chosen_and_shown(debts: Folder) -> None:
    run = debts.run("dlq", "list", "shop")
    header, *rows, footer = run.stdout.splitlines()
    assert header.split() == ["ID", "TOPIC", "REASON", "TYPE", "ATTEMPTS", "WHEN", "FROM"]
    assert sorted(row.split()[1:5] for row in rows) == [
        *[["orders.bill", "failed", "ConnectionError", "2"]] * 2,
        ["orders.check", "invalid", "busline.invalid", "1"],
    ]
    assert footer == "3 dead letters, of 3 in shop.dead"
    ada, ben, check = listed(debts)
    assert listed(debts, "--where", "topic=orders.bill", "--where", "type=ConnectionError") == [ada, ben]
    assert listed(debts, "--id", check["id"][:8]) == [check]
    run = debts.run("dlq", "show", "shop.dead", "--where", "message=Ada")
    assert run.returncode == Exit.OK
    for words in ("no printer for Ada", '  "customer": "Ada"', "who=Ada", "raise ConnectionError(", "shop.py"):
        assert words in run.stdout
    assert "Ben" not in run.stdout
    assert debts.run("dlq", "show", "shop", "--id", "none").returncode == Exit.FAILED


def test_replay_gives_repaired_letters_their_first_attempt_again(debts: Folder) -> None:
    bills = listed(debts, "--where", "topic=orders.bill")
    assert debts.run("dlq", "replay", "shop", "--id", bills[0]["id"]).stdout == "replayed 1 dead letter of shop.dead\n"
    debts.workers[0].until_logged("dead_lettered", 4)  # nothing was repaired yet
    assert {letter["id"] for letter in listed(debts, "--where", "reason=failed")} == {bill["id"] for bill in bills}
    (debts.path / "repaired").touch()
    run = debts.run("dlq", "replay", "shop", "--where", "topic=orders.bill")
    assert (run.returncode, run.stdout) == (Exit.OK, "replayed 2 dead letters of shop.dead\n")
    for bill in bills:
        assert any(note.split()[1:] == ["1", bill["id"]] for note in debts.until_notes(2))
    assert [letter["reason"] for letter in listed(debts)] == ["invalid"]


def test_purge_deletes_what_was_chosen_and_asks_before_it_deletes_all(debts: Folder) -> None:
    run = debts.run("dlq", "purge", "shop", "--where", "message=Ada")
    assert (run.returncode, run.stdout) == (Exit.OK, "deleted 1 dead letter of shop.dead\n")
    run = debts.run("dlq", "purge", "shop")
    assert run.returncode == Exit.USAGE
    assert "delete all 2 dead letters in shop.dead" in run.stderr
    assert debts.run("dlq", "purge", "shop", "--yes").stdout == "deleted 2 dead letters of shop.dead\n"
    assert listed(debts) == []
    assert debts.run("dlq", "list", "shop").stdout == "0 dead letters, of 0 in shop.dead\n"


def test_what_cannot_be_looked_after_is_refused_in_one_line(folder: Folder) -> None:
    folder.worker("app:bus", "--processes", "0").until_ready()
    for arguments, code, words in (
        (["list", "absent"], Exit.NO_HANDLER, "'absent'"),
        (["list", "work", "--where", "colour=red"], Exit.USAGE, "fields are topic"),
        (["purge", "work", "--id", ""], Exit.USAGE, "--id"),
    ):
        run = folder.run("dlq", *arguments)
        assert (run.returncode, run.stderr.count("\n"), words in run.stderr) == (code, 1, True), run.stderr


def test_a_letter_from_elsewhere_is_shown_as_such_and_goes_where_it_is_told(debts: Folder) -> None:
    debts.run("dlq", "purge", "shop", "--yes")

    async def put() -> None:
        async with Bus(f"sqlite:///{debts.path}/bus.db") as bus:
            await bus.transport.send(ToQueue("shop.dead"), Message("orders.check", b"7"))

    asyncio.run(put())
    assert "not from busline" in debts.run("dlq", "list", "shop").stdout
    run = debts.run("dlq", "replay", "shop")
    assert run.returncode == Exit.FAILED
    assert (
        run.stderr == "error: kept 1 dead letter: the letter does not tell which queue it came from; say --to QUEUE\n"
    )
    assert debts.run("dlq", "replay", "shop", "--to", "shop").stdout == "replayed 1 dead letter of shop.dead\n"
