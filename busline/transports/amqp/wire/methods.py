"""Methods that name a queue, without the library's check: its alphabet is narrower than the broker's, which takes any
name that is UTF-8 and says itself what it does not take."""

from __future__ import annotations

from pamqp import commands


class _Unchecked:
    def validate(self) -> None:
        """The broker does."""


class Declare(_Unchecked, commands.Queue.Declare):
    """Any name."""


class Bind(_Unchecked, commands.Queue.Bind):
    """Any name."""


class Unbind(_Unchecked, commands.Queue.Unbind):
    """Any name."""


class Delete(_Unchecked, commands.Queue.Delete):
    """Any name."""


class Purge(_Unchecked, commands.Queue.Purge):
    """Any name."""


class Get(_Unchecked, commands.Basic.Get):
    """Any name."""


class Consume(_Unchecked, commands.Basic.Consume):
    """Any name."""
