"""What the exit codes of `busline` mean, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum

from busline.errors import (
    CallTimeout,
    ConfigurationError,
    ConnectionLost,
    JobTimeout,
    NoHandler,
    OutcomeUnknown,
    QueueNotFound,
    ReplyLost,
    StoreUnavailable,
    TransportClosed,
)


class Exit(IntEnum):
    """Exit codes; the same number means the same in every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_APP = 3
    CONFIGURATION = 4
    UNREACHABLE = 5
    TIMEOUT = 6
    NO_HANDLER = 7
    ABORTED = 8
    STUCK = 9
    BLOCKED = 10
    RECYCLED = 11
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """In words."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.OK: "done",
    Exit.FAILED: "the call, or something else, failed",
    Exit.USAGE: "the command line makes no sense",
    Exit.NO_APP: "module:bus cannot be loaded",
    Exit.CONFIGURATION: "what was asked for cannot work",
    Exit.UNREACHABLE: "the broker or the store is away",
    Exit.TIMEOUT: "no answer in time",
    Exit.NO_HANDLER: "nobody handles it, or there is nothing to serve",
    Exit.ABORTED: "a worker left without finishing its work",
    Exit.STUCK: "a worker process had a handler that cannot be ended",
    Exit.BLOCKED: "a worker process whose event loop a handler has blocked",
    Exit.RECYCLED: "a worker process had done its share",
    Exit.INTERRUPTED: "Ctrl-C",
}


class Failure(Exception):
    """Ends the command with `code` and one line that says what is wrong and what to do."""

    def __init__(self, code: Exit, text: str) -> None:
        super().__init__(text)
        self.code = code


def exit_for(error: BaseException) -> Exit:
    """The exit code that an error amounts to."""
    match error:
        case Failure():
            return error.code
        case ConfigurationError():
            return Exit.CONFIGURATION
        case CallTimeout() | JobTimeout():
            return Exit.TIMEOUT
        case NoHandler() | QueueNotFound():
            return Exit.NO_HANDLER
        case StoreUnavailable() | ConnectionLost() | OutcomeUnknown() | ReplyLost() | TransportClosed():
            return Exit.UNREACHABLE
        case _:
            return Exit.FAILED


def legend() -> str:
    """All codes and their meanings, for `--help`."""
    return "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in Exit) + "."
