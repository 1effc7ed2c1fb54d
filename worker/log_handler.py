"""Where log lines go, and how they look there: standard error, or fields in systemd's journal.

What goes to the journal as plain lines tells it their priority, as sd-daemon(3) has it.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from taskiq_supervise.worker.journald import SOCKET, JournalHandler, is_stderr_the_journal, priority
from taskiq_supervise.worker.log_style import JsonFormatter

JOURNAL_FORMAT = "%(message)s"
"""The journal keeps time, level and process by itself."""


def handler(style: str, format: str) -> logging.Handler:
    """style: `text`, `json` or `journal`. format: logging's, for text."""
    if style == "journal":
        journal = JournalHandler()
        journal.setFormatter(logging.Formatter(JOURNAL_FORMAT))
        return journal
    if style == "json":
        formatter: logging.Formatter = JsonFormatter()
    elif style == "text":
        formatter = logging.Formatter(format)
    else:
        raise ValueError(f"the log style is {style!r}, not text, json or journal")
    stream = logging.StreamHandler(sys.stderr)
    journal_reads = is_stderr_the_journal(os.environ)
    stream.setFormatter(Prefixing(formatter) if journal_reads else formatter)
    return stream


class Prefixing(logging.Formatter):
    """What another formatter makes, and before each line its priority."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return prefixed(self._formatter.format(record), record.levelno)


def prefixed(text: str, level: int) -> str:
    """level: of logging."""
    return "\n".join(f"<{priority(level)}>{line}" for line in text.split("\n"))


def say_error(text: str) -> None:
    """To whoever reads standard error, without logging: it may not be set up, or be elsewhere."""
    if is_stderr_the_journal(os.environ):
        text = prefixed(text, logging.ERROR)
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def own_style(environment: Mapping[str, str]) -> str:
    """The style where none was asked for."""
    return "journal" if is_stderr_the_journal(environment) and has_journal() else "text"


def has_journal() -> bool:
    """There is one that takes fields; a service may see no more of it than its standard error."""
    return Path(SOCKET).is_socket()
