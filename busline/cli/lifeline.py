"""The stream between a worker process and its parent: it ends when either does, and carries the child's news."""

from __future__ import annotations

import os
from contextlib import suppress

READY, RETIRING = b"r", b"t"
"""It consumes; it takes no further message and only finishes what it has."""


class Lifeline:
    """The child's end, known by its descriptor; None = there is no parent to tell."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def tell(self, news: bytes) -> None:
        """Tell the parent, if it is still there."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.write(self._descriptor, news)
