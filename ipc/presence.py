"""Who is in a queue right now, and whether the queue is still there.

The segment says who joined; only a held lock byte proves that they live. Asking takes no lock and
needs no participant, so it hinders nobody.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.locks import open_lock_file, participant_byte
from taskiq_supervise.ipc.model import Participant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from taskiq_supervise.ipc._core import Core
    from taskiq_supervise.ipc.locks import LockFile

_NOBODYS_BYTE = 15
"""Below those of participants. Held only by who holds all bytes: who removes the queue."""

_FLOCK = struct.Struct("@hhqqi")  # l_type, l_whence, l_start, l_len, l_pid of <fcntl.h>


def joined(core: Core) -> Iterator[Participant]:
    """Those who have joined and not left; some of them may be dead."""
    for index in range(1, core.geometry()[2]):
        live, role, pid, guardian, tag, generation = core.participant(index)
        if live:
            yield Participant(index, role, pid, guardian, tag, generation)


def is_held(lock: LockFile, byte: int) -> bool:
    """Whether a living process holds the byte, this one and those of other containers included."""
    if byte in lock.mine:
        return True
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(lock.fd, fcntl.F_GETLK, request))
    return bool(kind != fcntl.F_UNLCK)


def is_at(lock: LockFile, path: Path) -> bool:
    """Whether the path (still) leads to this lock file."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == lock.identity


def is_being_removed(lock: LockFile) -> bool:
    return is_held(lock, _NOBODYS_BYTE)


def living(lock: LockFile, participants: Iterable[Participant]) -> Iterator[Participant]:
    """Those of the participants whose process lives."""
    return (one for one in participants if is_held(lock, participant_byte(one.index)))


def living_in(folder: Path, participants: Iterable[Participant]) -> list[Participant]:
    """As living(), for the folder of a queue. OSError: it has gone."""
    lock = open_lock_file(folder / "lock")
    try:
        return list(living(lock, participants))
    finally:
        lock.release()
