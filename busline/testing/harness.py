"""What the checks need from a transport's author: clients of one real broker, and a way to make one die."""

# A method of a Protocol is its docstring; pyright would have it return something all the same.
# pyright: reportReturnType=false
from __future__ import annotations

from typing import Protocol

from busline.transports.base import Transport


class Harness(Protocol):
    """One broker under test. Declares nothing about features: those are read from `Limits`."""

    name: str

    def transport(self) -> Transport:
        """A new, unopened client of the broker; each stands for a process of its own."""

    def unique(self, prefix: str) -> str:
        """A queue name or topic that nobody else uses."""

    async def kill(self, transport: Transport) -> None:
        """Make this client vanish as SIGKILL would: nothing is given back, nobody is told."""

    async def pass_time(self, seconds: float) -> None:
        """Let `seconds` pass for the broker: sleep, or turn the virtual clock."""

    takeover: float
    """Seconds after which a killed client's messages are delivered again, at most."""
