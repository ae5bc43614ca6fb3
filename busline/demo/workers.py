"""The worker processes of the demo: started, watched and ended from outside, like anybody's."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from busline import Bus, CallTimeout, NoHandler
from busline.bus import URL_VARIABLE
from busline.demo.app import FOLDER_VARIABLE, SERVICE_VARIABLE

PROCESSES = 4
START_TIMEOUT = 60.0
"""Seconds until all workers must have answered."""
STOP_TIMEOUT = 15.0
"""Seconds that they have to leave in good order."""


class DemoFailed(Exception):
    """The demo could not be played to its end; the text says why."""


class Workers:
    """`busline worker --processes 4`, as a process."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def ready(self, bus: Bus, topic: str) -> set[int]:
        """The pids of all workers, once each has answered a call to `topic`. Raises DemoFailed."""
        pids: set[int] = set()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while len(pids) < PROCESSES:
                    pids |= await self._answering(bus, topic)
        except TimeoutError:
            raise DemoFailed(f"{len(pids)} of {PROCESSES} workers answered.\n{self._last_words()}") from None
        return pids

    async def _answering(self, bus: Bus, topic: str) -> set[int]:
        if self._process.returncode is not None:
            raise DemoFailed(f"the workers ended at once.\n{self._last_words()}")
        calls = [_ask(bus, topic) for _ in range(4 * PROCESSES)]
        answers = await asyncio.gather(*calls)
        if None in answers:
            await asyncio.sleep(0.05)
        return {answer for answer in answers if answer is not None}

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


async def _ask(bus: Bus, topic: str) -> int | None:
    try:
        return await bus.call(topic, timeout=2.0, returns=int)
    except (NoHandler, CallTimeout):
        return None  # not there yet


@asynccontextmanager
async def workers(url: str, service: str, folder: Path) -> AsyncIterator[Workers]:
    """Four of them, for as long as the block lasts. What they log goes into a file in `folder`."""
    environment = os.environ | {URL_VARIABLE: url, SERVICE_VARIABLE: service, FOLDER_VARIABLE: str(folder)}
    log = folder / "workers.log"
    theirs, ours = os.pipe()  # ends with this process, and then so do they
    try:
        process = await _start(environment, theirs, log)
        try:
            yield Workers(process, log)
        finally:
            await _end(process)
    finally:
        os.close(theirs)
        os.close(ours)


async def _start(environment: dict[str, str], leader: int, log: Path) -> Process:
    options = ["--processes", str(PROCESSES), "--leader", str(leader)]
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "busline", "worker", "busline.demo.app:bus", *options),
            env=environment,
            pass_fds=(leader,),
            stdout=output,
            stderr=STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal ends the demo, and the demo ends them
        )


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # those that outlived their parent, if any
    await process.wait()
