"""Where a supervisor is found: the runtime directory, and in it one folder per instance.

    <runtime directory>/<instance name>/  lock  pid  board  control.sock

`lock` is the truth: whoever holds its flock is the instance, and a flock ends with its process, so
what a killed supervisor left is recognised without guessing from pids. The other files mean
nothing without it and are removed by whoever takes the lock next. The lock is looked at again after
it was taken, because a supervisor that ends removes the file while another may be opening it.

A Unix socket's path has 107 bytes at most. Folders may be deeper than that, so sockets are bound
and connected through /proc/self/fd/<folder>/control.sock, which is always short.
"""

import fcntl
import json
import os
import re
import shlex
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "TASKIQ_SUPERVISE_RUNTIME_DIR"
SYSTEM = Path("/run/taskiq-supervise")
"""Of root, and of services."""
SOCKET_NAME = "control.sock"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_BOARD = "board"
_FILES = (SOCKET_NAME, "pid")


class RuntimeDirectoryError(Exception):
    """The runtime directory or an instance's folder cannot be used; the message says why."""


class AlreadyRunning(RuntimeDirectoryError):
    """Another supervisor has this name."""


def runtime_directory(
    environment: Mapping[str, str] | None = None,
    *,
    root: bool | None = None,
    temporary: str | None = None,
) -> Path:
    """Where this user's instances are, by the first rule that applies. It may not exist yet.

    The arguments default to this process's environment, user and temp folder.
    """
    environ = os.environ if environment is None else environment
    if given := environ.get(ENVIRONMENT_VARIABLE):
        return Path(given).absolute()
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0]).absolute()  # systemd; several are joined by colons
    if os.geteuid() == 0 if root is None else root:
        return SYSTEM
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "taskiq-supervise"
    return Path(temporary or tempfile.gettempdir()) / f"taskiq-supervise-{os.geteuid()}"


def runtime_directories() -> tuple[Path, ...]:
    """Where this user looks for instances: in his own place, and among services."""
    own = runtime_directory()
    is_said = os.environ.get(ENVIRONMENT_VARIABLE) or os.environ.get("RUNTIME_DIRECTORY")
    return (own,) if is_said or own == SYSTEM else (own, SYSTEM)


def places() -> str:
    """The same, for people."""
    return " and ".join(map(str, runtime_directories()))


def find(name: str) -> Path:
    """The folder of an instance; where it would be, if there is none. Raises
    RuntimeDirectoryError."""
    folders = [base / check_instance_name(name) for base in runtime_directories()]
    return next((folder for folder in folders if _may_be_asked(folder)), folders[0])


def instance_name(app: str) -> str:
    """The name of an instance that was given none: `app:broker` becomes `app-broker`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", app)[:100].lstrip(".") or "default"


def is_instance_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and not name.startswith(".")


def check_instance_name(name: str) -> str:
    if not is_instance_name(name):
        raise RuntimeDirectoryError(
            f"{name!r} cannot be the name of an instance: letters, digits, '_', '-' and '.', "
            "at most 100 of them, the first not a '.'"
        )
    return name


@dataclass(frozen=True)
class Owner:
    """Who holds an instance's lock, as it wrote it down itself."""

    pid: int
    command: str


class Instance:
    """This process's claim on an instance's name, and its folder. Close it to give both up."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self.name = folder.name
        self._lock = lock
        self._directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def claim(cls, name: str, base: Path | None = None) -> "Instance":
        """Take the name, and clear what a killed supervisor left.

        Raises AlreadyRunning and RuntimeDirectoryError.
        """
        folder = _usable(base or runtime_directory(), check_instance_name(name)) / name
        instance = cls(folder, _lock(folder))
        try:
            instance._clear()
            instance._sign()
        except OSError as error:
            instance._release()
            raise _unusable(folder, error) from error
        return instance

    def board(self, pool: str) -> Path:
        """Of a pool; the name is empty where there is only one."""
        return self.folder / (f"{_BOARD}-{pool}" if pool else _BOARD)

    def listen(self) -> socket.socket:
        """The control socket: for this user only."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(_short_path(self._directory))
            listener.listen(16)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        return listener

    def close(self) -> None:
        """Remove the folder and release the name, in this order."""
        self._clear()
        with suppress(FileNotFoundError):
            (self.folder / "lock").unlink()
        with suppress(OSError):  # somebody keeps files of his own there, or a successor has come
            self.folder.rmdir()
        self._release()

    def _sign(self) -> None:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps({"pid": os.getpid(), "command": command}).encode(), 0)
        (self.folder / "pid").write_text(f"{os.getpid()}\n")

    def _release(self) -> None:
        os.close(self._directory)
        os.close(self._lock)

    def _clear(self) -> None:
        for file in (*(self.folder / name for name in _FILES), *self.folder.glob(f"{_BOARD}*")):
            with suppress(FileNotFoundError):
                file.unlink()


