"""Messages to the service manager that started us: sd_notify(3), one datagram of `KEY=value` lines.

The address is taken out of the environment, so that no child speaks in our name.
"""

import errno
import os
import socket
from collections.abc import MutableMapping

_UNHEARD = {errno.ENOENT, errno.ECONNREFUSED, errno.ENOTCONN, errno.EAGAIN, errno.ENOBUFS}


class Notifier:
    """A socket to the service manager; without one (`address` empty) nothing is sent."""

    def __init__(self, address: str) -> None:
        """address: a path, or `@` and the name of an abstract socket. Raises ValueError."""
        if address and address[0] not in "/@":
            raise ValueError(f"NOTIFY_SOCKET is {address!r}, neither a path nor @NAME")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @classmethod
    def take_from(cls, environment: MutableMapping[str, str]) -> "Notifier":
        """The one that NOTIFY_SOCKET names, which is removed. Raises ValueError."""
        return cls(environment.pop("NOTIFY_SOCKET", ""))

    @property
    def heard(self) -> bool:
        """There is somebody to tell."""
        return self._socket is not None

    def send(self, **values: object) -> bool:
        """One message, e.g. `send(READY=1, STATUS="4 workers ready")`; whether it was taken.

        A service manager that is gone, or does not read, is no reason to fail or to wait.
        """
        if self._socket is None:
            return False
        lines = [f"{key}={_one_line(value)}" for key, value in values.items()]
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if error.errno in _UNHEARD:
                return False
            raise
        return True

    def send_alive(self) -> None:
        """The sign of life that a watchdog waits for."""
        self.send(WATCHDOG=1)

    def send_failure(self, code: int, message: str, errno: int = 0) -> None:
        """We end, and not because we were asked to. code: the exit status."""
        numbers: dict[str, int] = {"ERRNO": errno} if errno else {}
        self.send(STATUS=message, EXIT_STATUS=code, **numbers)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def watchdog_interval(environment: MutableMapping[str, str]) -> float | None:
    """Seconds between two signs of life that the service manager asks us for; None: it does not.

    Taken out of the environment: WATCHDOG_PID says whose they are, and no child is meant.
    """
    pid = environment.pop("WATCHDOG_PID", "")
    microseconds = environment.pop("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    # Half of the limit is what sd_watchdog_enabled(3) advises.
    return int(microseconds) / 1e6 / 2


def _one_line(value: object) -> str:
    return " ".join(str(value).split("\n")).strip()
