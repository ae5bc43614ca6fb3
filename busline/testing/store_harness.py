"""What the checks of stores need from a store's author."""

# A method of a Protocol is its docstring; pyright would have it return something all the same.
# pyright: reportReturnType=false
from __future__ import annotations

from typing import Protocol

from busline.stores.base import Store


class StoreHarness(Protocol):
    """One store under test, which holds nothing when a check begins."""

    name: str
    url: str
    """By which another process reaches it; "" where none can."""
    contested: int
    """Keys for which two processes race; as many as the store takes in a few seconds."""

    def store(self) -> Store:
        """A new, unopened client; each stands for a process of its own."""

    async def pass_time(self, seconds: float) -> None:
        """Let `seconds` pass for the store: sleep, or turn the virtual clock."""
