"""Log lines of the commands: on standard error, time, level, process and the event's stable name before the text."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum


class Level(StrEnum):
    """From which severity on."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class EventFormatter(logging.Formatter):
    """`time LEVEL [pid] event: text`; a record of somebody else has its logger's name in the event's place."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d] %(event)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.event = getattr(record, "event", record.name)
        return super().formatMessage(record)


def configure(level: Level) -> None:
    """Log to standard error from `level` on. May be called again with another level."""
    root = logging.getLogger()
    root.setLevel(level.value.upper())
    if not any(isinstance(handler.formatter, EventFormatter) for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(EventFormatter())
        root.addHandler(handler)
