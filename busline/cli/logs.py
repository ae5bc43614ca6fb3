"""Log lines of the commands, on standard error: as text for people, or a JSON object a line for collectors.

Each of busline's own has a stable `event` and fields, listed in docs/operations.md; none has a payload in it.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson


class Level(StrEnum):
    """From which severity on."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


class EventFormatter(logging.Formatter):
    """`time LEVEL [pid] event: text`; a record of somebody else has its logger's name in the event's place."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d] %(event)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.event = getattr(record, "event", record.name)
        return super().formatMessage(record)


_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "event", "taskName"}
"""What every record has; whatever else one has are the fields of its event."""


class JsonFormatter(logging.Formatter):
    """One object: time (ISO 8601, UTC), level, logger, process, event, message, the event's fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "event": getattr(record, "event", None),
            "message": record.getMessage(),
        }
        told |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(told, default=repr).decode()
        except (TypeError, ValueError):  # a lone surrogate, or a key that is no text, in what somebody else logs
            return orjson.dumps({key: repr(value) for key, value in told.items()}).decode()


_FORMATTERS: dict[Format, type[logging.Formatter]] = {Format.TEXT: EventFormatter, Format.JSON: JsonFormatter}


def configure(level: Level, form: Format | None = None) -> None:
    """Log to standard error from `level` on. May be called again with another level; `form` stays as it was."""
    root = logging.getLogger()
    root.setLevel(level.value.upper())
    handler = next((each for each in root.handlers if type(each.formatter) in _FORMATTERS.values()), None)
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(EventFormatter())
        root.addHandler(handler)
    if form is not None:
        handler.setFormatter(_FORMATTERS[form]())


def chosen() -> Format:
    """The form that was asked for."""
    formatters = {type(handler.formatter) for handler in logging.getLogger().handlers}
    return Format.JSON if JsonFormatter in formatters else Format.TEXT
