from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .running import Example


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Callable[..., Example]]:
    """A copy of an example by name, whose processes end with the test."""
    opened: list[Example] = []

    def open_example(name: str, **environment: str) -> Example:
        opened.append(Example(name, tmp_path, environment))
        return opened[-1]

    yield open_example
    for each in opened:
        each.end()
