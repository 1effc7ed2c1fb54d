"""A queue's files: where they lie, who may own them, how a segment comes to be.

A queue is a folder of its own: `segment` (mapped by everybody), `lock` (lock bytes), `bell-N` (the
doorbells). A segment is made under a temporary name, with all its memory allocated, and linked into
place when it is complete; so nobody ever sees half of one, and of two processes that make it at
once one wins and the other uses it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from taskiq_supervise.ipc._core import Core, initialize, segment_size
from taskiq_supervise.ipc.errors import QueueError, SegmentError

if TYPE_CHECKING:
    from taskiq_supervise.ipc.model import Geometry

QUEUE_DIRECTORY_VARIABLE = "TASKIQ_SUPERVISE_QUEUE_DIR"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

logger = logging.getLogger(__name__)


def default_base_directory() -> Path:
    """$TASKIQ_SUPERVISE_QUEUE_DIR, else a folder of the user's own below /dev/shm."""
    configured = os.environ.get(QUEUE_DIRECTORY_VARIABLE)
    if configured:
        return Path(configured).absolute()
    shm = Path("/dev/shm")
    if not shm.is_dir():
        raise SegmentError(
            f"{shm} does not exist on this machine; set {QUEUE_DIRECTORY_VARIABLE} "
            "to a folder on a tmpfs"
        )
    return shm / f"taskiq-supervise-{os.geteuid()}"


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise QueueError(
            f"queue name {name!r}: use letters, digits, '_', '-' and '.', at most 100, "
            "not starting with '.' or '-'"
        )
    return name


def _own_directory(path: Path) -> None:
    """Make the folder, or refuse one that somebody else could tamper with."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise SegmentError(f"queue folder {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SegmentError(f"queue folder {path} is not a folder")
    if found.st_uid != os.geteuid():
        raise SegmentError(
            f"queue folder {path} belongs to user {found.st_uid}, not to {os.geteuid()}: refused"
        )
    if found.st_mode & 0o022:
        raise SegmentError(
            f"queue folder {path} is writable for others (mode {stat.S_IMODE(found.st_mode):04o}): "
            "refused; chmod 700 it"
        )


def queue_directory(name: str, base: str | os.PathLike[str] | None = None) -> Path:
    """The queue's folder, made if need be. SegmentError: not usable."""
    parent = default_base_directory() if base is None else Path(base).absolute()
    _own_directory(parent)
    directory = parent / check_name(name)
    _own_directory(directory)
    return directory


def boot_id() -> bytes:
    return uuid.UUID(
        Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    ).bytes


def _create(path: Path, geometry: Geometry) -> None:
    try:
        size = segment_size(geometry.as_tuple())
    except ValueError as error:
        raise QueueError(f"{geometry}: out of range") from error
    temporary = path.with_name(f"segment.new-{os.getpid()}-{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise SegmentError(
                    f"no room for a queue of {size / 1e6:.0f} MB in {path.parent} "
                    f"({error.strerror}); free some, make the queue smaller (capacity=…), "
                    f"or set {QUEUE_DIRECTORY_VARIABLE}"
                ) from error
            raise
        initialize(fd, geometry.as_tuple(), boot_id())
        with suppress(FileExistsError):  # somebody else was faster: theirs is used
            os.link(temporary, path)
    finally:
        os.close(fd)
        temporary.unlink()


def _set_aside_of_another_boot(path: Path, core: Core, opened: os.stat_result) -> bool:
    """A segment of an earlier boot (the folder is on a disk): kept, but not trusted."""
    if core.boot_id() == boot_id():
        return False
    aside = path.with_name(f"segment.boot-{core.boot_id().hex()[:8]}-{time.time_ns()}")
    # One at a time, and only the file that was looked at: after a reboot several start at once, and
    # the name may be that of the new segment by now.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not os.path.samestat(path.stat(), opened):
            return True
        path.rename(aside)
    except FileNotFoundError:  # another process set it aside just now
        return True
    finally:
        os.close(folder)
    logger.warning(
        "queue segment %s is of an earlier boot: kept as %s, starting with an empty one",
        path,
        aside,
    )
    return True


def open_core(directory: Path, geometry: Geometry) -> Core:
    """Attach to the queue's segment, making it if there is none. SegmentError: refused, and why."""
    path = directory / "segment"
    for _ in range(8):  # each turn somebody else made or set aside the file
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            try:
                _create(path, geometry)
            except OSError as error:
                raise SegmentError(
                    f"cannot make the queue segment {path}: {error.strerror}"
                ) from error
            continue
        except OSError as error:
            raise SegmentError(f"cannot open the queue segment {path}: {error.strerror}") from error
        try:
            opened = os.fstat(fd)
            core = Core(fd)
        except SegmentError as error:
            raise SegmentError(
                f"{path} is not a queue segment this version can use: {error}; "
                "nothing was changed. If no program needs it any more, delete the file"
            ) from error
        finally:
            os.close(fd)
        if _set_aside_of_another_boot(path, core, opened):
            core.close()
            continue
        return core
    raise SegmentError(f"the queue segment {path} keeps disappearing")
