"""A worker process's side of the control plane: it answers questions, and does what an operator asks for.

It hears them beside the work, so a worker whose slots are all taken answers, and one that drains does too, until it has
left.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any, Literal

from busline.catalog import served
from busline.codec import decode, encode
from busline.control import EVER_PAUSED, PAUSED, Answer, is_recorded
from busline.errors import (
    BuslineError,
    CodecError,
    ConfigurationError,
    StoreUnavailable,
    TransportClosed,
    TransportError,
)
from busline.lines import Ear, ear_of
from busline.message import Message
from busline.process import resident_memory
from busline.registry import Plan
from busline.services import Services
from busline.slots import QueueSlots
from busline.storing import StoreDoor
from busline.tails import Teller
from busline.telemetry import log
from busline.wire import text_of

BACK_OFF = (0.1, 5.0)
"""First and longest pause between attempts to be reachable again, seconds."""
LOOK_AGAIN = 60.0
"""Seconds after which a process reads again which queues are paused: it may have missed to be told."""
CANCEL_AGAIN = 0.5
"""Seconds after which a task is cancelled again that has not ended."""
OPERATOR = "operator"
"""The reason of a gate that an operator has closed."""

State = Literal["starting", "serving", "draining"]


class Post:
    """Made by the bus when a worker starts that operators look after. `reach`: can they ask it? "needed": it does not
    start where they cannot, "offered": where they can, "heeding": no, but it keeps to what is on record."""

    def __init__(
        self,
        plan: Plan,
        services: Services,
        door: StoreDoor | None,
        *,
        name: str | None,
        instance: str,
        reach: Literal["needed", "offered", "heeding"],
    ) -> None:
        self._plan = plan
        self._services = services
        self._transport = services.transport
        self._door = door
        self._instance = instance
        self._reach = reach
        self._service = plan.service
        self._host = socket.gethostname()
        self._name = name or f"{plan.service or 'worker'}@{self._host}"
        self._started_at = services.clock.time()
        self._queues: Sequence[QueueSlots] = ()
        self._state: Callable[[], State] = lambda: "starting"
        self._ear: Ear | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def prepare(self, queues: Sequence[QueueSlots], state: Callable[[], State]) -> None:
        """Before anything is taken: close the gates of the queues that an operator has paused. Raises
        ConfigurationError if this process is to be reached and cannot be."""
        self._queues, self._state = queues, state
        await self._keep_to_the_record()
        if self._reach == "needed":
            await self._listen()

    def start(self) -> None:
        """Be reachable from now on, beside the work."""
        for run in (self._look_again,) if self._reach == "heeding" else (self._run, self._look_again):
            self._tasks.append(asyncio.create_task(run(), name="busline control"))

    async def aclose(self) -> None:
        """Answer no more. Idempotent."""
        while self._tasks:  # again and again, as a store's driver was seen to swallow it
            for task in self._tasks:
                task.cancel()
            _, left = await asyncio.wait(self._tasks, timeout=CANCEL_AGAIN)
            self._tasks = list(left)
        ear, self._ear = self._ear, None
        if ear is None:
            return
        try:
            await ear.aclose()
        except TransportClosed:  # the queue goes with the connection
            return

    # -- being reachable ----------------------------------------------------------------------------------------

    async def _listen(self) -> Ear:
        self._ear = await ear_of(self._transport, self._door, self._instance)
        return self._ear

    async def _run(self) -> None:
        pause, longest = BACK_OFF
        while True:
            try:
                ear = self._ear or await self._listen()
                pause, _ = BACK_OFF
                await self._answer_all(ear)
            except TransportClosed:
                return
            except ConfigurationError as error:  # it works without: what it serves matters more than being asked
                log.warning("this process cannot be inspected: %s", error, extra={"event": "control_off"})
                return
            except (TransportError, StoreUnavailable) as error:
                log.info(
                    "this process cannot be inspected, again in %.1f s: %s",
                    *(pause, error),
                    extra={"event": "control_lost"},
                )
                await self._let_go()
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    async def _let_go(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            try:
                await ear.let_go()
            except TransportError as error:
                log.debug("closing the control consumer failed: %s", error, extra={"event": "control_close_failed"})

    async def _answer_all(self, ear: Ear) -> None:
        while True:
            for question in await ear.questions():
                await self._answer(ear, question)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            try:
                await self._keep_to_the_record()
            except TransportError as error:
                log.info("whether a queue is paused could not be read: %s", error, extra={"event": "control_lost"})

    async def _keep_to_the_record(self, only: str | None = None) -> None:
        """Close and open the operator's gates as it is on record at the broker."""
        now = self._services.clock.time()
        if not await is_recorded(self._transport, EVER_PAUSED, now):
            return
        for queue in self._queues:
            spec = queue.plan.spec
            if not spec.ephemeral and only in (None, spec.name):
                paused = await is_recorded(self._transport, PAUSED + spec.name, now)
                await queue.operate(OPERATOR, "an operator has paused it" if paused else None)

    # -- answering ----------------------------------------------------------------------------------------------

    async def _answer(self, ear: Ear, question: Message) -> None:
        """Whatever is wrong with a question, the next one is answered."""
        try:
            asked = decode(question.body)
            if not isinstance(asked, dict) or not self._is_meant(asked.get("worker")):
                return
            data = await self._data(asked)
            if data is not None:
                await ear.answer(question, str(asked["answers"]), self._body(data))
        except TransportClosed:
            raise
        except (BuslineError, CodecError, KeyError, TypeError, ValueError) as error:
            # Often who asked has gone: a process that was stopped for a while finds old questions.
            log.debug("a question could not be answered: %s", text_of(error), extra={"event": "control_unanswered"})

    def _is_meant(self, worker: object) -> bool:
        if worker is None:
            return True
        return any(fnmatchcase(name, str(worker)) for name in (self._name, f"{self._name}/{os.getpid()}"))

    async def _data(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """What is answered; None if this process has nothing to say to it."""
        match asked["verb"]:
            case "ping":
                return {}
            case "active":
                return {"messages": self._active()}
            case "stats":
                return self._stats()
            case "handlers":
                return {"handlers": [asdict(row) for row in served(self._plan)]}
            case "watch":
                await self._watch(str(asked["to"]), asked["patterns"], float(asked["seconds"]))
                return None
            case "gates" | "concurrency" as verb:
                return await self._operate(verb, str(asked["queue"]), asked.get("number"))
            case other:
                raise ValueError(f"{other!r} is nothing that this version of busline can be asked")

    async def _operate(self, verb: str, name: str, number: int | None) -> dict[str, Any] | None:
        queue = next((queue for queue in self._queues if queue.plan.spec.name == name), None)
        if queue is None:
            return None
        if verb == "gates":  # what is on record counts, so that an order that comes late does no harm
            await self._keep_to_the_record(name)
        elif isinstance(number, int) and number >= 1:
            await queue.set_count(number)
            self._services.threads.total_tokens = max(1, sum(each.count for each in self._queues))
        return {"queue": name, **_told(queue)}

    async def _watch(self, id: str, patterns: Sequence[str], seconds: float) -> None:
        """Somebody watches by way of the store; he is told there, and is not answered."""
        if self._door is None:
            return
        events = self._services.events
        teller = events.teller or Teller(await self._door.open())
        if teller.watch(id, patterns, seconds):
            events.watched(teller)

    def _active(self) -> list[dict[str, Any]]:
        now = self._services.clock.time()
        return [
            {
                "queue": work.delivery.queue,
                "topic": work.delivery.message.topic,
                "id": work.envelope.id,
                "attempt": work.envelope.attempt,
                "deliveries": work.delivery.deliveries,
                "seconds": round(now - work.began_at, 3),
            }
            for queue in self._queues
            for work in queue.works
        ]

    def _stats(self) -> dict[str, Any]:
        health = self._transport.health()
        return {
            "counters": asdict(self._services.telemetry.stats),
            "queues": {queue.plan.spec.name: _told(queue) for queue in self._queues},
            "memory_bytes": resident_memory(),
            "cpu_seconds": round(time.process_time(), 3),
            "transport": {"where": self._transport.where, "status": health.status, "detail": health.detail},
        }

    def _body(self, data: dict[str, Any]) -> bytes:
        answer = Answer(
            worker=self._name,
            pid=os.getpid(),
            host=self._host,
            service=self._service,
            instance=self._instance,
            version=version("busline"),
            state=self._state(),
            started_at=self._started_at,
            at=self._services.clock.time(),
            data=data,
        )
        told = asdict(answer)
        del told["asked_at"], told["received_at"]
        return encode(told)


def _told(queue: QueueSlots) -> dict[str, Any]:
    return {
        "concurrency": queue.count,
        "running": queue.running,
        "taken": queue.taken,
        "waited": queue.waited,
        "paused": list(queue.gate.reasons.values()),
    }
