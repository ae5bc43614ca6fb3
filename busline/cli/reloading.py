"""For `busline worker --reload`: which Python files below the current folder have changed. By watchfiles."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from busline.errors import ConfigurationError

Changes = Callable[[asyncio.Event], AsyncIterator[Sequence[str]]]
"""Yields the files of each change until the event is set."""


def python_files() -> Changes:
    """Raises ConfigurationError if watchfiles is not installed."""
    try:
        from watchfiles import PythonFilter, awatch
    except ImportError as error:
        raise ConfigurationError("--reload needs watchfiles: install busline[reload]") from error

    async def changes(stop: asyncio.Event) -> AsyncIterator[Sequence[str]]:
        async for found in awatch(".", watch_filter=PythonFilter(), stop_event=stop, debounce=200):
            yield _names(path for _, path in found)

    return changes


def _names(paths: Iterable[str]) -> Sequence[str]:
    return sorted({os.path.relpath(path) for path in paths})
