"""A short visit to a queue: what the commands that look into queues have in common.

They join like any client and need no supervisor. They never make a queue, so looking for one that
is not there leaves nothing behind.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskiq_supervise.supervisor.commands.failure import leave
from taskiq_supervise.supervisor.core.model import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from taskiq_supervise.ipc import TaskQueue

F = TypeVar("F", bound="Callable[..., Any]")


def _check_queue(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    from taskiq_supervise.ipc import QueueError
    from taskiq_supervise.ipc.segment import check_name

    try:
        return check_name(value)
    except QueueError as error:
        raise click.BadParameter(str(error)) from None


def queue_argument(command: F) -> F:
    return click.argument("queue", callback=_check_queue)(command)


def directory_option(command: F) -> F:
    return click.option(
        "--directory",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="Folder that holds the queues, where it is not the default: "
        "$TASKIQ_SUPERVISE_QUEUE_DIR, else /dev/shm/taskiq-supervise-<uid>.",
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")(
        command
    )


def base_directory(directory: Path | None) -> Path:
    from taskiq_supervise.ipc import SegmentError, default_base_directory

    try:
        return default_base_directory() if directory is None else directory.absolute()
    except SegmentError as error:
        leave(str(error), EXIT_FAILED)


@contextmanager
def visit(name: str, directory: Path | None) -> Iterator[TaskQueue]:
    """The queue, for the length of a command. Whatever goes wrong with it is one line, status 1."""
    from taskiq_supervise.ipc import QueueError, TaskQueue

    try:
        with TaskQueue.open(name, base_directory(directory), create=False, mode=None) as queue:
            yield queue
    except QueueError as error:
        leave(str(error), EXIT_FAILED)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def queue_names(base: Path) -> list[str]:
    """The queues below a folder, by name; none when there is no such folder."""
    from taskiq_supervise.ipc import QueueError
    from taskiq_supervise.ipc.segment import check_name

    found = []
    try:
        folders = sorted(base.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        leave(f"cannot look into {base}: {error.strerror}", EXIT_FAILED)
    for folder in folders:
        try:
            check_name(folder.name)
            if (folder / "segment").exists():
                found.append(folder.name)
        except (QueueError, PermissionError):  # not a queue, or not ours to look at
            continue
    return found
