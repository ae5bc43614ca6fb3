"""What the tests of drivers share: the place of SQLite's file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def path() -> Iterator[Path]:
    """In a folder whose name is short, as sockets beside it are: in a parallel run pytest's own are too long for them,
    and then they are elsewhere."""
    folder = Path(tempfile.mkdtemp(prefix="bl-"))
    yield folder / "bus.db"
    shutil.rmtree(folder, ignore_errors=True)
