"""Named files for payloads that are larger than the segment's blocks.

A file is named for its message by whoever calls, and mapped by who receives it. It gets its name
when it is complete, and loses it, to become a spare that is written again, when it is not needed
any more. A writer holds the file's exclusive lock, a reader the shared one for as long as anything
looks at the memory; so a spare is never written under a reader's eyes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
from pickle import PickleBuffer
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.errors import QueueError, SegmentError
from taskiq_supervise.ipc.mappings import Kept, ReadMapping
from taskiq_supervise.ipc.spares import (
    SPARE_BYTES,
    SPARE_SECONDS,
    Spares,
    file_size,
    make_folder,
    open_file,
    status_if_named,
    status_of,
    try_lock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

ALIGNMENT = 64
"""Bytes: a cache line, and what any element of an array can ask for."""

_NAME = re.compile(r"[a-z]+(-[0-9]+)+")


def offsets(lengths: Iterable[int]) -> tuple[list[int], int]:
    """Where each piece starts, and where the last one ends."""
    starts, end = [], 0
    for length in lengths:
        if length < 0:
            raise ValueError(f"length {length}: must not be negative")
        starts.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = starts[-1] + length
    return starts, end


class PayloadFiles:
    """The payload files of one queue. Safe in threads and across fork.

    Args:
        directory: the folder, made when it is first needed; its parent exists.
        mode: of the folder; the files get its read and write bits.
    """

    def __init__(self, directory: Path, mode: int = 0o700) -> None:
        self._directory = directory
        self._mode = mode
        self._spares = Spares(directory / "spares", mode)
        self._readers: Kept[ReadMapping] = Kept()

    def write(self, name: str, buffers: Sequence[Buffer]) -> None:
        """Make the file of all buffers, each at a multiple of 64 bytes; completely or not at all.

        FilesFull: no room. SegmentError: the folder cannot be used. BufferError: a buffer is not
        contiguous.
        """
        path = self._path(name)
        views = [_flat(buffer) for buffer in buffers]
        starts, needed = offsets(map(len, views))
        pieces = list(zip(starts, views, strict=True))
        try:
            self._make_folders()
            if not self._write_spare(path, pieces, needed):
                self._write_new(path, pieces, file_size(needed))
        except OSError as error:
            raise SegmentError(f"cannot write payload file {path}: {error.strerror}") from error

    def map(self, name: str, lengths: Sequence[int]) -> tuple[memoryview, ...]:
        """The buffers of these lengths in bytes, writable; nobody else sees what is written.

        FileNotFoundError: no such file. SegmentError: not a file, or shorter than it must be.
        OSError: this process cannot map it (too many files, no address space).
        """
        path = self._path(name)
        starts, needed = offsets(lengths)
        memory: memoryview | None = None
        while memory is None:
            memory = self._look(path, needed)
        return tuple(memory[start : start + n] for start, n in zip(starts, lengths, strict=True))

    def drop(self, name: str) -> None:
        """The payload is not needed any more. Who looks at it may go on doing so."""
        path = self._path(name)
        found = status_of(path)
        if found is None or not stat.S_ISREG(found.st_mode):
            return
        self._make_folders()
        try:
            path.rename(self._spares.new_path(found.st_size))
        except FileNotFoundError:  # another process dropped it just now
            return
        self._spares.trim()

    def rename(self, old: str, new: str) -> None:
        """FileNotFoundError: no file of the old name."""
        self._path(old).rename(self._path(new))

    def sweep(self, is_needed: Callable[[str], bool]) -> int:
        """Drop every file whose name is not needed, and trim the spares; returns how many.

        A name is needed from before write() on, also while its put is not complete.
        """
        unneeded = [name for name in self.names() if not is_needed(name)]
        for name in unneeded:
            self.drop(name)
        self._spares.trim()
        return len(unneeded)

    def trim(self, spare_bytes: int = SPARE_BYTES, seconds: float = SPARE_SECONDS) -> None:
        """Give back the memory of spares, down to so many bytes and those younger than that."""
        self._spares.trim(spare_bytes, seconds)

    def names(self) -> list[str]:
        """Files that belong to a message. What else lies in the folder is not ours."""
        try:
            with os.scandir(self._directory) as entries:
                return [
                    entry.name
                    for entry in entries
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return []

    def capacity(self) -> int:
        """Bytes that files may take: all of the file system, or of the machine's memory."""
        found = os.statvfs(self._directory.parent)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(found.f_frsize * found.f_blocks, memory)

    def total_bytes(self) -> int:
        """Of all files, spares included."""
        found = (status_of(self._directory / name) for name in self.names())
        named = sum(status.st_size for status in found if status is not None)
        return named + self._spares.total_bytes()

    def close(self) -> None:
        """Unmap what nobody looks at now, and what somebody looks at when they are done."""
        self._readers.close()
        self._spares.close()

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise QueueError(f"payload file name {name!r}: must be like 'q-12-345'")
        return self._directory / name

    def _make_folders(self) -> None:
        make_folder(self._directory, self._mode)
        self._spares.make_folder()

    def _write_spare(self, path: Path, pieces: list[tuple[int, memoryview]], needed: int) -> bool:
        taken = self._spares.take(needed)
        if taken is None:
            return False
        mapping, spare = taken
        try:
            mapping.copy(pieces)
            spare.rename(path)
        except BaseException:
            mapping.discard()
            raise
        self._spares.give_back(mapping)
        return True

    def _write_new(self, path: Path, pieces: list[tuple[int, memoryview]], size: int) -> None:
        # Not through a mapping: the kernel would clear each page before it is written (78 ms).
        fd, spare = self._spares.make(size)
        try:
            for offset, piece in pieces:
                done = 0
                while done < len(piece):
                    done += os.pwrite(fd, piece[done:], offset + done)
            spare.rename(path)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor
            os.close(fd)

    def _look(self, path: Path, needed: int) -> memoryview | None:
        """The file's memory, which stays as it is. None: the name went to another file just now."""
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise SegmentError(f"payload file {path} is not a file")
        if found.st_size < max(needed, 1):
            raise SegmentError(
                f"payload file {path} has {found.st_size} bytes, {needed} are needed: damaged"
            )
        mapping = self._readers.take(found.st_ino)
        fd = open_file(path, os.O_RDONLY) if mapping is None else mapping.fd
        lent = False
        try:
            locked = try_lock(fd, fcntl.LOCK_SH)
            status = status_if_named(fd, path)
            if status is None or status.st_size < needed:
                return None
            if not locked:
                return self._copy_of(fd, path, needed)
            if mapping is None:
                mapping = ReadMapping(fd, status)
            elif mapping.size != status.st_size:
                return None
            memory = mapping.lend(self._readers.keep)
            lent = True
            return memory
        finally:
            if not lent:
                os.close(fd) if mapping is None else mapping.discard()

    def _copy_of(self, fd: int, path: Path, needed: int) -> memoryview | None:
        """For the moment in which somebody tries the lock for a spare that the file was before.

        They could be stopped in it, so nobody waits for them. The content cannot change while the
        file has its name, so a copy is good if it still has it afterwards.
        """
        memory = memoryview(mmap.mmap(-1, max(needed, 1)))
        done = 0
        while done < needed:
            read = os.preadv(fd, [memory[done:]], done)
            if read == 0:
                raise SegmentError(f"payload file {path} became shorter: damaged")
            done += read
        return memory if status_if_named(fd, path) else None


def _flat(buffer: Buffer) -> memoryview:
    """Its bytes in the order of memory. BufferError: it is not contiguous."""
    view = memoryview(buffer)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        # Not a view of a view: CPython before 3.12.7 crashes when it collects one (gh-77894), as
        # part of the traceback of a FilesFull, for example.
        return view
    return PickleBuffer(buffer).raw()
