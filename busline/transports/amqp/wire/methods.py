"""Methods that name a queue, without the library's check: its alphabet is narrower than the broker's."""

from __future__ import annotations

from pamqp import commands


class Declare(commands.Queue.Declare):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Bind(commands.Queue.Bind):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Unbind(commands.Queue.Unbind):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Delete(commands.Queue.Delete):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Purge(commands.Queue.Purge):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Get(commands.Basic.Get):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""


class Consume(commands.Basic.Consume):
    """Any name that is UTF-8."""

    def validate(self) -> None:
        """The broker does."""
