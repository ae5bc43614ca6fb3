"""busline beside its peers: each scenario once for every peer in turn, and that several times."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.peers.common import Shape
from benchmarks.peers.environments import python_of
from tests.servers import SERVER, Rabbit, free_ports, remove, start_rabbit

ROOT = Path(__file__).parent.parent.parent
LONGEST = 10.0
"""Seconds after which a worker that is slow is stopped; what it has done until then counts."""
IDLE = 0.7
"""Seconds after which an idle worker's memory is read."""


ONE_OF_1, MANY_OF_1, ONE_OF_64 = SHAPES = Shape(1, 1), Shape(64, 1), Shape(1, 64)


@dataclass(frozen=True)
class Entry:
    """One row of the tables."""

    name: str
    module: str
    environment: str
    broker: str
    sends: bool = True
    """It can hand over a message durably."""
    serves: Shape = ONE_OF_64
    """How its worker answers calls."""
    consumes: tuple[Shape, ...] = (ONE_OF_1, ONE_OF_64)
    """How it can take what waits in a queue."""


ENTRIES = (
    Entry("busline, RabbitMQ", "with_busline", "", "rabbitmq", serves=MANY_OF_1, consumes=SHAPES),
    Entry("aiormq by hand", "raw_aiormq", "aiormq", "rabbitmq", consumes=SHAPES),
    Entry("aio-pika by hand", "plain_aio_pika", "aio-pika", "rabbitmq", consumes=SHAPES),
    Entry("FastStream request", "with_faststream", "faststream", "rabbitmq"),
    Entry("taskiq, Redis results", "with_taskiq", "taskiq", "rabbitmq+redis"),
    Entry("Celery rpc://, late ack", "with_celery", "celery", "rabbitmq", serves=ONE_OF_1),
    Entry("busline, SQLite", "with_busline", "", "sqlite", serves=MANY_OF_1, consumes=SHAPES),
    Entry("NATS (keeps nothing)", "with_nats", "nats", "nats", sends=False),
    Entry("aiohttp (no broker)", "with_aiohttp", "aiohttp", "http", sends=False),
)


@dataclass
class Servers:
    """The brokers of one sitting; each is started when a peer first needs it."""

    stack: ExitStack
    rabbit: Rabbit | None = None
    redis: str = ""
    nats: str = ""
    pids: dict[str, int] = field(default_factory=dict)

    def url(self, kind: str) -> str:
        """A broker of this kind with nothing in it."""
        if kind.startswith("rabbitmq"):
            return self._amqp() + ("," + self._redis() if "redis" in kind else "")
        if kind == "sqlite":
            folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="busline-bench-"))
            return f"sqlite:///{folder}/bench.db"
        if kind == "nats":
            return self._nats()
        return f"http://127.0.0.1:{free_ports(1)[0]}/"

    def _amqp(self) -> str:
        if self.rabbit is None:
            self.rabbit = start_rabbit()
            self.stack.callback(remove, self.rabbit)
            self.pids["rabbitmq"] = int((self.rabbit._folder / "pid").read_text())
        return self.rabbit.empty_url()

    def _redis(self) -> str:
        if not self.redis:
            port = free_ports(1)[0]
            self._start("redis", "redis-server", "--port", str(port), "--save", "", "--appendonly", "no")
            self.redis = f"redis://127.0.0.1:{port}/0"
        return self.redis

    def _nats(self) -> str:
        if not self.nats:
            port = free_ports(1)[0]
            self._start("nats", "nats-server", "-a", "127.0.0.1", "-p", str(port))
            self.nats = f"nats://127.0.0.1:{port}"
        return self.nats

    def _start(self, name: str, *command: str) -> None:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.stack.callback(server.wait)
        self.stack.callback(server.terminate)
        self.pids[name] = server.pid
        time.sleep(0.5)

    def cpu(self) -> float:
        """CPU seconds of all brokers."""
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self.pids.values())


PROGRAMS = {"rabbitmq": SERVER, "redis": "redis-server", "nats": "nats-server"}
"""What each broker is started by."""


def missing(entry: Entry) -> str:
    """The program that this machine lacks for it; "" if none."""
    needed = (PROGRAMS[kind] for kind in entry.broker.split("+") if kind in PROGRAMS)
    return next((program for program in needed if shutil.which(program) is None), "")


def command(entry: Entry, role: str, url: str, *numbers: int) -> list[str]:
    """What runs one side of a peer."""
    module = f"benchmarks.peers.{entry.module}"
    return [python_of(entry.environment), "-m", module, role, url, *map(str, numbers)]


