"""Doorbells: one FIFO per participant, in the queue's folder.

A FIFO needs no descriptor passing between unrelated processes, and it tells of death: its owner
holds it open for reading and writing, so when the owner dies everybody's write end reports
EPOLLERR at once (measured: 43 µs). A full FIFO means "already rung".
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)


def bell_path(directory: Path, index: int) -> Path:
    return directory / f"bell-{index}"


class Doorbell:
    """The own bell: made before the participant is announced, removed before it is given up."""

    def __init__(self, directory: Path, index: int) -> None:
        self._path = bell_path(directory, index)
        self._path.unlink(missing_ok=True)  # left by a dead one; its index is ours now
        mode = Access.inside(directory).mode
        os.mkfifo(self._path, 0o600)
        self.fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.fchmod(self.fd, mode)  # whatever the umask is

    def close(self, *, remove: bool = True) -> None:
        if remove:
            self._path.unlink(missing_ok=True)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Ringer:
    """Rings the bells of others. Write ends are kept open, per participant and generation."""

    def __init__(self, directory: Path, generation_of: Callable[[int], int]) -> None:
        self._directory = directory
        self._generation_of = generation_of
        self._ends: dict[int, tuple[int, int]] = {}

    def ring(self, index: int) -> None:
        """Ring, whoever owns the index now. A bell whose owner is gone stays silent."""
        generation = self._generation_of(index)
        end = self._ends.get(index)
        if end is None or end[0] != generation:
            self.drop(index)
            try:
                fd = open_write_end(self._directory, index)
            except OSError as error:
                # What it is rung for is in the queue; it is found when the next one rings.
                logger.warning("cannot ring participant %d: %s", index, error)
                return
            if fd is None:
                return
            end = self._ends[index] = (generation, fd)
        try:
            os.write(end[1], b"\0")
        except BlockingIOError:
            return  # full: it has been rung and not answered yet
        except BrokenPipeError:
            self.drop(index)

    def drop(self, index: int) -> None:
        """Its owner has gone."""
        end = self._ends.pop(index, None)
        if end is not None:
            os.close(end[1])

    def close(self) -> None:
        for index in list(self._ends):
            self.drop(index)


def open_write_end(directory: Path, index: int) -> int | None:
    """None: nobody holds this bell. OSError: this process cannot open it (too many files)."""
    try:
        return os.open(bell_path(directory, index), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a FIFO without a reader
            return None
        raise
