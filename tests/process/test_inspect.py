"""`busline inspect`, `pause`, `resume` and `concurrency`, beside real workers that are killed and replaced."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from busline.cli.exits import Exit
from process.commands import Folder, Running, lives
from process.fair import FairClock, family
from process.probes import ping


@pytest.fixture(params=["sqlite", "amqp"])
def place(request: pytest.FixtureRequest, folder: Folder) -> Folder:
    """The folder with its app, at a file and at RabbitMQ."""
    if request.param == "amqp":
        folder.url = request.getfixturevalue("rabbit").empty_url()
        source = (folder.path / "app.py").read_text()
        folder.write("app", source.replace('Bus("sqlite:///bus.db", ', "Bus("))
    return folder


def asked(place: Folder, verb: str, *options: str) -> list[dict[str, Any]]:
    """What the processes answer."""
    answers = json.loads(place.run("inspect", verb, "--json", *options).stdout)
    assert isinstance(answers, list)
    return answers


def until_true(place: Folder, worker: Running, wanted: Callable[[], set[int]]) -> None:
    """Read once a second, until what is told is what is wanted, within the time allowed."""
    clock = FairClock(lambda: [os.getpid(), *family(worker.process.pid)])
    while (told := ping(place.url)) != wanted():
        clock.tick(f"{wanted()}, not {told}")
        time.sleep(1.0)


def reachable(place: Folder, worker: Running, number: int = 1) -> list[int]:
    """Its processes that live, once they answer."""
    found = [pid for pid in worker.until_ready(number) if lives(pid)]
    deadline = time.monotonic() + 20
    while not set(found) <= {answer["pid"] for answer in asked(place, "ping", "--expect", str(len(found)))}:
        assert time.monotonic() < deadline, f"{found} answer"
    return found


def test_what_ping_tells_is_true_while_workers_are_killed_stopped_and_replaced(place: Folder) -> None:
    worker = place.worker("app:bus", "--processes", "2")
    first, second = reachable(place, worker, 2)
    os.kill(first, signal.SIGKILL)  # its parent starts another one
    until_true(place, worker, lambda: set(worker.until_ready(3)[1:]))
    third = worker.pids[2]
    os.kill(second, signal.SIGSTOP)
    until_true(place, worker, lambda: {third})
    os.kill(second, signal.SIGCONT)
    until_true(place, worker, lambda: {second, third})
    place.send(("block", None))
    place.until_noted("begin block")
    blocked = ping(place.url)
    assert blocked is not None
    assert len(blocked) == 1  # the other one cannot say anything
    worker.end()
    until_true(place, worker, set)


def test_ping_is_fit_for_the_health_check_of_a_container(folder: Folder) -> None:
    ping = ("inspect", "ping", "--worker", "orders-7d9f")
    assert folder.run(*ping).returncode == Exit.TIMEOUT
    reachable(folder, folder.worker("app:bus", "--name", "orders-7d9f", "--processes", "2"), 2)
    assert folder.run(*ping).returncode == Exit.OK
    began = time.monotonic()
    assert folder.run(*ping, "--expect", "2", "--timeout", "30").returncode == Exit.OK
    assert time.monotonic() - began < 20  # it does not wait for more than it was told to
    run = folder.run(*ping, "--expect", "3")
    assert run.returncode == Exit.TIMEOUT
    assert "2 processes of 'orders-7d9f' answered within 1 s, where 3 should have" in run.stderr
    assert folder.run("inspect", "ping", "--worker", "orders-0000").returncode == Exit.TIMEOUT
    assert folder.run("inspect", "ping", "--worker", "orders-*").returncode == Exit.OK


def test_a_paused_queue_stays_paused_when_its_worker_is_killed_and_replaced(place: Folder) -> None:
    worker = place.worker("app:bus")
    reachable(place, worker)
    run = place.run("pause", "work")
    assert (run.returncode, run.stdout) == (
        Exit.OK,
        "work is paused in 1 process; a worker that starts will keep to it\n",
    )
    (listed,) = json.loads(place.run("queues", "work", "--json").stdout)
    assert listed["paused"]
    os.kill(worker.pids[0], signal.SIGKILL)
    worker.until_ready(2)
    worker.until_logged("paused", 2)
    place.send(("hold", "it"))
    place.open_gate()
    time.sleep(0.5)  # nothing must happen, which has no sign
    assert place.noted("begin it") == 0
    reachable(place, worker, 2)
    assert place.run("resume", "work").stdout == "work is resumed in 1 process\n"
    place.until_noted("end it")


def test_what_a_process_works_on_and_how_much_at_a_time_is_told_and_changed(place: Folder) -> None:
    reachable(place, place.worker("app:bus", "--concurrency", "1"))
    place.send(*(("hold", f"job {number}") for number in range(3)))
    place.until_notes(2)
    (answer,) = asked(place, "active", "--expect", "1")
    (message,) = answer["data"]["messages"]
    assert (message["queue"], message["topic"], message["attempt"]) == ("work", "hold", 1)
    assert place.run("concurrency", "work", "3").stdout == "work is handled 3 at a time in 1 process\n"
    place.until_notes(6)
    (answer,) = asked(place, "stats", "--expect", "1")
    told = answer["data"]["queues"]["work"]
    assert (told["concurrency"], told["running"], told["taken"]) == (3, 3, 3)
    shown = place.run("inspect", "active", "--expect", "1").stdout.splitlines()
    assert shown[0].split() == ["WORKER", "PID", "QUEUE", "TOPIC", "ID", "ATTEMPT", "FOR"]
    assert len(shown) == 4
    place.open_gate()


def test_what_cannot_be_directed_is_said(folder: Folder) -> None:
    reachable(folder, folder.worker("app:bus"))
    assert folder.run("pause", "wrok").returncode == Exit.NO_HANDLER
    assert folder.run("concurrency", "wrok", "3").returncode == Exit.NO_HANDLER
    assert folder.run("concurrency", "work", "0").returncode == Exit.USAGE


def test_a_worker_that_is_told_to_cannot_be_asked(folder: Folder) -> None:
    folder.worker("app:bus", "--no-control").until_ready()
    run = folder.run("inspect", "ping")
    assert (run.returncode, "or whose bus has control=True" in run.stderr) == (Exit.TIMEOUT, True)
    folder.write("closed", "from app import bus\nbus._control = False\n")
    run = folder.run("worker", "closed:bus", "--control")
    assert run.returncode == Exit.CONFIGURATION
    assert "this worker is told control=True, and its bus says control=False" in run.stderr


def test_a_worker_serves_the_queues_that_it_is_told_to(folder: Folder) -> None:
    worker = folder.worker("app:bus", "--queues", "work.on_*")
    reachable(folder, worker)
    (answer,) = asked(folder, "handlers", "--expect", "1")
    assert [row["function"] for row in answer["data"]["handlers"]] == ["app:on_user"]
    run = folder.run("worker", "app:bus", "--queues", "wrok")
    assert run.returncode == Exit.CONFIGURATION
    assert "no queue is called 'wrok'; there are work, work.on_user" in run.stderr


def test_what_a_worker_is_told_on_its_command_line_may_be_in_the_environment(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "CONCURRENCY": "3",
        "PROCESSES": "2",
        "PREFETCH": "2",
        "QUEUES": "work",
        "NAME": "blue",
        "SHUTDOWN_TIMEOUT": "0.3",
    }.items():
        monkeypatch.setenv(f"BUSLINE_{name}", value)
    worker = folder.worker("app:bus")
    reachable(folder, worker, 2)
    answers = asked(folder, "stats", "--worker", "blue", "--expect", "2")
    assert [set(answer["data"]["queues"]) for answer in answers] == [{"work"}, {"work"}]
    assert {answer["data"]["queues"]["work"]["concurrency"] for answer in answers} == {3}
    folder.send(("hold", "on"))
    folder.until_noted("begin on")
    worker.tell()
    worker.until_logged("drain_timeout")
    assert worker.exit_code() == Exit.OK
