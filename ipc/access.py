"""Who may use a queue: its maker alone, a group of users, or everybody.

A queue's folder says it, and everything in it follows the folder, so that whatever one user makes
another can open, replace and remove. Its group comes by itself, from the folder's setgid bit. What
has to be usable by others from its first moment is made under another name, because the umask
takes rights away that only a second step gives.

Who uses a queue trusts everybody who may use it, and nobody else: its folder and the one that holds
it must not be what a stranger can make, or put another in the place of.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskiq_supervise.ipc.errors import QueueError, SegmentError

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE, GROUP, EVERYBODY = 0o600, 0o660, 0o666
_FOLDER_MODES = {PRIVATE: 0o700, GROUP: 0o2770, EVERYBODY: 0o2777}
# Where everybody makes queues, nobody may replace those of others.
_BASE_MODES = {PRIVATE: 0o700, GROUP: 0o2770, EVERYBODY: 0o1777}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # <fcntl.h>, <linux/fs.h>
_NO_ID = (1 << 32) - 1
_MAKING = ".new-"
"""How the name of a folder begins that has not got its own yet. No queue's name has a dot first."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a queue.

    Attributes:
        mode: of the files: 0o600, 0o660 or 0o666.
        gid: the group, with 0o660.
    """

    mode: int = PRIVATE
    gid: int | None = None

    @classmethod
    def of(cls, mode: int | None, group: str | int | None) -> Access:
        """As users of the queue say it. QueueError: it makes no sense, or not for this process."""
        mode = check(mode, group)
        if mode != GROUP:
            return cls(mode)
        gid = os.getegid() if group is None else _gid(group)
        if os.geteuid() != 0 and not _is_member(gid):
            raise QueueError(
                f"user {os.geteuid()} is not in group {_group_name(gid)} (or was not when this "
                "session began): it cannot use a queue of that group"
            )
        return cls(mode, gid)

    @classmethod
    def inside(cls, folder: Path) -> Access:
        """What the things in a queue's folder follow. OSError: there is no such folder."""
        found = folder.stat()
        if found.st_mode & stat.S_IWOTH:
            return cls(EVERYBODY)
        return cls(GROUP, found.st_gid) if found.st_mode & stat.S_IWGRP else cls()

    @classmethod
    def found(cls, folder: Path) -> Access:
        """Of a queue that is looked at as it is: one's own, or shared with oneself on purpose.

        Root is in no group by being root: a folder that others can write must not be made to look
        like something that root would use.

        Raises:
            SegmentError: shared, but not with this user. FileNotFoundError: no such folder.
        """
        found = _status(folder)
        own, user = found.st_uid == os.geteuid(), os.geteuid()
        mode = stat.S_IMODE(found.st_mode)
        if mode == _FOLDER_MODES[GROUP]:
            if own or _is_member(found.st_gid):
                return cls(GROUP, found.st_gid)
            raise SegmentError(
                f"queue folder {folder} is shared by group {_group_name(found.st_gid)}, which user "
                f"{user} is not in: run this as somebody who is"
            )
        if mode == _FOLDER_MODES[EVERYBODY]:
            if own or user != 0:
                return cls(EVERYBODY)
            raise SegmentError(
                f"queue folder {folder} is open to everybody and belongs to user {found.st_uid}: "
                "run this as another user than root"
            )
        return cls()

    @property
    def is_shared(self) -> bool:
        return self.mode != PRIVATE

    @property
    def folder_mode(self) -> int:
        return _FOLDER_MODES[self.mode]

    def __str__(self) -> str:
        """As it is asked for."""
        group = "" if self.gid is None else f", group={_group_name(self.gid)}"
        return f"mode=0o{self.mode:o}{group}"

    def make_base(self, path: Path) -> None:
        """The folder that holds queues. SegmentError: not to be used."""
        self._make(path, _BASE_MODES[self.mode])
        self.check_base(path)

    def make_folder(self, path: Path) -> None:
        """A queue's folder. SegmentError: not to be used. FileNotFoundError: gone just now."""
        self._make(path, self.folder_mode)
        self.check_folder(path)

    def _make(self, path: Path, mode: int) -> None:
        try:
            if self.is_shared:
                make_folder(path, mode, self.gid)
            else:
                with suppress(FileExistsError):  # what it is is looked at now
                    path.mkdir(mode=mode, parents=True)
        except OSError as error:
            raise SegmentError(f"queue folder {path}: {error.strerror}") from error

    def check_base(self, path: Path) -> None:
        """SegmentError: a stranger could put another queue's folder in the place of the queue's.
        FileNotFoundError: not there (any more)."""
        found = _status(path)
        if not self.is_shared:
            _check_private(path, found)
            return
        mode, sticky = stat.S_IMODE(found.st_mode), found.st_mode & stat.S_ISVTX
        what = f"folder {path} (user {found.st_uid}, group {found.st_gid}, mode {mode:04o})"
        if not self._may_own(path, found):
            raise SegmentError(
                f"{what} cannot hold a queue with {self}: its owner could put another in its place"
            )
        known = found.st_gid in (0, self.gid) or self.mode == EVERYBODY
        if not sticky and (mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not known)):
            raise SegmentError(
                f"{what} cannot hold a queue with {self}: others could put another in its place; "
                "chmod +t it, or let only its owner and the group write to it"
            )
        if not mode & (stat.S_IXGRP | stat.S_IXOTH):
            raise SegmentError(
                f"{what} cannot hold a queue with {self}: nobody else can get into it; "
                "chmod it, or use another"
            )

    def check_folder(self, path: Path) -> None:
        """SegmentError: not what was asked for. FileNotFoundError: not there (any more)."""
        found = _status(path)
        if not self.is_shared:
            _check_private(path, found)
            return
        mode = stat.S_IMODE(found.st_mode)
        if mode != self.folder_mode or self.gid not in (None, found.st_gid):
            group = "" if self.gid is None else f"group {self.gid} and "
            raise SegmentError(
                f"queue folder {path} has group {found.st_gid} and mode {mode:04o}; {self} needs "
                f"{group}mode {self.folder_mode:04o}: open it as it was made, or destroy it first"
            )
        if not self._may_own(path, found):
            raise SegmentError(
                f"queue folder {path} belongs to user {found.st_uid}, who is not known to be of "
                f"group {found.st_gid}: {path.parent} gives it to whatever anybody makes there; "
                "refused; let that one have another group"
            )

    def _may_own(self, path: Path, found: os.stat_result) -> bool:
        """Made by one of those who may use the queue."""
        if found.st_uid in (os.geteuid(), 0) or self.mode == EVERYBODY:
            return True
        # Nobody can give a file to a group that he is not in, but a folder with that group may do
        # it for him.
        around = path.parent.stat()
        given = around.st_gid == self.gid and around.st_mode & stat.S_IWOTH
        return found.st_gid == self.gid and not given


