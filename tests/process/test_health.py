"""Workers and brokers are killed, stopped and started again while the probes are read: they tell what is so."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from busline import Bus
from busline.cli.exits import Exit
from process.commands import Folder, Running, lives, until
from process.probes import Probes
from tests.servers import Rabbit, free_ports, need_promtool, remove, start_rabbit

APP = """
import time
from pathlib import Path
from busline import Bus, Queue

HERE = Path(__file__).parent
bus = Bus(service="work")

async def model_is_up():
    return not (HERE / "down").exists()

@bus.handler("add")
async def add(number: int) -> int:
    return number + 1

@bus.handler("block")
async def block():
    while not (HERE / "gate").exists():
        time.sleep(0.05)

@bus.handler("gated", requires=[model_is_up])
async def gated(): ...
"""
HANDLED = 'busline_handler_duration_seconds_count{handler="add",outcome="succeeded",queue="work"}'


@pytest.fixture
def place(folder: Folder) -> Folder:
    """A folder with an app for this file, at SQLite unless a test says otherwise."""
    folder.write("app", APP)
    return folder


def serve(place: Folder, processes: int, *options: str) -> tuple[Running, Probes]:
    worker = place.worker("app:bus", "--processes", str(processes), "--health-port", "0", *options)
    probes = Probes(worker)
    probes.until_ready()
    return worker, probes


def test_a_process_that_is_killed_or_frozen_is_told_and_so_is_its_return(place: Folder) -> None:
    worker, probes = serve(place, 2)
    victim, other = worker.until_ready(2)
    place.send(*(("add", number) for number in range(20)))
    probes.until_counted(HANDLED, 20)
    os.kill(victim, signal.SIGKILL)
    probes.until_not_ready("is not ready")
    probes.until_ready()
    probes.until_counted('busline_worker_process_ends_total{how="killed"}', 1)
    assert probes.metrics()[HANDLED] == 20  # what the dead one had counted stays counted
    os.kill(other, signal.SIGSTOP)
    probes.until_not_ready(f"process {other}: its event loop has not turned")
    assert probes.ask("/livez")[0] == 200
    os.kill(other, signal.SIGCONT)
    probes.until_ready()
    place.send(("add", 1))
    probes.until_counted(HANDLED, 21)
    worker.tell()
    assert worker.exit_code() == Exit.OK
    print(probes.took)


def test_a_worker_that_is_told_to_stop_says_so_until_it_has_left(place: Folder) -> None:
    worker, probes = serve(place, 1)
    place.send(("block", None))
    probes.until_not_ready("its event loop has not turned")
    worker.tell()
    probes.until_not_ready("the worker is stopping")
    place.open_gate()
    until(lambda: probes.reasons is None, "nobody answers any more")
    assert worker.exit_code() in (Exit.OK, Exit.FAILED, Exit.ABORTED)


def test_a_loop_that_is_blocked_in_a_worker_of_one_process_is_told_by_that_process(place: Folder) -> None:
    _, probes = serve(place, 0, "--block-timeout", "0")
    place.send(("block", None))
    probes.until_not_ready("its event loop has not turned")
    assert probes.ask("/livez")[0] == 200
    place.open_gate()
    probes.until_ready()


def test_a_gate_that_is_closed_is_told_until_it_opens(place: Folder) -> None:
    _, probes = serve(place, 1)
    (place.path / "down").touch()
    probes.until_not_ready("queue work.gated: model_is_up said no")
    probes.until_counted('busline_queue_paused{queue="work.gated"}', 1)
    (place.path / "down").unlink()
    probes.until_ready()
    probes.until_counted('busline_queue_paused{queue="work.gated"}', 0)


def test_a_database_that_is_moved_away_is_told_until_it_is_back(place: Folder) -> None:
    """What is open goes on working, but nobody else finds it."""
    _, probes = serve(place, 2)
    database = place.path / "bus.db"
    database.rename(place.path / "elsewhere")
    probes.until_not_ready("bus.db")
    probes.until_counted("busline_broker_connections_healthy", 0)
    (place.path / "elsewhere").rename(database)
    probes.until_ready()
    place.send(("add", 1))
    probes.until_counted(HANDLED, 1)


def test_children_leave_when_their_parent_is_killed_and_had_not_read_their_news(place: Folder) -> None:
    """The kernel then calls the end of their stream a reset."""
    worker, _ = serve(place, 2)
    pids = worker.until_ready(2)
    worker.tell(signal.SIGSTOP)
    time.sleep(1.5)  # three reports, which nobody reads
    worker.tell(signal.SIGKILL)
    until(lambda: not any(map(lives, pids)), "the children have left")


def test_a_parent_that_is_stopped_for_long_holds_up_nobody(place: Folder) -> None:
    worker, probes = serve(place, 1)
    worker.tell(signal.SIGSTOP)
    time.sleep(1.5)
    assert place.run("call", "add", "1").stdout == "2\n"
    worker.tell(signal.SIGCONT)
    probes.until_counted(HANDLED, 1)
    probes.until_ready()


def test_prometheus_has_nothing_to_say_against_the_metrics(place: Folder) -> None:
    promtool = need_promtool()
    _, probes = serve(place, 2)
    assert place.run("call", "add", "1").returncode == Exit.OK
    probes.until_counted(HANDLED, 1)
    status, page = probes.ask("/metrics")
    assert status == 200
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    _, page = probes.ask("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert page.endswith(b"# EOF\n")


def test_what_is_not_served_is_an_error_and_never_an_open_door(place: Folder) -> None:
    _, probes = serve(place, 1)
    assert probes.ask("/")[0] == 404
    assert probes.ask("/readyz", "POST")[0] == 405
    assert probes.ask("/readyz?verbose", "HEAD") == (200, b"")
    assert probes.ask("/readyz", long="x" * 20_000)[0] in (0, 400)
    probes.until_ready()


def test_a_port_that_is_taken_is_one_line(place: Folder) -> None:
    _, probes = serve(place, 1)
    for processes in ("0", "1"):
        run = place.run("worker", "app:bus", "--processes", processes, "--health-port", str(probes.port))
        assert run.returncode == Exit.CONFIGURATION
        assert run.stderr.splitlines()[-1].startswith(f"error: --health-port {probes.port} on 127.0.0.1 cannot be had")


def test_the_port_may_come_from_the_environment(place: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("BUSLINE_HEALTH_PORT", str(port))
    worker = place.worker("app:bus", "--processes", "2")
    probes = Probes(worker)
    assert probes.port == port
    probes.until_ready()


# -- RabbitMQ ---------------------------------------------------------------------------------------------------


@pytest.fixture
def node() -> Iterator[Rabbit]:
    """A node to kill."""
    started = start_rabbit()
    yield started
    remove(started)


@pytest.mark.timeout(180)
@pytest.mark.xdist_group("a node to break")
def test_a_broker_that_is_killed_and_started_again_is_told(node: Rabbit, tmp_path: Path) -> None:
    place = Folder(tmp_path, node.url)
    place.write("app", APP)
    with contextlib.closing(Ending(place)):
        worker, probes = serve(place, 2)
        worker.until_ready(2)
        assert place.run("call", "add", "1").stdout == "2\n"
        probes.until_counted("busline_broker_connections_healthy", 2)
        pids = set(worker.pids)
        probes.until_pinged(node.url, pids)
        node.kill()
        with probes.since():
            probes.until_not_ready("127.0.0.1")
            probes.until_counted("busline_broker_connections_healthy", 0)
            probes.until_pinged(node.url, None)
        assert probes.ask("/livez")[0] == 200
        node.start()
        with probes.since():
            probes.until_ready()
            probes.until_counted("busline_broker_connections_healthy", 2)
            probes.until_pinged(node.url, pids)
        assert place.run("call", "add", "1").stdout == "2\n"
        probes.until_counted(HANDLED, 2)
        print(probes.took)


def test_a_consumer_that_was_removed_at_the_broker_is_told_until_it_is_back(rabbit: Rabbit, tmp_path: Path) -> None:
    place = Folder(tmp_path, rabbit.empty_url())
    place.write("app", "from busline import Bus\nbus = Bus(service='w')\n@bus.handler('take')\nasync def take(): ...\n")
    vhost = place.url.rpartition("/")[2]
    with contextlib.closing(Ending(place)):
        _, probes = serve(place, 1)
        rabbit.ctl("set_permissions", "-p", vhost, "guest", "^$", ".*", ".*")  # it may not declare anything
        rabbit.ctl("delete_queue", "-p", vhost, "w")
        probes.until_not_ready("queue w: it cannot be consumed")
        rabbit.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        probes.until_ready()
        print(probes.took)


class Ending:
    """So that nothing is left running."""

    def __init__(self, place: Folder) -> None:
        self.close = place.end


async def test_metrics_and_probes_cost_no_message(place: Folder) -> None:
    """A worker that is asked all the time answers every call."""
    _, probes = serve(place, 1)
    async with Bus(place.url) as bus:
        for number in range(50):
            assert await bus.call("add", number, timeout=20) == number + 1
            if number % 10 == 0:
                assert probes.reasons == []
    probes.until_counted(HANDLED, 50)
