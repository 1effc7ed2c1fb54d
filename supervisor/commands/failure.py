"""How a command ends when it cannot do what was asked: one line that says why, and a status."""

import sys
from typing import NoReturn

import click

EXIT_NOT_RUNNING = 3
"""There is no such instance; the same status as systemctl's."""


def leave(message: str, code: int) -> NoReturn:
    click.echo(f"taskiq-supervise: {message}", err=True)
    sys.exit(code)
