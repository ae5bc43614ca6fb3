"""Dead letters over the memory transport: found, shown, sent back, deleted, and nothing else touched."""

from collections.abc import AsyncIterator

import pytest

from busline import Bus, Reject, Retry
from busline import dead_letters as module
from busline.dead_letters import DeadLetters, Letter, Selection
from busline.errors import ConfigurationError, QueueNotFound
from busline.message import Message, QueueSpec, ToQueue
from busline.testing.scenes import eventually
from busline.transports.base import Inspectable

EVERY = Selection()


class Shop:
    """A bus whose handlers fail until they are told not to, and which remembers what they saw."""

    def __init__(self) -> None:
        self.bus = Bus("memory://", service="shop", retry=Retry(max_retries=1, first=0.0, jitter=False))
        self.broken = True
        self.seen: list[tuple[str, int, int]] = []
        self.bus.handler("orders.bill")(self.bill)
        self.bus.handler("orders.print")(self.print)

    async def bill(self, number: int) -> None:
        if self.broken:
            raise KeyError(f"order {number}")

    async def print(self, number: int) -> None:
        if self.broken:
            raise Reject("out of paper")

    async def work(self, *jobs: tuple[str, int]) -> None:
        """Send these and work until nothing waits."""
        for topic, number in jobs:
            await self.bus.send(topic, number, queue="shop", headers={"n": str(number)})
        async with self.bus.worker():
            await eventually(self.idle)

    async def idle(self) -> bool:
        return not any(stats.ready + stats.delayed + stats.leased for stats in await self.stats("shop"))

    async def stats(self, name: str) -> list[module.QueueStats]:
        assert isinstance(self.bus.transport, Inspectable)
        return [stats for stats in await self.bus.transport.stats() if stats.name == name]

    async def letters(self) -> DeadLetters:
        return await DeadLetters.find(self.bus.transport, "shop")


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    shop = Shop()
    async with shop.bus:
        await shop.bus.transport.attach(QueueSpec("shop", "shop"))
        await shop.work(("orders.bill", 1), ("orders.bill", 2), ("orders.print", 3))
        yield shop


def numbers(letters: list[Letter]) -> list[str]:
    return sorted(letter.message.headers["n"] for letter in letters)


async def test_a_letter_tells_the_story_of_its_failure(shop: Shop) -> None:
    letters = await shop.letters()
    (bill,) = await letters.peek(Selection([("message", "order 2")]), 10)
    assert letters.queue == "shop.dead"
    assert {"reason": "failed", "type": "KeyError", "attempts": 2, "queue": "shop"}.items() <= bill.failure.items()
    assert bill.message.topic == "orders.bill"
    assert "KeyError: 'order 2'" in bill.failure["traceback"]
    assert "busline/" not in bill.failure["traceback"]
    assert bill.failure["first_at"] <= bill.failure["last_at"]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ([], ["1", "2", "3"]),
        ([("topic", "orders.bill")], ["1", "2"]),
        ([("topic", "orders.*")], []),
        ([("type", "KeyError")], ["1", "2"]),
        ([("reason", "rejected")], ["3"]),
        ([("queue", "shop")], ["1", "2", "3"]),
        ([("message", "paper")], ["3"]),
        ([("topic", "orders.bill"), ("message", "order 1")], ["1"]),
        ([("topic", "orders.bill"), ("reason", "rejected")], []),
    ],
)
async def test_letters_are_chosen_by_what_they_tell(shop: Shop, where: list[tuple[str, str]], found: list[str]) -> None:
    assert numbers(await (await shop.letters()).peek(Selection(where), 10)) == found


async def test_the_beginning_of_an_id_chooses_a_letter(shop: Shop) -> None:
    letters = await shop.letters()
    first, second, _ = await letters.peek(EVERY, 10)
    assert await letters.peek(Selection(ids=[first.id[:12], second.id]), 10) == [first, second]
    assert len(await letters.peek(EVERY, 2)) == 2
    assert await letters.peek(Selection(ids=["no such"]), 10) == []


async def test_replay_sends_the_chosen_back_as_they_were_and_leaves_the_others(shop: Shop) -> None:
    letters = await shop.letters()
    bills = Selection([("topic", "orders.bill")])
    before = await letters.peek(bills, 10)
    steps: list[tuple[int, int]] = []
    result = await letters.replay(bills, on_progress=lambda looked, total: steps.append((looked, total)))
    assert (result.done, result.kept, steps[-1]) == (2, [], (3, 3))
    assert numbers(await letters.peek(EVERY, 10)) == ["3"]
    assert isinstance(shop.bus.transport, Inspectable)
    back = [module.letter_of(message, 0.0) for message in await shop.bus.transport.peek("shop", 10)]
    assert {letter.id for letter in back} == {letter.id for letter in before}
    for letter in back:
        assert letter.envelope is not None
        assert (letter.envelope.attempt, letter.failure, letter.message.ttl) == (1, {}, None)
    shop.broken = False
    await shop.work()
    assert numbers(await letters.peek(EVERY, 10)) == ["3"]


