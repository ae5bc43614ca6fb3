"""What a worker writes about its messages: log lines for people or collectors, never a payload, and traces."""

import orjson
import pytest

from busline.cli.exits import Exit
from process.commands import Folder, until

SECRET = "4111-1111-1111-1111"
APP = f"""
import asyncio
from busline import Bus, Context, Queue, Reject, Retry, RetryLater

bus = Bus(service="work", retry=Retry(delays=[0.05]))
assert {SECRET!r}  # what handlers are sent

@bus.handler("add")
async def add(number: int, card: str) -> int:
    return number + 1

@bus.handler("fail")
async def fail(card: str):
    raise ValueError("out of paper")

@bus.handler("again")
async def again(card: str, ctx: Context):
    if ctx.attempt == 1:
        raise OSError("not yet")

@bus.handler("reject")
async def reject(card: str):
    raise Reject("never")

@bus.handler("expire", queue=Queue("expire", message_ttl=0.000001))
async def expire(card: str): ...

@bus.handler("slow", time_limit=0.1, retry=Retry(max_retries=0))
async def slow(card: str):
    await asyncio.sleep(60)
"""


@pytest.fixture
def place(folder: Folder) -> Folder:
    folder.write("app", APP)
    return folder


def test_log_lines_are_objects_on_request_and_none_has_a_payload_in_it(place: Folder) -> None:
    worker = place.worker("app:bus", "--log-format", "json", "--concurrency", "3")
    worker.until_ready()
    for topic in ("fail", "again", "reject", "expire", "slow"):
        place.send((topic, SECRET))
    place.send(("add", {"number": SECRET, "card": SECRET}), ("add", {"card": SECRET}), ("add", SECRET))
    assert place.run("call", "fail", f'"{SECRET}"').returncode == Exit.FAILED
    assert place.run("call", "add", f'"{SECRET}"').returncode == Exit.FAILED

    def told() -> dict[str, list[dict[str, object]]]:
        events: dict[str, list[dict[str, object]]] = {}
        for line in worker.err.read_text().splitlines():
            fields = orjson.loads(line)
            events.setdefault(fields["event"], []).append(fields)
        return events

    until(lambda: len(told().get("dead_lettered", ())) == 7, f"all have died: {worker.err.read_text()}")
    worker.tell()
    assert worker.exit_code() == Exit.OK
    events = told()
    assert SECRET not in worker.err.read_text() + worker.out.read_text()
    assert {"retried", "failed", "answered", "dead_lettered", "stopping", "draining"} <= set(events)
    retried = events["retried"][0]
    assert {"time", "level", "logger", "process", "message", "id", "topic", "queue", "attempt", "delay"} <= set(retried)
    assert (retried["level"], retried["logger"]) == ("warning", "busline")
    assert {fields["reason"] for fields in events["dead_lettered"]} == {"failed", "rejected", "expired", "invalid"}
    assert "ValueError: out of paper" in str([fields["exception"] for fields in events["failed"]])


def test_a_worker_traces_as_the_variables_say(place: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "till")
    worker = place.worker("app:bus", "--otel")
    worker.until_ready()
    assert place.run("call", "add", f'{{"number": 1, "card": "{SECRET}"}}').stdout == "2\n"
    worker.tell()
    assert worker.exit_code() == Exit.OK
    shown = worker.out.read_text()
    assert '"name": "process add"' in shown
    assert '"service.name": "till"' in shown
    assert SECRET not in shown


def test_traces_that_cannot_be_made_are_refused_in_one_line(place: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "smoke")
    run = place.run("worker", "app:bus", "--otel")
    assert run.returncode == Exit.CONFIGURATION
    assert run.stderr.count("\n") == 1
    assert "'smoke'" in run.stderr