def check(mode: object, group: object) -> int:
    """The mode. QueueError: nobody could mean this."""
    if not isinstance(mode, int) or mode not in _FOLDER_MODES:
        shown = f"0o{mode:o} ({mode})" if isinstance(mode, int) else repr(mode)
        raise QueueError(
            f"mode {shown}: use 0o600 (one user), 0o660 (a group) or 0o666 (everybody)"
        )
    if group is not None and mode != GROUP:
        raise QueueError(f"group {group!r} with mode 0o{mode:o}: only 0o660 is for a group")
    if group is not None and (isinstance(group, bool) or not isinstance(group, (int, str))):
        raise QueueError(f"group {group!r}: use its name or its number")
    return mode


def check_segment(path: Path, opened: os.stat_result) -> None:
    """Of a shared queue. SegmentError: others could not use it, or it is none of theirs."""
    access = Access.inside(path.parent)
    mode = stat.S_IMODE(opened.st_mode)
    if access.is_shared and (mode != access.mode or access.gid not in (None, opened.st_gid)):
        raise SegmentError(
            f"it has group {opened.st_gid} and mode {mode:04o}, its folder is for {access}"
        )


def make_folder(path: Path, mode: int, gid: int | None = None) -> None:
    """Make a folder that has its mode and group from the moment that it has its name.

    What is there already is left as it is. OSError: it cannot be made.
    """
    for left in () if os.path.lexists(path) else path.parent.glob(f"{_MAKING}{path.name}-*"):
        with suppress(OSError):  # of somebody who was killed; or he is about to try again
            left.rmdir()
    while not os.path.lexists(path):
        temporary = path.with_name(f"{_MAKING}{path.name}-{os.urandom(4).hex()}")
        temporary.mkdir(0o700)
        try:
            if gid not in (None, temporary.stat().st_gid):
                os.chown(temporary, -1, gid)
            _set_mode(temporary, mode, gid)
            _rename_to_new(temporary, path)
        except FileNotFoundError:  # taken for one that was left
            continue
        except OSError as error:
            with suppress(FileNotFoundError):
                temporary.rmdir()
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not os.path.lexists(path):
                raise


