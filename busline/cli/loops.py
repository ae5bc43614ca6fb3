"""On which event loop a worker process runs: uvloop where it is installed, unless another is asked for."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from enum import StrEnum
from importlib.util import find_spec

from busline.cli.exits import Exit, Failure


class Loop(StrEnum):
    """Whose event loop."""

    AUTO = "auto"
    """uvloop's where it is installed, else asyncio's."""
    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"


def factory_of(loop: Loop) -> Callable[[], AbstractEventLoop] | None:
    """What makes it, or None for asyncio's own. Raises Failure for a uvloop that is not installed."""
    installed = find_spec("uvloop") is not None
    if loop is Loop.UVLOOP and not installed:
        raise Failure(Exit.CONFIGURATION, "--loop uvloop: it is not installed; pip install 'busline[uvloop]'")
    return _uvloop if installed and loop is not Loop.ASYNCIO else None


def _uvloop() -> AbstractEventLoop:
    from uvloop import new_event_loop

    return new_event_loop()
