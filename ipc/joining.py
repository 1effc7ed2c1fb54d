"""Coming into a queue that somebody may be removing at the same moment.

The lock file is opened before the segment. Who has a byte of it, and then still finds it in the
queue's folder, knows two things: the segment that it opened in between is that folder's, and nobody
can remove the folder as long as the byte is held (see removal). Who does not find it starts again,
with the queue that has the name by now.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, TypeVar

from taskiq_supervise.ipc.errors import SegmentError
from taskiq_supervise.ipc.locks import open_lock_file
from taskiq_supervise.ipc.presence import is_at, is_being_removed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from taskiq_supervise.ipc.locks import LockFile

T = TypeVar("T")

_ATTEMPTS = 1_000
_REMOVAL = 0.001
"""Seconds. Who removes a queue needs a few system calls between its lock and the next step; so it
has a second, should it be stopped there."""


class QueueRemoved(Exception):
    """What was being joined is not the queue of that name any more."""


def join(find: Callable[[], Path], enter: Callable[[Path, LockFile], T]) -> T:
    """What `enter` makes of the queue's folder and its lock file, once that is the queue's.

    Args:
        find: the folder; again for each attempt.
        enter: opens the segment, takes a byte and calls check_place(). If it raises, it has given
            back what it took, and the lock file is closed here.

    Raises:
        SegmentError: somebody removes the queue and does not come to an end.
    """
    for attempt in itertools.count(1):
        try:
            folder = find()
            lock = _lock_file(folder)
            try:
                return enter(folder, lock)
            except BaseException:
                lock.release()
                raise
        except (FileNotFoundError, QueueRemoved) as error:
            if attempt == _ATTEMPTS:
                raise SegmentError(f"the queue is being removed ({error})") from error
            time.sleep(_REMOVAL if isinstance(error, QueueRemoved) else 0)
    raise AssertionError("count() has no end")


def _lock_file(folder: Path) -> LockFile:
    try:
        return open_lock_file(folder / "lock")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SegmentError(f"cannot open {folder / 'lock'}: {error.strerror}") from error


def check_place(lock: LockFile, folder: Path) -> None:
    """With a byte taken: raises QueueRemoved if it is a byte of a queue that has gone."""
    if not is_at(lock, folder / "lock"):
        raise QueueRemoved(f"{folder} has gone")


def check_no_place(lock: LockFile, folder: Path) -> None:
    """With no byte to be had: raises QueueRemoved if that is because the queue is being removed."""
    if is_being_removed(lock):
        raise QueueRemoved(f"{folder} is locked by who removes it")
    check_place(lock, folder)
