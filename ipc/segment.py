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
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from taskiq_supervise.ipc._core import Core, initialize, is_volatile, segment_size
from taskiq_supervise.ipc.access import Access, check_segment, new_file
from taskiq_supervise.ipc.errors import QueueError, QueueMissing, SegmentError
from taskiq_supervise.ipc.model import Geometry
from taskiq_supervise.ipc.salvage import carry_over

QUEUE_DIRECTORY_VARIABLE = "TASKIQ_SUPERVISE_QUEUE_DIR"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PRIVATE = Access()
_SHM = Path("/dev/shm")

logger = logging.getLogger(__name__)


def default_base_directory() -> Path:
    """$TASKIQ_SUPERVISE_QUEUE_DIR, else a folder of the user's own below /dev/shm."""
    configured = os.environ.get(QUEUE_DIRECTORY_VARIABLE)
    if configured:
        return Path(configured).absolute()
    if not _SHM.is_dir():
        raise SegmentError(
            f"{_SHM} does not exist on this machine; set {QUEUE_DIRECTORY_VARIABLE} "
            "to a folder on a tmpfs"
        )
    return _own_base_directory()


def _own_base_directory() -> Path:
    return _SHM / f"taskiq-supervise-{os.geteuid()}"


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise QueueError(
            f"queue name {name!r}: use letters, digits, '_', '-' and '.', at most 100, "
            "not starting with '.' or '-'"
        )
    return name


def queue_directory(
    name: str, base: str | os.PathLike[str] | None = None, access: Access = _PRIVATE
) -> Path:
    """The queue's folder, made if need be.

    SegmentError: not usable. FileNotFoundError: somebody removes the queue.
    """
    parent = default_base_directory() if base is None else Path(base).absolute()
    if access.is_shared and parent == _own_base_directory():
        raise SegmentError(
            f"queue {name!r} cannot be shared in {parent}, which is this user's own: say where all "
            f"its users find it (directory=…, or {QUEUE_DIRECTORY_VARIABLE})"
        )
    access.make_base(parent)
    directory = parent / check_name(name)
    access.make_folder(directory)
    return directory


def made_queue(
    name: str, base: str | os.PathLike[str] | None, geometry: Geometry, access: Access = _PRIVATE
) -> Path:
    """The folder of a queue, with a segment in it; both are made if need be."""
    directory = queue_directory(name, base, access)
    if not (directory / "segment").exists():
        open_core(directory, geometry).close()
    return directory


def existing_queue(
    name: str, base: str | os.PathLike[str] | None = None, access: Access | None = _PRIVATE
) -> Path:
    """The folder of a queue that is there. QueueMissing: none is; SegmentError: not usable.

    access: None takes it as it is.
    """
    parent = default_base_directory() if base is None else Path(base).absolute()
    directory = parent / check_name(name)
    with suppress(FileNotFoundError):
        asked = Access.found(directory) if access is None else access
        asked.check_base(parent)
        asked.check_folder(directory)
        if (directory / "segment").exists():
            return directory
    raise QueueMissing(f"there is no queue {name!r} in {parent}")


def boot_id() -> bytes:
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_bytes().decode().strip()).bytes


def _new_file(path: Path, geometry: Geometry) -> tuple[Path, int]:
    """A complete segment under a name of its own, and its descriptor."""
    try:
        size = segment_size(geometry.as_tuple())
    except ValueError as error:
        raise QueueError(f"{geometry}: out of range") from error
    temporary = path.with_name(f"segment.new-{os.getpid()}-{os.urandom(4).hex()}")
    _clear_leftovers(path.parent)
    fd = new_file(temporary, path.parent)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # somebody is at it: not a leftover
        os.posix_fallocate(fd, 0, size)
        initialize(fd, geometry.as_tuple(), boot_id(), not is_volatile(fd))
    except BaseException as error:
        os.close(fd)
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SegmentError(
                f"no room for a queue of {size / 1e6:.0f} MB in {path.parent} "
                f"({error.strerror}); free some, make the queue smaller (capacity=…), "
                f"or set {QUEUE_DIRECTORY_VARIABLE}"
            ) from error
        raise
    return temporary, fd


def _clear_leftovers(folder: Path) -> None:
    """What those left who were killed over it. Who loses its file just then begins again."""
    for path in folder.glob("segment.new-*"):
        # Another user's, who has just made it and is about to open it to the group, is none.
        with suppress(FileNotFoundError, PermissionError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                continue
            finally:
                os.close(fd)


def _create(path: Path, geometry: Geometry) -> None:
    temporary, fd = _new_file(path, geometry)
    try:
        with suppress(FileExistsError):  # somebody else was faster: theirs is used
            os.link(temporary, path)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)  # gone with the folder when the queue was removed


def _replace_of_another_boot(path: Path, core: Core, opened: os.stat_result) -> bool:
    """A segment of an earlier boot (the folder is on a disk): a new one takes its messages over."""
    if core.boot_id() == boot_id():
        return False
    # One at a time, and only the file that was looked at: after a reboot several start at once, and
    # the name may be that of the new segment by now.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.samestat(path.stat(), opened):
            _replace(path, core)
    except FileNotFoundError:  # the queue is being removed
        return True
    finally:
        os.close(folder)
    return True


def _replace(path: Path, old: Core) -> None:
    boot = old.boot_id().hex()[:8]
    aside, files_aside = (path.with_name(f"{name}.boot-{boot}") for name in ("segment", "files"))
    slots, inline_size, participants, blocks = old.geometry()
    temporary, fd = _new_file(path, Geometry(slots, inline_size, participants, blocks))
    try:
        new = Core(fd)
        try:
            found = carry_over(old, new, path.with_name("files"), files_aside)
        finally:
            new.close()
        aside.unlink(missing_ok=True)  # left by one who was interrupted after the next step
        os.link(path, aside)
        temporary.rename(path)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)
    where = f"; the old segment is kept as {aside}"
    if not found.damaged:
        where = ""
        aside.unlink()
        shutil.rmtree(files_aside, ignore_errors=True)
    logger.warning("queue segment %s is of an earlier boot: %s%s", path, found, where)


def open_core(directory: Path, geometry: Geometry | None) -> Core:
    """Attach to the queue's segment.

    Args:
        geometry: of the segment that is made if there is none; None: nothing is made or replaced.

    Raises:
        SegmentError: refused, and why. FileNotFoundError: it is not there, or the folder has gone.
    """
    path = directory / "segment"
    for _ in range(8):  # each turn somebody else made or replaced the file
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if geometry is None:
                raise
            try:
                _create(path, geometry)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise SegmentError(
                    f"cannot make the queue segment {path}: {error.strerror}"
                ) from error
            continue
        except OSError as error:
            raise SegmentError(f"cannot open the queue segment {path}: {error.strerror}") from error
        try:
            opened = os.fstat(fd)
            check_segment(path, opened)
            core = Core(fd)
        except SegmentError as error:
            raise SegmentError(
                f"{path} is not a queue segment this version can use: {error}; "
                "nothing was changed. If no program needs it any more, delete the file"
            ) from error
        finally:
            os.close(fd)
        if geometry is None and core.boot_id() != boot_id():
            core.close()
            raise SegmentError(
                f"{path} is of an earlier boot: whoever uses the queue next takes its messages over"
            )
        if _replace_of_another_boot(path, core, opened):
            core.close()
            continue
        return core
    raise SegmentError(f"the queue segment {path} keeps disappearing")
