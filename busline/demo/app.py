"""The demo's service, an ordinary busline application: `busline worker busline.demo.app:bus`.

Where it runs comes from the environment, as for any other: `BUSLINE_URL`, and two variables of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from busline import Bus, Context, Retry, Router
from busline.demo.ledger import Airport, AirportTable, Ledger

FOLDER_VARIABLE = "BUSLINE_DEMO_FOLDER"
SERVICE_VARIABLE = "BUSLINE_DEMO_SERVICE"
WORK = 0.02
"""Seconds that answering takes, as a query elsewhere would."""

router = Router()


def folder() -> Path:
    """Where ledger and table are."""
    return Path(os.environ.get(FOLDER_VARIABLE, "."))


class Question(BaseModel):
    """What is asked; `text` is there to be carried."""

    number: int
    text: str


class Answer(BaseModel):
    """The answer to the question of this number, and the process that gave it."""

    number: int
    square: int
    text: str
    pid: int


class Batch(BaseModel):
    """Some rows of the file."""

    number: int
    rows: Sequence[Airport]


@router.handler("hello")
async def hello() -> int:
    """Say who is there; slowly enough for the next one to be asked, too."""
    await asyncio.sleep(WORK)
    return os.getpid()


@router.handler("square")
async def square(question: Question) -> Answer:
    """The call: some work, then the answer."""
    Ledger(folder()).note("calls", question.number)
    await asyncio.sleep(WORK)
    return Answer(number=question.number, square=question.number**2, text=question.text[::-1], pid=os.getpid())


@router.handler("import")
def import_batch(batch: Batch) -> None:
    """The job: a plain function, so it runs in a thread and may block."""
    Ledger(folder()).note("batches", batch.number)
    AirportTable(folder() / "airports.db").store(batch.rows)


@router.handler("doomed", retry=Retry(delays=[0.1, 0.2], jitter=False))
async def doomed(ctx: Context) -> None:
    """The message that always fails."""
    Ledger(folder()).note("doomed", ctx.attempt)
    raise ValueError(f"attempt {ctx.attempt}: there is no paper in the printer")


@router.subscriber("happened.*")
async def bill(number: int) -> None:
    """The first of two subscribers to the same events; each gets all of them."""
    Ledger(folder()).note("bill", number)


@router.subscriber("happened.#")
async def notify(number: int) -> None:
    """The second."""
    Ledger(folder()).note("notify", number)


service = os.environ.get(SERVICE_VARIABLE, "demo")
bus = Bus(service=service)
bus.include(router, prefix=f"{service}.")
