"""Room that is kept for the ends of tasks: when the disk is full, no new ones are taken.

Ends have to be written before they make room, and the disk may be full of messages that wait for
just that. So a file takes some room that it does not need, and goes when there is no other.
"""

import os
import time
from pathlib import Path
from typing import Final

SIZE: Final = 16 * 1024 * 1024
"""Bytes: what the store's log takes between two checkpoints."""
_LOOK_AGAIN = 1.0
"""Seconds."""


class Reserve:
    """The file. Made when there is room, which may be later."""

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        self._path = folder / "reserve"
        self._size = size
        self._next_look = 0.0
        self._there = False

    @property
    def is_there(self) -> bool:
        """Whether there is room for new messages."""
        if not self._there and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_AGAIN
            self._there = self._make()
        return self._there

    def _make(self) -> bool:
        fd = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size)
        except OSError:
            self._path.unlink()
            return False
        finally:
            os.close(fd)
        return True

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)
        self._there = False
        self._next_look = time.monotonic() + _LOOK_AGAIN

    def close(self) -> None:
        """It takes no room while nobody needs it."""
        self._path.unlink(missing_ok=True)
        self._there = False