def _set_mode(folder: Path, mode: int, gid: int | None) -> None:
    """Of a new folder. A service with systemd's RestrictSUIDSGID= may not ask for the setgid bit,
    but a folder still gets it, and its group, from the one that it is made in."""
    try:
        folder.chmod(mode)
    except PermissionError:
        folder.rmdir()
        umask = os.umask(0o777 & ~mode)
        try:
            folder.mkdir(mode & 0o777)
        finally:
            os.umask(umask)
        made = folder.stat()
        if stat.S_IMODE(made.st_mode) != mode or gid not in (None, made.st_gid):
            raise


def _rename_to_new(old: Path, new: Path) -> None:
    """FileExistsError: the name is taken. A plain rename would replace a folder that is empty, and
    who is making the first file in it would find it gone."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        paths = os.fsencode(old), os.fsencode(new)
        if renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):  # not on this file system, or kernel
            raise OSError(number, os.strerror(number), str(new))
    old.rename(new)


def new_file(path: Path, folder: Path) -> int:
    """Descriptor of a new file in a queue's folder (or deeper), for those who may use the queue.

    FileExistsError, OSError.
    """
    mode = Access.inside(folder).mode
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _status(path: Path) -> os.stat_result:
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SegmentError(f"queue folder {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SegmentError(f"queue folder {path} is not a folder")
    return found


def _check_private(path: Path, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    shared = Access(GROUP, found.st_gid)
    if mode == _FOLDER_MODES[EVERYBODY]:
        shared = Access(EVERYBODY)
    if found.st_uid != os.geteuid():
        raise SegmentError(
            f"queue folder {path} belongs to user {found.st_uid}, not to {os.geteuid()}: refused; "
            f"if its queue is shared on purpose, open it with {shared}"
        )
    if mode & 0o022:
        raise SegmentError(
            f"queue folder {path} is writable for others (mode {mode:04o}): refused; chmod 700 it "
            f"or, if its queue is shared on purpose, open it with {shared}"
        )


def _is_member(gid: int) -> bool:
    return gid == os.getegid() or gid in os.getgroups()


def _gid(group: str | int) -> int:
    if isinstance(group, int):
        if not 0 <= group < _NO_ID:
            raise QueueError(f"group {group}: no group has this number")
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise QueueError(f"group {group!r}: there is none of this name on this machine") from None


def _group_name(gid: int) -> str:
    """As Python would write it: 'data', or the number of one that has no name."""
    try:
        return repr(grp.getgrgid(gid).gr_name)
    except KeyError:
        return str(gid)
