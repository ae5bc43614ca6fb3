"""What users do, on a real RabbitMQ: the demo, and the calls of two field reports with `busline worker`.

In those reports 60 of 100 calls were answered, because workers prefetched calls and acked them before they ran; and
none was answered any more once the ack was late. Here it is late, always, and a worker holds what it works on.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from process.commands import Folder, until

from busline import Bus
from busline.cli.exits import Exit
from busline.demo.scenario import CALLS
from tests.servers import Rabbit

APP = """
import asyncio, os
from pathlib import Path
from busline import Bus, Context

HERE = Path(__file__).parent
bus = Bus(service="rpc")

@bus.handler("rpc.square")
async def square(number: int) -> int | None:
    await asyncio.sleep(0.005)
    return number * number if number % 10 else None

@bus.handler("rpc.hold")
async def hold(ctx: Context) -> list[int | bool]:
    (HERE / f"held by {os.getpid()}").touch()
    while not (HERE / "gate").exists():
        await asyncio.sleep(0.01)
    return [os.getpid(), ctx.redelivered]
"""


@pytest.fixture
def rpc(rabbit: Rabbit, tmp_path: Path) -> Iterator[Folder]:
    """A folder with the service of the reports, and a broker that nobody has used."""
    folder = Folder(tmp_path, rabbit.empty_url())
    folder.write("app", APP)
    yield folder
    folder.end()


def serve(folder: Folder, processes: int, *options: str) -> None:
    folder.worker("app:bus", "--processes", str(processes), *options).until_ready(processes)


def holders(folder: Folder) -> list[int]:
    """The processes that have begun to answer `rpc.hold`."""
    return [int(path.name.removeprefix("held by ")) for path in folder.path.glob("held by *")]


@pytest.mark.parametrize("processes", [1, 4, 8])
async def test_a_hundred_of_a_hundred_calls_are_answered(rpc: Folder, processes: int) -> None:
    """And None is an answer only where the handler gave it."""
    serve(rpc, processes)
    async with Bus(rpc.url) as bus:
        one_by_one = [await bus.call("rpc.square", number, timeout=20) for number in range(50)]
        at_once = await asyncio.gather(*(bus.call("rpc.square", number, timeout=20) for number in range(50, 100)))
    assert one_by_one + at_once == [number * number if number % 10 else None for number in range(100)]


async def test_no_call_waits_in_a_busy_process_while_another_is_idle(rpc: Folder) -> None:
    serve(rpc, 2, "--concurrency", "1")
    async with Bus(rpc.url) as bus:
        held = asyncio.create_task(bus.call("rpc.hold", timeout=30, returns=tuple[int, bool]))
        await asyncio.to_thread(until, lambda: bool(holders(rpc)), "one is busy")
        answers = await asyncio.gather(*(bus.call("rpc.square", number, timeout=20) for number in range(1, 10)))
        assert answers == [number * number for number in range(1, 10)]
        rpc.open_gate()
        assert await held == (holders(rpc)[0], False)


async def test_a_call_is_answered_although_its_worker_was_killed(rpc: Folder) -> None:
    """Late ack and calls together, which the second report had to give up."""
    serve(rpc, 2, "--concurrency", "1")
    async with Bus(rpc.url) as bus:
        held = asyncio.create_task(bus.call("rpc.hold", timeout=30, returns=tuple[int, bool]))
        await asyncio.to_thread(until, lambda: bool(holders(rpc)), "one is busy")
        [victim] = holders(rpc)
        os.kill(victim, signal.SIGKILL)
        rpc.open_gate()
        pid, redelivered = await held
    assert pid != victim
    assert redelivered


async def test_queues_are_counted_over_amqp_alone(rpc: Folder) -> None:
    worker = rpc.worker("app:bus", "--processes", "2", "--concurrency", "3")
    worker.until_ready(2)
    async with Bus(rpc.url) as bus:
        await bus.send("rpc.square", "no number")
    worker.until_logged("dead_lettered")
    header, row, dead = rpc.run("queues").stdout.splitlines()
    assert header.split() == ["QUEUE", "READY", "DELAYED", "LEASED", "CONSUMERS", "DEAD", "TAKES"]
    assert row.split() == ["rpc", "0", "–", "–", "6", "1", "rpc.hold,", "rpc.square"]
    assert dead.split() == ["rpc.dead", "1", "–", "–", "0", "–"]
    assert rpc.run("purge", "rpc.dead").returncode == Exit.USAGE
    assert rpc.run("purge", "rpc.dead", "--yes").stdout == "deleted 1 message of rpc.dead\n"
    [told] = json.loads(rpc.run("queues", "rpc", "--json").stdout)
    assert (told["dead"], told["delayed"], told["leased"]) == (0, None, None)


def test_the_demo_gives_the_same_table_as_on_sqlite_and_clears_its_queues(rabbit: Rabbit, tmp_path: Path) -> None:
    place = Folder(tmp_path, rabbit.empty_url())
    demo = place.run("demo", place.url)
    assert demo.returncode == Exit.OK, demo.stdout + demo.stderr
    assert "killed with SIGKILL" in demo.stdout
    assert re.search(r"dead letter in demo-\w+\.dead: failed after 3 attempts, ValueError", demo.stdout)
    table = [line.split(maxsplit=1)[1] for line in demo.stdout.splitlines() if line.startswith(("ok ", "LOST"))]
    assert [re.split(r"\s{2,}", line)[:2] for line in table if not line.startswith(("p50", "begun"))] == [
        ["calls answered", f"{CALLS:,} of {CALLS:,}"],
        ["events received", "500 of 500"],
        ["rows imported", "3,376 of 3,376"],
        ["dead letters", "1 of 1"],
    ]
    assert len(table) == 6
    assert demo.stderr == ""
    assert place.run("queues", "--json").stdout == "[]\n"
