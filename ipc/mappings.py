"""Mappings of payload files that are kept from one payload to the next.

Filling page tables costs more than moving the data. Measured with 100 MiB on a tmpfs: copying into
a mapping that is there 5.5 ms, into a new one 17 ms (43 ms when its pages are not asked for
together), with pwrite 16 ms; a sum over a mapping that is there 5.4 ms, over a new one 11.8 ms, and
2.3 ms to take that down again. So both sides keep theirs when they are done.

Who reads gets a private mapping: it can be written to, and neither the file nor the next reader
sees that. Whether somebody did is told by /proc/self/pagemap (0.9 ms); such a mapping is not kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT_COUNT = 16
KEPT_BYTES = 2 << 30
"""What a process keeps at most, for each of reading and writing: address space and page tables
(0.2 % of it); a file that nobody needs gives its pages back although it is mapped."""

# Between two pieces other threads can have the interpreter's lock: 8 MiB take half a millisecond.
_COPY_BYTES = 8 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module does not name it before Python 3.14
_PAGEMAP_ENTRY = 8
_HIGHEST_BYTE = 7 if sys.byteorder == "little" else 0
# The highest byte of a page's entry: not there; there and of the file (bits 63 and 61), mapped
# once (bit 56) or more often. Everything else is, or may be, a page of our own.
_UNTOUCHED = frozenset((0x00, 0xA0, 0xA1))


class _Mapping(Protocol):
    fd: int
    inode: int
    size: int

    def discard(self) -> None: ...


def _is_unlinked(fd: int) -> bool:
    try:
        return os.fstat(fd).st_nlink == 0
    except OSError:  # another thread has taken the mapping and closed it
        return False


_MappingT = TypeVar("_MappingT", bound=_Mapping)


class Kept(Generic[_MappingT]):
    """Mappings that nobody uses right now, by inode, the least recently used first.

    No lock: who takes one out of the dict has it alone, and a garbage collection that gives one
    back may come at any time, also while the same thread is in here.
    """

    def __init__(self) -> None:
        self._idle: dict[int, _MappingT] = {}
        self._closed = False
        _kept.add(self)

    def __contains__(self, inode: int) -> bool:
        return inode in self._idle

    def take(self, inode: int) -> _MappingT | None:
        return self._idle.pop(inode, None)

    def keep(self, mapping: _MappingT) -> None:
        if self._closed or self._idle.setdefault(mapping.inode, mapping) is not mapping:
            mapping.discard()
            return
        total = count = 0
        for inode in reversed(list(self._idle)):
            kept = self._idle.get(inode)
            if kept is None:
                continue
            total += kept.size
            count += 1
            if _is_unlinked(kept.fd) or total > KEPT_BYTES or count > KEPT_COUNT:
                self._discard(inode)

    def clear(self) -> None:
        for inode in list(self._idle):
            self._discard(inode)

    def close(self) -> None:
        """And nothing is kept from now on."""
        self._closed = True
        self.clear()

    def _discard(self, inode: int) -> None:
        mapping = self._idle.pop(inode, None)
        if mapping is not None:
            mapping.discard()


class WriteMapping:
    """A shared mapping of a whole file, to copy payloads into. Owns the descriptor."""

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.inode = status.st_ino
        self.size = status.st_size
        self._memory = mmap.mmap(fd, self.size)
        self._populated = 0

    def copy(self, pieces: list[tuple[int, memoryview]]) -> None:
        """Each piece to its offset. Whoever calls holds the file's exclusive lock."""
        end = max((offset + len(piece) for offset, piece in pieces), default=0)
        if end > self._populated:
            start = self._populated & -mmap.PAGESIZE
            with contextlib.suppress(OSError):  # an older kernel: they come one by one
                self._memory.madvise(_MADV_POPULATE_READ, start, end - start)
            self._populated = end
        with memoryview(self._memory) as target:
            for offset, piece in pieces:
                for done in range(0, len(piece), _COPY_BYTES):
                    part = piece[done : done + _COPY_BYTES]
                    target[offset + done : offset + done + len(part)] = part

    def discard(self) -> None:
        self._memory.close()
        os.close(self.fd)


class ReadMapping:
    """A private mapping of a whole file, lent out as memoryviews. Owns the descriptor.

    The shared lock that makes the memory stay as it is belongs to the descriptor; it is given up
    when the last memoryview (slice, array) that looks at the memory is gone.
    """

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.inode = status.st_ino
        self.size = status.st_size
        self.shared_with_child = False
        self._memory: mmap.mmap | None = mmap.mmap(fd, self.size, access=mmap.ACCESS_COPY)
        self._watch: weakref.ref[ctypes.Array[ctypes.c_ubyte]] | None = None
        self._address = 0

    def lend(self, returned: Callable[[ReadMapping], None]) -> memoryview:
        """All of it; `returned` is called when nobody looks at it any more, in whatever thread."""
        assert self._memory is not None
        # Every buffer made of the mapping keeps this array alive, and unlike memoryviews, which
        # have copies, its end can be observed.
        array = (ctypes.c_ubyte * self.size).from_buffer(self._memory)
        self._address = ctypes.addressof(array)
        self._watch = weakref.ref(array, lambda _: self._end(returned))
        _lent.add(self)
        return memoryview(array).cast("B")

    def _end(self, returned: Callable[[ReadMapping], None]) -> None:
        _lent.discard(self)
        self._watch = None
        # A child may still look at it: the lock has to end with the last copy of the descriptor,
        # the mapping's own included, not now.
        if self.shared_with_child:
            self.discard()
            return
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        if self._was_written():
            self.discard()
        else:
            returned(self)

    def _was_written(self) -> bool:
        """Whether there may be pages that are not the file's."""
        first, count = self._address // mmap.PAGESIZE, -(-self.size // mmap.PAGESIZE)
        try:
            fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # no /proc here
            return True
        try:
            entries = os.pread(fd, count * _PAGEMAP_ENTRY, first * _PAGEMAP_ENTRY)
        except OSError:  # a kernel without it
            return True
        finally:
            os.close(fd)
        highest = entries[_HIGHEST_BYTE::_PAGEMAP_ENTRY]
        return len(highest) != count or not _UNTOUCHED.issuperset(highest)

    def discard(self) -> None:
        # Not close(): this can come from within the last buffer's end. Without a reference the
        # mapping, and its copy of the descriptor, ends with that buffer.
        self._memory = None
        os.close(self.fd)


_lent: set[ReadMapping] = set()
_kept: weakref.WeakSet[Kept[Any]] = weakref.WeakSet()


def _share_with_child() -> None:
    for mapping in _lent.copy():
        mapping.shared_with_child = True


def _forget_in_child() -> None:
    """A lock is the parent's as well when it is taken through a descriptor that it has too."""
    for kept in list(_kept):
        kept.clear()


os.register_at_fork(before=_share_with_child, after_in_child=_forget_in_child)
