"""Log lines with fields of their own for systemd's journal, by its native protocol.

`journalctl -u NAME TASK_ID=…` finds what concerns a task. Described in
https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: one datagram per entry; what is too large for one goes
through a sealed memory file.
"""

import errno
import fcntl
import logging
import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

from taskiq_supervise.worker.log_style import facts

SOCKET = "/run/systemd/journal/socket"

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_LONGEST_NAME = 64
_SUPERVISOR = "taskiq_supervise"


def is_stderr_the_journal(environment: Mapping[str, str]) -> bool:
    """What we write to standard error goes into the journal: JOURNAL_STREAM names this very file.

    systemd.exec(5).
    """
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdecimal() and inode.isdecimal()):
        return False
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or not a file
        return False
    return (stderr.st_dev, stderr.st_ino) == (int(device), int(inode))


def priority(level: int) -> int:
    """syslog's, 0 to 7, of a level of logging."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


def field_name(name: str) -> str:
    """As the journal takes it: capitals, digits and underscores, beginning with a letter."""
    plain = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")
    return plain[:_LONGEST_NAME]


def encode(fields: Mapping[str, Any]) -> bytes:
    """An entry. Fields whose value is None, or whose name has no letter, are left out; those with
    a list are there once for each of its elements."""
    lines: list[bytes] = []
    for name, value in fields.items():
        if value is None or not name:
            continue
        several = value if isinstance(value, (list, tuple)) else (value,)
        lines += [_line(name.encode(), one) for one in several]
    return b"".join(lines)


def _line(key: bytes, value: Any) -> bytes:
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return key + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return key + b"=" + data + b"\n"


class JournalSocket:
    """Opened when it is first used, so that each process of a fork has its own."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._pid = 0

    def send(self, entry: bytes) -> None:
        """Raises OSError."""
        if self._pid != os.getpid():
            self.close()
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._pid = os.getpid()
        try:
            self._socket.sendto(entry, self._path)
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            self._send_file(self._socket, entry)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_file(self, sock: socket.socket, entry: bytes) -> None:
        fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(fd, "wb") as file:
            file.write(entry)
            file.flush()
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            # socket.send_fds() sends to no address.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]
            sock.sendmsg([], rights, 0, self._path)


class JournalHandler(logging.Handler):
    """Entries with MESSAGE, PRIORITY and what is known of the process and the task.

    A field of several values is there several times, which the journal takes: a line about three
    tasks is found by the TASK_ID of each.
    """

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._socket = JournalSocket(path)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {
                "MESSAGE": self.format(record),
                "PRIORITY": priority(record.levelno),
                "SYSLOG_IDENTIFIER": "taskiq-supervise",
                "LOGGER": record.name,
                "CODE_FILE": record.pathname,
                "CODE_LINE": record.lineno,
                "CODE_FUNC": record.funcName,
            }
            for name, value in facts(record).items():
                several = name == "tasks" and record.name == _SUPERVISOR
                fields.setdefault("TASK_ID" if several else field_name(name), value)
            self._socket.send(encode(fields))
        except Exception:
            self.handleError(record)
