"""How a command ends when it cannot do what was asked: one line that says why, and a status."""

from typing import IO, Any, NoReturn

import click

from taskiq_supervise.worker.log_handler import say_error

EXIT_NOT_RUNNING = 3
"""There is no such instance; the same status as systemctl's."""


class Departure(click.ClickException):
    """The end of a command."""

    def __init__(self, message: str, code: int, errno: int = 0) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc] # click has one for each class
        self.errno = errno

    def show(self, file: IO[Any] | None = None) -> None:
        say_error(f"taskiq-supervise: {self.message}")


def leave(message: str, code: int, errno: int = 0) -> NoReturn:
    """errno: of the system call that failed, if it was one."""
    raise Departure(message, code, errno)