def environment(tally: str = "") -> dict[str, str]:
    """Of every program that is measured; workers count what they handle in the folder `tally`."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", "BENCH_TALLY": tally}


@contextmanager
def worker(
    entry: Entry, url: str, figures: dict[str, float], shape: Shape, tally: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A worker while entered; how long it took to be ready, and what it used, are put into `figures`."""
    began = time.perf_counter()
    line = command(entry, "serve", url, *shape)
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment(tally), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != "READY":
            raise RuntimeError(f"the worker of {entry.name} did not start")
        figures["start_s"] = time.perf_counter() - began
        yield process
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=60)
    figures["worker_cpu_s"] = float(out.strip().splitlines()[-1])


def client(entry: Entry, role: str, url: str, count: int, width: int) -> dict[str, float]:
    """The caller's or sender's figures."""
    line = command(entry, role, url, count, width)
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)
    if done.returncode != 0:
        raise RuntimeError(f"{entry.name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory_mib(pid: int) -> float:
    """Of a process and its children, MiB: private pages, and each shared one divided among those that share it."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_full_info().pss for process in tree) / 2**20


def calls(entry: Entry, servers: Servers, count: int, width: int) -> dict[str, float]:
    """One worker, one caller."""
    url, figures = servers.url(entry.broker), dict[str, float]()
    with worker(entry, url, figures, entry.serves) as process:
        if width == 1:
            time.sleep(IDLE)
            figures["idle_mib"] = memory_mib(process.pid)
        broker = servers.cpu()
        figures |= client(entry, "call", url, count, width)
        broker = servers.cpu() - broker
    done = figures["count"] + max(width, count // 10)
    figures["worker_us"] = figures.pop("worker_cpu_s") / done * 1e6
    figures["broker_us"] = broker / done * 1e6
    return figures


def sends(entry: Entry, servers: Servers, count: int) -> dict[str, float]:
    """Durable messages while nobody consumes, 64 at a time; the queue is made by a worker that leaves again."""
    url = servers.url(entry.broker)
    with worker(entry, url, {}, entry.serves):
        pass
    return client(entry, "send", url, count, 64)


def consumes(entry: Entry, servers: Servers, count: int, shape: Shape) -> dict[str, float]:
    """What a worker does with messages that wait for it: acked when they were handled, nobody asks for an answer."""
    url, figures = servers.url(entry.broker), dict[str, float]()
    with worker(entry, url, {}, entry.serves):
        pass
    client(entry, "send", url, count, 64)
    broker = servers.cpu()
    with tempfile.TemporaryDirectory(prefix="busline-bench-") as folder:
        with worker(entry, url, figures, shape, folder):
            until = time.perf_counter() + LONGEST
            while tallied(folder)[0] < count and time.perf_counter() < until:
                time.sleep(0.02)
        number, seconds = tallied(folder)
    if not number:
        raise RuntimeError(f"the worker of {entry.name} handled nothing in {LONGEST:g} s")
    return {
        "count": number,
        "rate": number / seconds,
        "worker_us": figures["worker_cpu_s"] / number * 1e6,
        "broker_us": (servers.cpu() - broker) / number * 1e6,
    }


def tallied(folder: str) -> tuple[int, float]:
    """How many messages all processes of a worker have handled, and within how many seconds."""
    tallies = [path.read_text().split() for path in Path(folder).glob("*.tally")]
    if not tallies:
        return 0, 0.0
    numbers, began, ended = zip(*tallies, strict=True)
    return sum(map(int, numbers)), max(map(float, ended)) - min(map(float, began))


def sitting(scale: float, names: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Every scenario once for every peer: figures by scenario and peer."""
    asked = [entry for entry in ENTRIES if not names or any(name in entry.module for name in names)]
    for entry in asked:
        if program := missing(entry):
            print(f"left out: {entry.name}, as {program} is not installed", file=sys.stderr)
    chosen = [entry for entry in asked if not missing(entry)]
    table: dict[str, dict[str, dict[str, float]]] = {}
    with ExitStack() as stack:
        servers = Servers(stack)
        for width, count in ((1, 1500), (64, 10_000), (256, 10_000)):
            for entry in chosen:
                run = calls(entry, servers, max(100, int(count * scale)), width)
                table.setdefault(f"calls, {width} in flight", {})[entry.name] = run
                print(f"  {width} in flight: {entry.name}: {run['rate']:,.0f}/s", file=sys.stderr)
        for entry in chosen:
            if entry.sends:
                table.setdefault("durable sends, 64 in flight", {})[entry.name] = sends(
                    entry, servers, max(200, int(5_000 * scale))
                )
        for shape in SHAPES:
            for entry in chosen:
                if entry.sends and shape in entry.consumes:
                    run = consumes(entry, servers, max(200, int(5_000 * scale)), shape)
                    table.setdefault(f"consume, {shape.consumers} × prefetch {shape.prefetch}", {})[entry.name] = run
    return table
