from collections.abc import Iterator
from pathlib import Path

import pytest
from process.commands import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """An empty folder for apps and a database."""
    folder = Folder(tmp_path)
    yield folder
    folder.end()
