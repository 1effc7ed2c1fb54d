"""Spares: files whose payload is not needed any more, waiting to be written again.

Memory that is there already is worth six times (100 MiB: 41 ms into a new file, 5.5 ms into one
that was written and mapped before). A new file is a spare too until it has its name, so whoever
dies while making or writing one leaves nothing but a spare.

Who holds what is told by flock on the file itself, so the kernel knows of every death, and nobody
waits: what is locked is left alone. A lock proves something only together with the name: another
process may have had the file renamed or removed between opening and locking it, so the name is
looked at again under the lock.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import stat
import time
from pathlib import Path

from taskiq_supervise.ipc import access
from taskiq_supervise.ipc.errors import FilesFull, SegmentError
from taskiq_supervise.ipc.mappings import Kept, WriteMapping

SPARE_BYTES = 2 << 30
SPARE_COUNT = 64
SPARE_SECONDS = 60.0
"""What is kept at most (of the bytes, also not more than a quarter of the file system), and for how
long nobody has needed it."""

_SPARE = re.compile(r"spare-([0-9]+)-[0-9a-f]+")
# In pieces, so that a program that gets a signal every few milliseconds comes to an end with it:
# what an interrupted call has allocated is given back.
_ALLOCATE_BYTES = 32 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def file_size(needed: int) -> int:
    """Bytes of a new file: 16 sizes between a power of two and the next, so that many will fit."""
    step = max(mmap.PAGESIZE, 1 << max(0, (needed - 1).bit_length() - 5))
    return max(1, -(-needed // step)) * step


def try_lock(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def status_of(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def status_if_named(fd: int, path: Path) -> os.stat_result | None:
    """The open file's status, if it is a regular file and still the one of this name."""
    opened, named = os.fstat(fd), status_of(path)
    if named is None or not stat.S_ISREG(opened.st_mode) or not os.path.samestat(opened, named):
        return None
    return opened


def open_file(path: Path, flags: int) -> int:
    # O_NONBLOCK: a FIFO that somebody put there must not stop anybody.
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def make_folder(path: Path, mode: int) -> None:
    found = status_of(path)
    if found is None:
        access.make_folder(path, mode)
        found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise SegmentError(f"{path} is not a folder")


class Spares:
    """The spares in a folder. What take() and make() return is locked for the caller alone."""

    def __init__(self, directory: Path, mode: int) -> None:
        self._directory = directory
        self._mode = mode
        self._kept: Kept[WriteMapping] = Kept()

    def make_folder(self) -> None:
        make_folder(self._directory, self._mode)

    def new_path(self, size: int) -> Path:
        return self._directory / f"spare-{size}-{os.urandom(8).hex()}"

    def take(self, needed: int) -> tuple[WriteMapping, Path] | None:
        """One of at least the needed bytes and at most twice as many; give_back() takes it."""
        for inode, path in self._fitting(needed):
            mapping = self._lock(inode, path, needed)
            if mapping is not None:
                return mapping, path
        return None

    def give_back(self, mapping: WriteMapping) -> None:
        """The mapping is kept for the next time; the file is not ours any more."""
        fcntl.flock(mapping.fd, fcntl.LOCK_UN)
        self._kept.keep(mapping)

    def make(self, size: int) -> tuple[int, Path]:
        """Descriptor and path of a new one that has all its memory. FilesFull: no room."""
        try:
            return self._allocate(size)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
        self.trim(0)
        try:
            return self._allocate(size)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise FilesFull(
                f"no room for a payload of {size / 1e6:.1f} MB in {self._directory.parent} "
                f"({error.strerror}); free some, or use a folder with more room"
            ) from error

    def trim(self, spare_bytes: int = SPARE_BYTES, seconds: float = SPARE_SECONDS) -> None:
        """Give back the memory of old spares, and of the oldest while they are too many.

        A spare that somebody looks at stays until a later time: its memory cannot be had anyway.
        """
        spares = sorted(self._all(), key=lambda spare: spare[1].st_ctime, reverse=True)
        if not spares:
            return
        system = os.statvfs(self._directory)
        allowed = min(spare_bytes, system.f_blocks * system.f_frsize // 4)
        now, total = time.time(), 0
        for count, (path, status) in enumerate(spares, 1):
            total += status.st_size
            # One that is just being made is empty at first.
            too_many = status.st_size > 0 and (total > allowed or count > SPARE_COUNT)
            if too_many or now - status.st_ctime > seconds:
                self._remove(path)

    def total_bytes(self) -> int:
        return sum(status.st_size for _, status in self._all())

    def close(self) -> None:
        self._kept.close()

    def _all(self) -> list[tuple[Path, os.stat_result]]:
        try:
            with os.scandir(self._directory) as entries:
                paths = [Path(entry.path) for entry in entries if _SPARE.fullmatch(entry.name)]
        except FileNotFoundError:
            return []
        found = ((path, status_of(path)) for path in paths)
        return [(path, status) for path, status in found if status is not None]

    def _fitting(self, needed: int) -> list[tuple[int, Path]]:
        """Inodes and paths: the smallest first, and of these what is mapped here."""
        most = max(2 * needed, file_size(needed))
        found = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                match = _SPARE.fullmatch(entry.name)
                if match and needed <= int(match[1]) <= most:
                    inode = entry.inode()
                    key = int(match[1]), inode not in self._kept, entry.name
                    found.append((key, inode, Path(entry.path)))
        return [(inode, path) for _, inode, path in sorted(found)]

    def _lock(self, inode: int, path: Path, needed: int) -> WriteMapping | None:
        """None: in use, not there any more, or not what it says."""
        mapping = self._kept.take(inode)
        if mapping is None:
            try:
                fd = open_file(path, os.O_RDWR)
            except OSError:
                return None
        else:
            fd = mapping.fd
        try:
            if not try_lock(fd, fcntl.LOCK_EX):
                if mapping is None:
                    os.close(fd)
                else:  # its readers are not done yet
                    self._kept.keep(mapping)
                return None
            status = status_if_named(fd, path)
            # Pages that are missing would be asked for in the middle of copying: a bus error.
            if status and needed <= status.st_size <= status.st_blocks * 512:
                if mapping is None:
                    return WriteMapping(fd, status)
                if mapping.size == status.st_size:
                    return mapping
        except BaseException:
            os.close(fd) if mapping is None else mapping.discard()
            raise
        os.close(fd) if mapping is None else mapping.discard()
        return None

    def _allocate(self, size: int) -> tuple[int, Path]:
        while True:
            path = self.new_path(size)
            fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                os.fchmod(fd, self._mode & 0o666)
                if try_lock(fd, fcntl.LOCK_EX) and status_if_named(fd, path):
                    for start in range(0, size, _ALLOCATE_BYTES):
                        os.posix_fallocate(fd, start, min(_ALLOCATE_BYTES, size - start))
                    return fd, path
            except BaseException:
                path.unlink(missing_ok=True)
                os.close(fd)
                raise
            # Somebody looked at it, or took it away, before it was locked.
            path.unlink(missing_ok=True)
            os.close(fd)

    def _remove(self, path: Path) -> None:
        try:
            fd = open_file(path, os.O_RDWR)
        except OSError:  # gone already, or not a file
            return
        try:
            if try_lock(fd, fcntl.LOCK_EX) and status_if_named(fd, path):
                os.ftruncate(fd, 0)  # first: mappings that are kept would hold the memory
                path.unlink()
        finally:
            os.close(fd)
