"""What was put into the queue of late, known to the next listener, however the last one ended.

A broker that publishes gives a copy to each listener that is there. In a reload two are, so the
one that takes over finds messages among its own that its predecessor has put. And who loses its
listener before it was acknowledged gives its message to the next one again. Both are told by their
digests, and only then: two messages may have the same bytes, as those of a task whose id is always
the same.

A ring in a mapped file, so that it takes no system call, and a killed process has written what it
has written. Only the holder of the baton writes.
"""

import mmap
import os
import time
from collections import Counter
from hashlib import blake2b
from pathlib import Path

SIZE = 16
"""Bytes of a digest."""
ROOM = 65_536
"""Digests. Two listeners are there for as long as it takes to start one, and to hand over."""
OLDEST = 3600.0
"""Seconds after which a message that was not acknowledged is not expected again."""
_HEAD = 8
_ENTRY = SIZE + 8
_SETTLED = 1
"""In place of the time: its broker does not give it to anybody again."""


class Seen:
    """The ring. To be closed."""

    def __init__(self, path: Path) -> None:
        size = _HEAD + ROOM * _ENTRY
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, size)
            self._memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)

    @staticmethod
    def digest(data: bytes) -> bytes:
        return blake2b(data, digest_size=SIZE).digest()

    @property
    def count(self) -> int:
        """How many were added so far, by this process and those before it."""
        return int.from_bytes(self._memory[:_HEAD], "little")

    def add(self, digest: bytes, *, settled: bool) -> int:
        """Remembers it in place of the oldest; returns its number.

        settled: it will not be acknowledged, or was.
        """
        number = self.count
        at = _place(number)
        value = _SETTLED if settled else time.time_ns()
        self._memory[at : at + _ENTRY] = digest + value.to_bytes(8, "little")
        # Last: killed before, nothing was added.
        self._memory[:_HEAD] = (number + 1).to_bytes(_HEAD, "little")
        return number

    def settle(self, number: int) -> None:
        """It was acknowledged; the same bytes are another message from now on."""
        if self.count - number <= ROOM:
            at = _place(number) + SIZE
            self._memory[at : at + 8] = _SETTLED.to_bytes(8, "little")

    def since(self, count: int) -> Counter[bytes]:
        """How often each was added since there were so many."""
        now = self.count
        return Counter(self._entry(number)[0] for number in range(max(count, now - ROOM), now))

    def unsettled(self) -> dict[bytes, int]:
        """Digest and number of each that may come again."""
        now, oldest = self.count, time.time_ns() - int(OLDEST * 1e9)
        found = {}
        for number in range(max(0, now - ROOM), now):
            digest, added = self._entry(number)
            if added > max(oldest, _SETTLED):
                found[digest] = number
        return found

    def _entry(self, number: int) -> tuple[bytes, int]:
        at = _place(number)
        entry = self._memory[at : at + _ENTRY]
        return entry[:SIZE], int.from_bytes(entry[SIZE:], "little")

    def close(self) -> None:
        self._memory.close()


def _place(number: int) -> int:
    return _HEAD + number % ROOM * _ENTRY
