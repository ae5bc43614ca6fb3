"""Other factories in the place of those that handlers depend on, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Factory = Callable[..., Any]


class Overrides:
    """Who stands for whom. `version` changes with each change."""

    __slots__ = ("_replacements", "version")

    def __init__(self) -> None:
        self._replacements: dict[Factory, Factory] = {}
        self.version = 0

    def of(self, factory: Factory) -> Factory:
        """What runs when `factory` is asked for."""
        return self._replacements.get(factory, factory)

    @contextmanager
    def replaced(self, replacements: Mapping[Factory, Factory]) -> Iterator[None]:
        """While this is entered, these hold, too."""
        before = dict(self._replacements)
        self._replacements |= replacements
        self.version += 1
        try:
            yield
        finally:
            self._replacements = before
            self.version += 1
