"""Workers are killed while they work, and every question gets its own answer; unless it was acked too early."""

import asyncio
import hashlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable

import pytest
from process.commands import Folder, Running, until

from busline import Bus, CallTimeout

CALLS = 1_000
KILLS = 10
PROCESSES = 4
IN_FLIGHT = 40

APP = """
import asyncio, hashlib, os, random
from pathlib import Path
from busline import Bus, Context

bus = Bus("sqlite:///bus.db", service="oracle")
LEDGER = os.open(Path(__file__).parent / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@bus.handler("oracle.ask", ack="{ack}")
async def ask(question: str) -> str:
    await asyncio.sleep(random.uniform(0.005, 0.02))
    os.write(LEDGER, question.encode() + b"\\n")
    await asyncio.sleep(random.uniform(0.005, 0.02))
    return hashlib.sha256(question.encode()).hexdigest()
"""


def right_answer(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()


def kill_at_random(
    worker: Running, answers: dict[str, str], chance: random.Random, calls: int, kills: int
) -> list[int]:
    """Kill a worker process each time when a random number of calls has been answered; returns the dead."""
    killed: list[int] = []
    for answered in sorted(chance.sample(range(1, calls - IN_FLIGHT), kills)):
        until(lambda: len(answers) >= answered, f"{answered} answers")  # noqa: B023  # it is called at once
        until(lambda: len(worker.pids) > len(killed), "a process is there to be killed")
        killed.append(chance.choice([pid for pid in worker.pids if pid not in killed]))
        os.kill(killed[-1], signal.SIGKILL)
    return killed


@pytest.mark.parametrize("seed", [1])
async def test_a_thousand_calls_survive_ten_killed_workers(
    folder: Folder, seed: int, record_property: Callable[[str, object], None]
) -> None:
    folder.write("app", APP.format(ack="late"))
    worker = folder.worker("app:bus", "--processes", str(PROCESSES))
    worker.until_ready(PROCESSES)
    questions = [f"question {number} of seed {seed}" for number in range(CALLS)]
    answers: dict[str, str] = {}
    room = asyncio.Semaphore(IN_FLIGHT)

    async def ask(bus: Bus, question: str) -> None:
        async with room:
            answers[question] = await bus.call("oracle.ask", question, timeout=60)

    async with Bus(f"sqlite:///{folder.path}/bus.db") as bus, asyncio.TaskGroup() as group:
        for question in questions:
            group.create_task(ask(bus, question))
        killer = group.create_task(
            asyncio.to_thread(kill_at_random, worker, answers, random.Random(seed), CALLS, KILLS)
        )

    effects = Counter(folder.notes)
    repeats = effects.total() - CALLS
    record_property("repeats", repeats)
    print(f"{len(answers)} answers, {len(killer.result())} workers killed, {repeats} effects repeated")
    assert answers == {question: right_answer(question) for question in questions}
    assert set(effects) == set(questions)
    assert len(killer.result()) == KILLS
    assert repeats <= KILLS * IN_FLIGHT


async def test_the_same_kills_lose_calls_that_were_acked_early(folder: Folder) -> None:
    """The control: without it nobody knows that the kills above hit anything."""
    calls, kills = 200, 4
    answers: dict[str, str] = {}
    folder.write("app", APP.format(ack="early"))
    worker = folder.worker("app:bus", "--processes", "2")
    worker.until_ready(2)
    room = asyncio.Semaphore(IN_FLIGHT)

    async def ask(bus: Bus, question: str) -> None:
        async with room:
            try:
                answers[question] = await bus.call("oracle.ask", question, timeout=6)
            except CallTimeout:
                answers[question] = "lost"

    async with Bus(f"sqlite:///{folder.path}/bus.db") as bus, asyncio.TaskGroup() as group:
        for number in range(calls):
            group.create_task(ask(bus, f"question {number}"))
        killer = group.create_task(asyncio.to_thread(kill_at_random, worker, answers, random.Random(1), calls, kills))
    assert len(killer.result()) == kills
    right = {question: answer for question, answer in answers.items() if answer != "lost"}
    print(f"{calls - len(right)} of {calls} calls were lost with {kills} workers")
    assert 0 < calls - len(right) <= kills * IN_FLIGHT
    assert max(Counter(folder.notes).values()) == 1  # nothing came again
    assert right == {question: right_answer(question) for question in right}
