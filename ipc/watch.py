"""Watching doorbells: a process that dies lets go of its bell, and whoever holds the other end is
told at once."""

from __future__ import annotations

import logging
import os
import select
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.doorbell import open_write_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from taskiq_supervise.ipc._core import Core

logger = logging.getLogger(__name__)


class Watch:
    """The bells that are watched, by participant."""

    def __init__(self, directory: Path, core: Core) -> None:
        self._directory = directory
        self._core = core
        # An epoll of its own, because loops differ in what they make of EPOLLERR on a write end.
        self._epoll = select.epoll()
        # participant: its generation, the write end of its bell
        self._watched: dict[int, tuple[int, int]] = {}
        self._by_fd: dict[int, int] = {}

    def fileno(self) -> int:
        """Readable when deaths() has something to tell."""
        return self._epoll.fileno()

    def add(self, index: int) -> bool:
        """False: nobody holds that bell any more."""
        generation = self._core.generation(index)
        watched = self._watched.get(index)
        if watched is not None and watched[0] == generation:
            return True
        self._remove(index)
        try:
            fd = open_write_end(self._directory, index)
        except OSError as error:
            logger.warning("cannot watch over participant %d: %s", index, error)
            return True
        if fd is None:
            return False
        self._watched[index] = (generation, fd)
        self._by_fd[fd] = index
        self._epoll.register(fd, 0)  # EPOLLERR is always reported: no reader is left
        return True

    def _remove(self, index: int) -> None:
        watched = self._watched.pop(index, None)
        if watched is not None:
            del self._by_fd[watched[1]]
            self._epoll.unregister(watched[1])
            os.close(watched[1])

    def clear(self) -> None:
        for index in list(self._watched):
            self._remove(index)

    def deaths(self) -> Iterator[tuple[int, int]]:
        """Participant and generation of those who let go of their bells; no longer watched."""
        for fd, _ in self._epoll.poll(0):
            index = self._by_fd.get(fd)
            if index is not None:
                generation = self._watched[index][0]
                self._remove(index)
                yield index, generation

    def close(self) -> None:
        self.clear()
        self._epoll.close()
