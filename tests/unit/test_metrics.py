"""Metrics count what happens, with bounded labels; those of several processes add up."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from busline import Bus, Reject
from busline.cli.board import SILENT, Board, report
from busline.cli.exits import Exit
from busline.cli.lifeline import READY, RETIRING, Lifeline
from busline.errors import ConfigurationError, NoHandler, RemoteError
from busline.integrations.prometheus import PrometheusMetrics
from busline.metrics import BUCKETS, MAX_TOPICS, OTHER, Family, Metrics
from busline.testing.scenes import eventually


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


async def test_an_embedded_bus_has_its_metrics_beside_the_apps_own(registry: CollectorRegistry) -> None:
    bus = Bus("memory://metrics", service="w")
    bus.instrument(PrometheusMetrics(registry))

    @bus.handler("add")
    async def add(number: int) -> int:
        return number + 1

    @bus.handler("reject")
    async def reject() -> None:
        raise Reject("never")

    @bus.subscriber("user.*", broadcast=True)
    async def on_user() -> None: ...

    value = registry.get_sample_value
    async with bus.worker(concurrency=3):
        assert await bus.call("add", 1) == 2
        await bus.send("reject")
        await bus.publish("user.created")
        with pytest.raises(NoHandler):
            await bus.call("nobody")
        with pytest.raises(RemoteError):
            await bus.call("reject")
        await eventually(
            lambda: value("busline_messages_dead_lettered_total", {"queue": "w", "reason": "rejected"}) == 2
        )
        await eventually(lambda: value("busline_messages_received_total", {"queue": "w.on_user"}) == 1)
        assert value("busline_messages_received_total", {"queue": "w"}) == 3
        assert value("busline_messages_sent_total", {"kind": "event", "topic": "user.created"}) == 1
        assert value("busline_call_duration_seconds_count", {"topic": "add", "outcome": "ok"}) == 1
        assert value("busline_call_duration_seconds_count", {"topic": "nobody", "outcome": "no_handler"}) == 1
        assert value("busline_call_duration_seconds_count", {"topic": "reject", "outcome": "error"}) == 1
        labels = {"queue": "w", "handler": "add", "outcome": "succeeded"}
        assert value("busline_handler_duration_seconds_count", labels) == 1
        assert value("busline_handler_duration_seconds_bucket", {**labels, "le": "+Inf"}) == 1
        assert value("busline_queue_slots", {"queue": "w.on_user"}) == 3
        assert value("busline_broker_connections_healthy") == 1
        assert b"# TYPE busline_handler_duration_seconds histogram" in generate_latest(registry)
    assert value("busline_broker_connections_healthy") is None


async def test_topics_beyond_a_number_share_a_label() -> None:
    metrics = Metrics()
    bus = Bus("memory://topics", service="w")
    bus.instrument(metrics)
    async with bus:
        for number in range(MAX_TOPICS + 50):
            await bus.publish(f"user.{number}")
    (sent,) = [family for family in metrics.families() if family.name == "busline_messages_sent"]
    assert len(sent.values) == MAX_TOPICS + 1
    assert sent.values["event", OTHER] == 50


def test_a_value_on_a_bound_belongs_to_the_bucket_of_that_bound() -> None:
    family = Family("seconds", "", "histogram")
    for seconds in (BUCKETS[0], BUCKETS[0] * 1.01, BUCKETS[-1] + 1):
        family.observe(seconds)
    counts = family.values[()]
    assert (counts[0], counts[1], counts[len(BUCKETS)]) == (1, 1, 1)
    assert counts[-1] == pytest.approx(BUCKETS[0] * 2.01 + BUCKETS[-1] + 1)


def test_a_missing_library_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "busline.integrations.prometheus")
    with pytest.raises(ConfigurationError, match=r"pip install 'busline\[prometheus\]'"):
        import busline.integrations.prometheus  # noqa: F401


# -- the processes of a worker ----------------------------------------------------------------------------------


class Wall:
    """A board, and the time on it."""

    def __init__(self, places: int) -> None:
        self.now = 100.0
        self.board = Board(places, lambda: self.now)

    def start(self, pid: int, place: int = 0) -> None:
        self.board.started(pid, place)
        self.board.heard(pid, READY)

    def report(self, pid: int, handled: int, *troubles: str, running: int = 0) -> None:
        families = [
            Family("handled", "", "counter", ("queue",), {("w",): handled}),
            Family("took", "", "histogram", (), {(): [handled, 0.5]}),
            Family("running", "", "gauge", (), {(): running}),
        ]
        self.board.heard(pid, report(troubles, families))

    def value(self, name: str, labels: tuple[str, ...] = ()) -> Any:
        return next(family.values[labels] for family in self.board.families() if family.name == name)


def test_the_processes_of_a_worker_add_up_and_what_has_ended_stays_counted() -> None:
    wall = Wall(2)
    wall.start(1, 0)
    wall.start(2, 1)
    wall.report(1, 5, running=1)
    wall.report(2, 7, running=2)
    assert (wall.value("handled", ("w",)), wall.value("took"), wall.value("running")) == (12, [12, 1.0], 3)
    wall.board.ended(1, -9)
    wall.start(3, 0)
    wall.report(3, 1)
    assert (wall.value("handled", ("w",)), wall.value("took"), wall.value("running")) == (13, [13, 1.5], 2)
    assert wall.value("busline_worker_process_ends", ("killed",)) == 1
    wall.board.ended(2, Exit.RECYCLED)
    wall.board.ended(3, Exit.BLOCKED)
    assert wall.value("handled", ("w",)) == 13
    assert wall.value("busline_worker_process_ends", ("in order",)) == 1
    assert wall.value("busline_worker_process_ends", ("failed",)) == 1


def test_a_worker_is_ready_when_each_place_has_a_process_that_takes_messages() -> None:
    wall = Wall(2)
    assert wall.board.troubles == ["process 1 of 2 is not ready", "process 2 of 2 is not ready"]
    wall.start(1, 0)
    wall.board.started(2, 1)
    assert wall.board.troubles == ["process 2 of 2 is not ready"]
    wall.board.heard(2, READY)
    assert wall.board.troubles == []
    wall.board.heard(1, RETIRING)
    wall.board.heard(1, READY)  # it retired before it had said so
    assert wall.board.troubles == ["process 1 of 2 is not ready"]
    wall.start(3, 0)
    assert wall.board.troubles == []
    wall.report(2, 0, "queue w: it is paused")
    assert wall.board.troubles == ["process 2: queue w: it is paused"]
    wall.report(2, 0)
    wall.board.stopping = True
    assert wall.board.troubles == ["the worker is stopping"]


def test_a_process_whose_reports_stop_is_stuck_whatever_its_last_one_said() -> None:
    wall = Wall(1)
    wall.start(1)
    wall.report(1, 0)
    wall.now += SILENT + 1
    assert wall.board.troubles == ["process 1: its event loop has not turned for 3 s"]
    assert wall.value("busline_worker_ready") == 0
    assert wall.board.silence == SILENT + 1
    wall.report(1, 0)
    assert wall.board.troubles == []


@pytest.fixture
def stream() -> Iterator[tuple[Lifeline, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lifeline = Lifeline(theirs.fileno())
        yield lifeline, ours
        lifeline._socket.close()  # a process has it until it ends


def test_news_that_do_not_fit_wait_and_arrive_whole_and_in_order(stream: tuple[Lifeline, socket.socket]) -> None:
    lifeline, parent = stream
    lifeline.tell(READY)
    for number in range(200):
        lifeline.report(orjson.dumps({"number": number, "much": "x" * 10_000}))
    lifeline.tell(RETIRING)
    received = b""
    parent.setblocking(False)
    while RETIRING not in received:
        try:
            received += parent.recv(65_536)
        except BlockingIOError:
            lifeline.report(b"{}")  # the next report lets out what waits
    first, *reports, last = received[: received.index(RETIRING) + len(RETIRING)].split(b"\n")
    assert (first, last) == (READY, RETIRING)
    numbers = [orjson.loads(line)["number"] for line in reports]
    assert numbers == list(range(len(numbers)))
    assert 1 < len(numbers) < 200


def test_a_parent_that_is_gone_is_told_nothing(stream: tuple[Lifeline, socket.socket]) -> None:
    lifeline, parent = stream
    parent.close()
    for _ in range(3):
        lifeline.tell(READY)
        lifeline.report(b"{}")


async def test_metrics_are_read_from_a_thread_while_they_are_counted() -> None:
    registry = CollectorRegistry()
    bus = Bus("memory://threads", service="w")
    bus.instrument(PrometheusMetrics(registry))
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(lambda: [generate_latest(registry) for _ in range(200)])
        async with bus:
            number = 0
            while not reading.done():
                await bus.publish(f"user.{number}")
                number += 1
                await asyncio.sleep(0)
        assert len(reading.result()) == 200
