"""Lock bytes: proof of life and death.

Every participant holds a classic fcntl lock on its own byte of the queue's lock file. The kernel
releases it when the process dies, however it dies, and no child inherits it; so whoever can take
the byte has proven the death. Two traps of these locks decide the shape of this module: a process
never conflicts with itself, so own bytes are remembered and never judged; and closing any
descriptor of the file drops all locks of the process, so each file is opened once per process,
found by its inode.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.access import new_file

if TYPE_CHECKING:
    from pathlib import Path

CUSTODIAN_BYTE = 0
SUPERVISOR_BYTE = 1
DEPUTY_BYTE = 2
REQUEUE_BYTE = 3
_FIRST_PARTICIPANT_BYTE = 16

_FLOCK = struct.Struct("@hhqqi")  # l_type, l_whence, l_start, l_len, l_pid of <fcntl.h>


def participant_byte(index: int) -> int:
    return _FIRST_PARTICIPANT_BYTE + index


@dataclass
class LockFile:
    """The one open lock file of a queue in this process."""

    fd: int
    identity: tuple[int, int]
    users: int = 0
    mine: set[int] = field(default_factory=set)

    def take(self, byte: int) -> bool:
        """Lock a byte. False: another process holds it, or this one does already."""
        with _guard:
            if byte in self.mine:
                return False
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                raise
            self.mine.add(byte)
            return True

    def give(self, byte: int) -> None:
        with _guard:
            if byte in self.mine:
                self.mine.remove(byte)
                fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, byte)

    def holder(self, byte: int) -> int:
        """Process id of who holds the byte; 0: nobody, or somebody of another pid namespace."""
        if byte in self.mine:
            return os.getpid()
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self.fd, fcntl.F_GETLK, request))
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    def release(self) -> None:
        """The last user closes the file, which drops every lock of this process on it."""
        with _guard:
            self.users -= 1
            if self.users == 0 and _files.get(self.identity) is self:
                del _files[self.identity]
                os.close(self.fd)


_files: dict[tuple[int, int], LockFile] = {}
_guard = threading.RLock()


def open_lock_file(path: Path) -> LockFile:
    with _guard:
        try:
            found = path.stat()
        except FileNotFoundError:
            found = None
        lock = _files.get((found.st_dev, found.st_ino)) if found else None
        if lock is None:
            fd = _opened_or_made(path)
            opened = os.fstat(fd)
            lock = LockFile(fd, (opened.st_dev, opened.st_ino))
            _files[lock.identity] = lock
        lock.users += 1
        return lock


def _opened_or_made(path: Path) -> int:
    """Made under another name: nobody finds one that he may not open yet."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        temporary = path.with_name(f"{path.name}.new-{os.getpid()}-{os.urandom(4).hex()}")
    fd = new_file(temporary, path.parent)
    try:
        os.link(temporary, path)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, FileExistsError):  # somebody else was faster: theirs is used
            return os.open(path, flags)
        raise
    finally:
        temporary.unlink(missing_ok=True)  # gone with the folder when the queue was removed
    return fd


def _forget_in_child() -> None:
    """A forked child holds none of the locks; its copies of the descriptors are of no use."""
    global _guard
    _guard = threading.RLock()
    for lock in _files.values():
        os.close(lock.fd)
    _files.clear()


os.register_at_fork(after_in_child=_forget_in_child)
