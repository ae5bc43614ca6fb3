"""What a worker writes about its messages: log lines for people or collectors, never a payload, and traces."""

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from busline import Bus
from busline.cli.exits import Exit
from busline.errors import CallError
from process.commands import Folder, until
from tests.ministack import CREDENTIALS, Ministack
from tests.servers import Rabbit
from tests.store_servers import PASSWORD, Server, private

SECRET = "4111-1111-1111-1111"
APP = f"""
import asyncio
from busline import Bus, Context, Idempotency, Queue, Reject, Retry, RetryLater

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

@bus.handler("once", idempotency=Idempotency(key="order"), retry=Retry(max_retries=0))
async def once(order: int, card: str):
    raise OSError("no paper")

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


class Site:
    """A broker and a store that are reached with secrets, and that go away."""

    def __init__(self, url: str, store: str, leave: Callable[[], None]) -> None:
        self.url, self.store, self.leave = url, store, leave


@pytest.fixture
def sqlite(tmp_path: Path, postgres: Server) -> Site:
    """A file that is moved away; and PostgreSQL."""
    database = tmp_path / "bus.db"
    return Site(f"sqlite:///{database}", postgres.url, lambda: database.rename(tmp_path / "elsewhere") and None)


@pytest.fixture
def amqp(rabbit: Rabbit) -> Iterator[Site]:
    """A user who is thrown out and has another password then; and a Redis that is killed."""
    url = rabbit.empty_url()
    vhost = url.rpartition("/")[2]
    rabbit.ctl("add_user", "till", PASSWORD)
    rabbit.ctl("set_permissions", "-p", vhost, "till", ".*", ".*", ".*")
    with private("redis") as redis:

        def leave() -> None:
            redis.stop()
            rabbit.ctl("change_password", "till", "another")
            rabbit.ctl("close_all_user_connections", "till", "go")

        yield Site(url.replace("guest:guest", f"till:{PASSWORD}"), redis.url, leave)
    rabbit.ctl("delete_user", "till")


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch, postgres: Server) -> Iterator[Site]:
    """An emulator that is killed, and credentials in the environment; and PostgreSQL."""
    for name, value in {**CREDENTIALS, "AWS_SECRET_ACCESS_KEY": PASSWORD}.items():
        monkeypatch.setenv(name, value)
    server = Ministack()
    server.start()
    yield Site(f"sqs://us-east-1?endpoint_url={server.endpoint}&wait=1&lease=4&timeout=2", postgres.url, server.stop)
    server.stop()


async def ask_in_vain(url: str) -> None:
    """Calls that fail, each with the secret in its payload, from this process."""
    async with Bus(url) as bus:
        for topic in ("fail", "add", "nobody's"):
            with pytest.raises(CallError):
                await bus.call(topic, SECRET, timeout=20, headers={"card": SECRET})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", ["sqlite", "amqp", "sqs"])
def test_no_record_of_a_busy_run_and_of_its_end_has_a_payload_or_a_password_in_it(
    transport: str,
    request: pytest.FixtureRequest,
    place: Folder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker's, the caller's, and those of other libraries, from INFO on."""
    caplog.set_level("INFO")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    site: Site = request.getfixturevalue(transport)
    place.url = site.url
    worker = place.worker("app:bus", "--log-format", "json", "--otel", store=site.store)
    worker.until_ready()
    for topic in ("fail", "again", "reject", "slow"):
        place.send((topic, SECRET), headers={"card": SECRET})
    place.send(
        ("add", {"number": SECRET, "card": SECRET}),
        ("add", SECRET),
        ("once", {"order": time.time_ns(), "card": SECRET}),
    )
    asyncio.run(ask_in_vain(place.url))

    def logged(event: str) -> int:
        return worker.err.read_text().count(f'"event":"{event}"')

    until(lambda: logged("dead_lettered") == 6, "all have died", 60)  # of this run: PostgreSQL is shared
    site.leave()
    until(lambda: logged("down") + logged("degraded") > 0, "it is told that the broker is away", 90)
    refused = place.run("--log-level", "info", "send", "fail", f'"{SECRET}"')
    assert refused.returncode != Exit.OK
    worker.tell()
    worker.exit_code(60)
    assert logged("answered") == 1
    told = [worker.err.read_text(), worker.out.read_text(), refused.stderr, refused.stdout]
    told += [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    for word in (SECRET, PASSWORD):
        assert not [text for text in told if word in text or base64.b64encode(word.encode()).decode() in text]
    assert all(orjson.loads(line)["event"] for line in worker.err.read_text().splitlines()), "by nobody but us"


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
