"""What the supervisor says and hands over when it orders a worker."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ForkOrder:
    """Which worker to fork."""

    slot: int
    """Its position in the pool, as people see it."""
    generation: int
    """Which of the slot's workers, one after the other."""
    seat: int
    """Its section of the board."""
    max_tasks: int | None
    """After so many it asks to be replaced."""
    board: str
    instance: str
    pool: str
    """Empty for the only one of an instance."""
    guardian: int
    """The supervisor's place in the queue; 0 if there is none."""
    supervisor_pid: int

    @property
    def is_listener(self) -> bool:
        """Of the process that listens for all workers; their slots are 0 and up."""
        return self.slot < 0

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "ForkOrder":
        """Raises KeyError, ValueError or TypeError for a message that is none."""
        return cls(
            slot=int(message["slot"]),
            generation=int(message["generation"]),
            seat=int(message["seat"]),
            max_tasks=None if message["max_tasks"] is None else int(message["max_tasks"]),
            board=str(message["board"]),
            instance=str(message["instance"]),
            pool=str(message["pool"]),
            guardian=int(message["guardian"]),
            supervisor_pid=int(message["supervisor_pid"]),
        )


class NoDescriptors(Exception):
    """There was no room in this process for those of an order."""


@dataclass(frozen=True)
class Descriptors:
    """What comes with an order, in this order."""

    link: int
    stacks: int
    """The end of a pipe to write stacks to; it never blocks."""
    timer: int
    """A timerfd: it rings at the supervisor when a task is overdue."""

    @classmethod
    def of_message(cls, fds: list[int]) -> "Descriptors":
        """All that came with one order. Raises NoDescriptors, and closes them, if some are missing.

        Those of the next order must never make up for them: its worker would then have the link
        of another.
        """
        if len(fds) == len(fields(cls)):
            return cls(*fds)
        for fd in fds:
            os.close(fd)
        raise NoDescriptors(
            f"[Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}: {len(fds)} of "
            f"{len(fields(cls))} descriptors have come"
        )

    def close(self) -> None:
        for fd in (self.link, self.stacks, self.timer):
            os.close(fd)