def instances(base: Path | None = None) -> Iterator[Path]:
    """Folders of instances that may be running, by name. Dead ones are among them.

    What has a name that no instance can have is somebody else's.
    """
    for directory in runtime_directories() if base is None else (base,):
        try:
            entries = sorted(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        for folder in entries:
            if is_instance_name(folder.name) and _may_be_asked(folder):
                yield folder


def _may_be_asked(folder: Path) -> bool:
    """An instance may be running there, of this user or for root to see."""
    try:
        found = (folder / SOCKET_NAME).stat()
    except OSError:  # there is none, or it is behind a closed door
        return False
    return os.geteuid() in (0, found.st_uid) or folder.parent != SYSTEM


@contextmanager
def socket_path(folder: Path) -> Iterator[str]:
    """A path to connect to an instance's control socket by, however long the folder's is."""
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _short_path(directory)
    finally:
        os.close(directory)


def _short_path(directory: int) -> str:
    return f"/proc/self/fd/{directory}/{SOCKET_NAME}"


def _usable(base: Path, name: str) -> Path:
    """The runtime directory, made if need be, ours to trust, and to make the instance's folder in,
    unless that is there: systemd makes it for a service."""
    try:
        # Services of other users have to get through root's to their own folders in it.
        base.mkdir(mode=0o755 if base == SYSTEM else 0o700, parents=True, exist_ok=True)
        found, entry = base.stat(), base.lstat()
    except OSError as error:
        raise RuntimeDirectoryError(
            f"the runtime directory {base} cannot be made ({error.strerror}); "
            f"set {ENVIRONMENT_VARIABLE} to a directory that you may write to"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise RuntimeDirectoryError(f"the runtime directory {base} is not a directory")
    others_may_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # In a shared temp folder the entry itself could be somebody's link to a place of ours.
    if not {found.st_uid, entry.st_uid} <= {os.geteuid(), 0} or others_may_write:
        raise RuntimeDirectoryError(
            f"the runtime directory {base} belongs to uid {entry.st_uid} with mode "
            f"{stat.S_IMODE(found.st_mode):04o}: others could put their sockets there; "
            f"set {ENVIRONMENT_VARIABLE} to a directory that only you can write to"
        )
    if not os.access(base, os.W_OK | os.X_OK) and not os.access(base / name, os.W_OK | os.X_OK):
        raise RuntimeDirectoryError(
            f"the runtime directory {base} is not writable; "
            f"set {ENVIRONMENT_VARIABLE} to a directory that you may write to"
        )
    return base


def _unusable(folder: Path, error: OSError) -> RuntimeDirectoryError:
    return RuntimeDirectoryError(
        f"{folder} cannot be used ({error}); choose another --name or remove what is there"
    )


def _lock(folder: Path) -> int:
    while True:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # its last owner removed the folder in between
            continue
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            first = _read_owner(fd)
            os.close(fd)
            raise AlreadyRunning(
                f"an instance named {folder.name!r} is already running: pid {first.pid}, "
                f"started as: {first.command}. Stop it, or choose another --name"
            ) from None
        if _is_still(folder / "lock", fd):
            return fd
        os.close(fd)


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _read_owner(fd: int) -> Owner:
    try:
        written = json.loads(os.pread(fd, 65536, 0))
        return Owner(int(written["pid"]), str(written["command"]))
    except (ValueError, KeyError, TypeError):
        return Owner(0, "unknown: it is just starting")