async def test_a_letter_that_fails_again_is_not_replayed_twice(shop: Shop) -> None:
    async with shop.bus.worker():
        letters = await shop.letters()
        result = await letters.replay(EVERY)
        assert result.done == 3

        async def all_back() -> bool:
            return await letters.waiting() == 3

        await eventually(all_back)
    assert numbers(await letters.peek(EVERY, 10)) == ["1", "2", "3"]


async def test_purge_deletes_the_chosen_or_all(shop: Shop) -> None:
    letters = await shop.letters()
    assert (await letters.purge(Selection([("message", "order 1")]))).done == 1
    assert numbers(await letters.peek(EVERY, 10)) == ["2", "3"]
    assert (await letters.purge(Selection([("message", "nothing like it")]))).done == 0
    assert (await letters.purge(EVERY)).done == 2
    assert await letters.waiting() == 0
    assert (await letters.replay(EVERY)).done == 0


async def test_letters_that_stay_are_not_counted_as_handed_out(shop: Shop) -> None:
    letters = await shop.letters()
    for _ in range(3):
        await letters.purge(Selection([("topic", "none")]))
    consumer = await shop.bus.transport.consume("shop.dead", slots=3)
    assert [delivery.deliveries for delivery in await consumer.receive(3)] == [1, 1, 1]
    await consumer.aclose()


async def test_a_letter_from_elsewhere_needs_to_be_told_where_to_go(shop: Shop) -> None:
    letters = await shop.letters()
    await letters.purge(EVERY)
    for meta in ("", "{not ours}"):
        await shop.bus.transport.send(ToQueue("shop.dead"), Message("orders.bill", b"7", meta, {"n": "7"}))
    strange, unreadable = await letters.peek(EVERY, 10)
    assert (strange.id, dict(strange.failure), unreadable.envelope) == ("", {}, None)
    result = await letters.replay(EVERY)
    assert (result.done, len(result.kept)) == (0, 2)
    assert result.kept[0][1] == module.UNKNOWN_ORIGIN
    assert (await letters.replay(EVERY, to="shop")).done == 2
    assert [stats.ready for stats in await shop.stats("shop")] == [2]


async def test_a_letter_whose_queue_is_gone_stays(shop: Shop) -> None:
    letters = await shop.letters()
    await shop.bus.transport.detach("shop", delete=True)
    result = await letters.replay(EVERY)
    assert result.done == 0
    assert ["'shop'" in why for _, why in result.kept] == [True] * 3
    assert numbers(await letters.peek(EVERY, 10)) == ["1", "2", "3"]
    assert len((await letters.replay(EVERY, to="shop.dead")).kept) == 3


async def test_a_look_holds_a_bounded_number_of_letters(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HELD", 1)
    monkeypatch.setattr(module, "BATCH", 1)
    letters = await shop.letters()
    result = await letters.purge(Selection([("message", "nothing like it")]))
    assert (result.done, result.unseen) == (0, True)
    assert await letters.waiting() == 3


async def test_letters_that_somebody_else_took_are_not_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    other = await shop.bus.transport.consume("shop.dead", slots=1)
    letters = await shop.letters()
    waiting = letters.waiting

    async def as_before() -> int:
        number = await waiting()
        await other.receive(1)
        return number

    monkeypatch.setattr(letters, "waiting", as_before)
    assert (await letters.replay(EVERY)).done == 2
    await other.aclose()


async def test_a_queue_that_is_worked_on_is_not_mistaken_for_dead_letters() -> None:
    async with Bus("memory://") as bus:
        await bus.transport.attach(QueueSpec("live", "s", topics=frozenset({"t"})))
        with pytest.raises(ConfigurationError, match="handlers work on"):
            await DeadLetters.find(bus.transport, "live")
        with pytest.raises(QueueNotFound, match="absent"):
            await DeadLetters.find(bus.transport, "absent")
        await bus.transport.attach(QueueSpec("failed_tasks", "s"))
        assert (await DeadLetters.find(bus.transport, "failed_tasks")).queue == "failed_tasks"


def test_a_selection_without_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not by 'colour'"):
        Selection([("colour", "red")])
    with pytest.raises(ConfigurationError, match="at least one character"):
        Selection(ids=[""])
