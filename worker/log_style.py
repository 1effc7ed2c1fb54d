"""Log lines for people (a format string) or for programs (one JSON object per line).

Standard library only: the supervisor's journal and the workers' logging are formatted alike.
"""

import json
import logging
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes of every record; the others are the caller's `extra=`."""
_OWN = frozenset({"time", "level", "logger", "message", "process", "pid", "exception", "stack"})

_identity: dict[str, Any] = {}

current_task: "ContextVar[Mapping[str, Any] | None]" = ContextVar("current_task", default=None)
"""What lines say of the task whose code logs them: `task_id`, `task_name`."""


def identify(**fields: Any) -> None:
    """What every line of this process says of it: instance, worker. Forked children inherit it."""
    _identity.update(fields)


def facts(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says beside its message: of its process, its task, and what was given as
    `extra=`."""
    found: dict[str, Any] = {"worker": None, **_identity, **(current_task.get() or {})}
    for key, value in vars(record).items():
        if key not in _STANDARD:
            found[f"extra_{key}" if key in _OWN else key] = value
    return found


class JsonFormatter(logging.Formatter):
    """One JSON object per line, ASCII, whatever a record carries.

    Keys: time (ISO 8601, local time with its zone), level, logger, message, process, pid, worker
    (null outside one), instance, task_id and task_name inside a task, exception (a traceback) and
    stack where there is one, and what was given as `extra=`. An extra with the name of another key
    is kept as `extra_NAME`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.processName,
            "pid": record.process,
            **facts(record),
        }
        if record.exc_text:
            line["exception"] = record.exc_text
        elif record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        try:
            return _dumps(line)
        except (TypeError, ValueError, RecursionError):
            return _dumps({key: _plain(value) for key, value in line.items()})


def _dumps(value: object) -> str:
    return json.dumps(value, default=str, allow_nan=False)


def _plain(value: object) -> object:
    """The value, or its text where JSON has no word for it: NaN, keys of any type, cycles."""
    try:
        _dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value
