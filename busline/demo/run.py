"""Sets the stage for the demo, and clears it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from busline import Bus, BuslineError
from busline.demo.app import router
from busline.demo.scenario import CALLS, Demo
from busline.demo.screen import Screen
from busline.demo.workers import DemoFailed, workers
from busline.wire import new_id


async def run(url: str | None, screen: Screen, calls: int = CALLS) -> bool:
    """Play the demo at `url`, or on a fresh SQLite file; True if nothing was lost.

    At a broker of the user's it works under a name of its own, and deletes its queues in the end. Raises BuslineError
    if there is no way to the broker.
    """
    with tempfile.TemporaryDirectory(prefix="busline-demo-") as name:
        folder = Path(name)
        service = "demo" if url is None else f"demo-{new_id()[:6]}"
        url = url or f"sqlite:///{folder / 'busline.db'}"
        if url.startswith("memory:"):
            return _ended_early("memory:// lives in one process, and the demo is five; try it without a URL", screen)
        async with Bus(url) as bus:
            screen.say(f"busline demo at {bus.transport.where}", "bold")
            try:
                return await _play(bus, url, service, folder, screen, calls)
            except (BuslineError, DemoFailed) as error:
                return _ended_early(str(error), screen)


async def _play(bus: Bus, url: str, service: str, folder: Path, screen: Screen, calls: int) -> bool:
    try:
        async with workers(url, service, folder) as crew:
            return await Demo(bus, crew, service, folder, screen, calls).play()
    finally:
        await _clear(bus, service)


def _ended_early(why: str, screen: Screen) -> bool:
    screen.say(f"the demo ended early: {why}", "bold red")
    return False


async def _clear(bus: Bus, service: str) -> None:
    served = Bus(service=service)
    served.include(router, prefix=f"{service}.")
    for queue in served.plan().queues.values():
        await bus.transport.detach(queue.spec.name, delete=True)
        if queue.dead_letters is not None:
            await bus.transport.detach(queue.dead_letters.name, delete=True)
