"""Asks a worker's health port as an orchestrator and Prometheus do, once a second and in between."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from busline import Bus
from busline.errors import TransportError
from process.commands import Running, until
from process.fair import FairClock, family


async def _ping(url: str) -> set[int] | None:
    try:
        async with Bus(url).control() as control:
            return {answer.pid for answer in await control.ping(timeout=1.0)}
    except TransportError:
        return None


def ping(url: str) -> set[int] | None:
    """The processes that `busline inspect ping` finds, asked as it does; None where the broker is away."""
    return asyncio.run(_ping(url))


class Probes:
    """Those of one worker that was started with `--health-port 0`. Everything has to be true within `TRUTH` seconds."""

    def __init__(self, worker: Running) -> None:
        self._worker = worker
        self._clock: FairClock | None = None
        found: list[str] = []

        def listens() -> bool:
            found[:] = re.findall(r"^health at http://127\.0\.0\.1:(\d+)/readyz$", worker.out.read_text(), re.MULTILINE)
            return bool(found)

        until(listens, "the worker listens for probes")
        self.port = int(found[0])
        self.took: dict[str, float] = {}
        """Seconds that each change took to be told."""

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        """Status and body; status 0 if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    @property
    def reasons(self) -> list[str] | None:
        """Why it is not ready; empty if it is; None if nobody answers."""
        status, body = self.ask("/readyz")
        if status == 0:
            return None
        told = orjson.loads(body)
        assert told["ready"] == (status == 200) == (not told["reasons"])
        return list(told["reasons"])

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics, as they are written."""
        status, body = self.ask("/metrics")
        if status == 0:
            return {}
        assert status == 200
        lines = [line for line in body.decode().splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def until_ready(self, what: str = "it is ready") -> None:
        """Both tell that all is well."""
        self._until(lambda: self.reasons == [] and self.metrics().get("busline_worker_ready") == 1, what)

    def until_not_ready(self, why: str) -> None:
        """Both tell that it is not, and /readyz why."""
        self._until(lambda: any(why in reason for reason in self.reasons or []), f"not ready because {why}")
        self._until(lambda: self.metrics().get("busline_worker_ready") == 0, "the metrics tell it, too")

    def until_counted(self, sample: str, value: float) -> None:
        """The metrics have counted so many."""
        self._until(lambda: self.metrics().get(sample) == value, f"{sample} is {value}")

    def until_pinged(self, url: str, wanted: set[int] | None) -> None:
        """`busline inspect ping` finds these processes; None: it says that the broker is away."""
        self._until(lambda: ping(url) == wanted, f"ping finds {wanted}", every=1.0)

    @contextmanager
    def since(self) -> Iterator[None]:
        """Something has happened just now: all that is waited for within has to be told within `TRUTH` of it."""
        self._clock = FairClock(self._concerned)
        yield
        self._clock = None

    def _concerned(self) -> list[int]:
        return [os.getpid(), *family(self._worker.process.pid)]

    def _until(self, holds: Callable[[], Any], what: str, every: float = 0.05) -> None:
        clock = self._clock or FairClock(self._concerned)
        while not holds():
            clock.tick(f"{what}; but {self.reasons}")
            time.sleep(every)
        self.took[what] = clock.tick(what)
