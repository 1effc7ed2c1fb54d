"""Removing a queue for good, while others may be about to join it.

Who removes takes every lock byte of the queue in one system call. That succeeds only when nobody
holds one, so it proves that no participant lives, and from then on nobody can join, because who
joins needs a byte. Then the folder is renamed to a name that no queue can have, and emptied. There
is no moment at which two queues answer to one name, and none at which a folder is half removed.

Somebody who had opened the old segment and not yet taken a byte finds, after taking one, that
`lock` is another file than the one it locked, and starts again with the queue that is there then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from taskiq_supervise.ipc import locks
from taskiq_supervise.ipc._core import MAX_PARTICIPANTS, Core
from taskiq_supervise.ipc.errors import QueueError, QueueMissing, SegmentError
from taskiq_supervise.ipc.model import Role
from taskiq_supervise.ipc.presence import is_at, joined, living

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from taskiq_supervise.ipc.locks import LockFile
    from taskiq_supervise.ipc.model import Participant

_REMOVED_PREFIX = ".removed-"
"""A queue's name never begins with a dot."""

_OWN = re.compile(r"(segment|lock|files)(\..+)?|supervisor|bell-\d+|progress|\.new-.+")
"""What lies in a queue's folder."""

_NAMED_AT_MOST = 8
_ROLES = {int(role): role.name.lower() for role in Role}


class QueueInUse(QueueError):
    """Somebody lives in the queue.

    Attributes:
        participants: who; empty when the segment cannot be read.
    """

    def __init__(self, message: str, participants: tuple[Participant, ...]) -> None:
        super().__init__(message)
        self.participants = participants


def destroy_queue(folder: Path) -> None:
    """Remove the queue whose folder this is, with all its messages and results.

    A damaged segment, or one of another version, is no obstacle.

    Raises:
        QueueMissing: there is no such folder (any more).
        QueueInUse: a participant lives; nothing was changed.
        SegmentError: the folder is not a queue's, or may not be removed; nothing was changed.
    """
    _clear_remains(folder.parent)
    _check(folder)
    try:
        lock = locks.open_lock_file(folder / "lock")
    except FileNotFoundError:
        raise _missing(folder) from None
    except OSError as error:
        raise SegmentError(f"cannot open {folder / 'lock'}: {error.strerror}") from error
    try:
        if not _seal(lock):
            raise _in_use(folder, lock)
        if not is_at(lock, folder / "lock"):  # somebody else has removed it just now
            raise _missing(folder)
        removed = folder.with_name(f"{_REMOVED_PREFIX}{folder.name}-{os.urandom(4).hex()}")
        try:
            folder.rename(removed)
        except OSError as error:
            raise SegmentError(
                f"cannot remove queue folder {folder}: {error.strerror}; nothing was changed"
            ) from error
    finally:
        lock.release()
    try:
        _remove(removed)
    except OSError as error:
        raise SegmentError(
            f"queue {folder.name!r} is gone, but {removed} could not be emptied: {error.strerror}"
        ) from error


def _seal(lock: LockFile) -> bool:
    """Take all bytes at once, for as long as the file is open. False: one of them is held."""
    with locks._guard:
        if lock.mine:
            return False
        try:
            fcntl.lockf(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 0)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        # Other threads of this process share the LockFile, and the kernel lets them pass.
        lock.mine.update(range(locks.participant_byte(MAX_PARTICIPANTS) + 1))
        return True


def _check(folder: Path) -> None:
    """The folder is a queue's: a wrong --directory must not cost anybody his files."""
    try:
        found = folder.lstat()
        foreign = _foreign(folder) if stat.S_ISDIR(found.st_mode) else []
    except FileNotFoundError:
        raise _missing(folder) from None
    except OSError as error:
        raise SegmentError(f"queue folder {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SegmentError(f"queue folder {folder} is not a folder: it was not removed")
    if foreign:
        raise SegmentError(
            f"{folder} is not only a queue's folder ({foreign[0]!r} is in it): it was not removed"
        )


def _missing(folder: Path) -> QueueMissing:
    return QueueMissing(f"there is no queue {folder.name!r} in {folder.parent}")


def _in_use(folder: Path, lock: LockFile) -> QueueInUse:
    found = tuple(_participants(folder, lock))
    if found:
        who = _listed([f"{_ROLES.get(one.role, 'process')} pid {one.pid}" for one in found])
    else:
        # The segment cannot be read. The kernel knows the pids, if they are of this container.
        last = locks.participant_byte(MAX_PARTICIPANTS)
        pids = {lock.holder(byte) for byte in range(last + 1)} - {0}
        who = _listed([f"pid {pid}" for pid in sorted(pids)]) or "a process that is just joining"
    return QueueInUse(
        f"queue {folder.name!r} in {folder.parent} is in use by {who}; stop them first", found
    )


def _participants(folder: Path, lock: LockFile) -> Iterable[Participant]:
    try:
        fd = os.open(folder / "segment", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # none, or not ours: then nobody can be named
        return []
    try:
        core = Core(fd)
    except SegmentError:
        return []
    finally:
        os.close(fd)
    try:
        return list(living(lock, joined(core)))
    finally:
        core.close()


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _clear_remains(base: Path) -> None:
    """What those left who were killed while they removed a queue."""
    for remains in base.glob(f"{_REMOVED_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or with something of somebody else's in it
            _remove(remains)


def _remove(folder: Path) -> None:
    """Only what a queue puts there; safe beside others who do the same.

    Who was just opening a file in it by its old name may still make one. The next turn removes it,
    and there is no name any more by which another could come.
    """
    while True:
        with suppress(FileNotFoundError):
            entries = list(folder.iterdir())
            try:
                for path in entries:
                    if _OWN.fullmatch(path.name):
                        _remove_entry(path)
                folder.rmdir()
            except OSError as error:
                if error.errno == errno.ENOTEMPTY and not _foreign(folder):
                    continue
                raise
        return


def _foreign(folder: Path) -> list[str]:
    """What lies there that no queue has made."""
    return sorted(path.name for path in folder.iterdir() if not _OWN.fullmatch(path.name))


def _remove_entry(path: Path) -> None:
    """A file, a link itself, or a folder with everything in it."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            for entry in list(path.iterdir()):
                _remove_entry(entry)
            path.rmdir()
        else:
            path.unlink()
