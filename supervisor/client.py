"""Talking to running supervisors from Python; the commands of the CLI do no more than this.

    from taskiq_supervise.supervisor.client import Client, statuses
    Client("app-broker").status()["workers"]

Plain blocking sockets with a time limit: a client is a short visit, and must end even when the
supervisor it visits is stopped. Who waits for the end of a reload stays for as long as that takes.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

from taskiq_supervise.supervisor.control import peer_uid
from taskiq_supervise.supervisor.runtime import (
    check_instance_name,
    find,
    instances,
    socket_path,
)

TIMEOUT = 5.0


class ControlError(Exception):
    """A supervisor answered that it cannot do what was asked; the message is its own."""


class NotRunning(ControlError):
    """There is no supervisor of this name."""


class NotResponding(ControlError):
    """There is one, and it does not answer in time."""


class Client:
    """One running instance. Every request is a connection of its own."""

    def __init__(self, name: str, base: Path | None = None, *, timeout: float = TIMEOUT) -> None:
        self.name = check_instance_name(name)
        self.folder = find(name) if base is None else base / name
        self._timeout = timeout

    def status(self) -> dict[str, Any]:
        """The instance as `taskiq-supervise status --json` describes it."""
        result: dict[str, Any] = self.request("status")
        return result

    def reload(self, *, wait: bool = False, pool: str | None = None) -> dict[str, Any]:
        """Let new workers with the code that is there now take over, in one pool or in all.

        `wait`: until they have, or the old ones have stayed: then `ok` is false, `message` says
        why, and so does each of `pools`, with its `traceback`. Without it `ok` is None.
        """
        arguments = {"wait": wait, "pool": pool}
        result: dict[str, Any] = self._ask("reload", arguments, None if wait else self._timeout)
        return result

    def scale(
        self, *, workers: int | None = None, by: int | None = None, pool: str | None = None
    ) -> dict[str, Any]:
        """Set the number of workers, or change it `by` some; `pool` may be left out if it is one.

        Returns `pool`, and the number `before` and now as `workers`.
        """
        if (workers is None) == (by is None):
            raise ValueError("either workers or by, not both")
        size = {"workers": workers} if by is None else {"by": by}
        result: dict[str, Any] = self.request("scale", **size, pool=pool)
        return result

    def request(self, command: str, **arguments: Any) -> Any:
        """Send one command and return its result.

        Raises NotRunning, NotResponding, or ControlError with the supervisor's own words.
        """
        return self._ask(command, arguments, self._timeout)

    def _ask(self, command: str, arguments: dict[str, Any], patience: float | None) -> Any:
        line = json.dumps({"command": command, **arguments}).encode() + b"\n"
        try:
            answer = json.loads(self._exchange(line, patience))
        except TimeoutError as error:
            raise NotResponding(
                f"{self.name} has not answered within {self._timeout:g} s"
            ) from error
        except ValueError as error:
            raise NotResponding(f"{self.name} closed the connection without an answer") from error
        if not answer["ok"]:
            raise ControlError(answer["error"])
        return answer["result"]

    def _exchange(self, line: bytes, patience: float | None) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(self._timeout)
            try:
                with socket_path(self.folder) as path:
                    sock.connect(path)
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
                raise NotRunning(
                    f"no instance named {self.name!r} is running (looked in {self.folder.parent})"
                ) from error
            except BlockingIOError as error:  # its backlog is full: it accepts nobody
                raise NotResponding(f"{self.name} does not accept connections") from error
            except PermissionError as error:
                raise ControlError(f"{self.folder} belongs to another user") from error
            if os.geteuid() not in {0, peer_uid(sock)}:
                raise ControlError(f"{self.folder} is served by another user")
            try:
                sock.sendall(line)
                sock.settimeout(patience)
                with sock.makefile("rb") as answers:
                    return answers.readline()
            except (BrokenPipeError, ConnectionResetError):
                return b""


def statuses(base: Path | None = None, *, timeout: float = TIMEOUT) -> list[dict[str, Any]]:
    """All running instances, by name. One that does not answer is listed as unresponsive."""
    found = []
    for folder in instances(base):
        client = Client(folder.name, base or folder.parent, timeout=timeout)
        try:
            found.append(client.status())
        except NotRunning:
            continue
        except ControlError as error:
            found.append(_unresponsive(folder, str(error)))
    return found


def _unresponsive(folder: Path, message: str) -> dict[str, Any]:
    try:
        pid = int((folder / "pid").read_text())
    except (OSError, ValueError):
        pid = None
    return {
        "name": folder.name,
        "pid": pid,
        "version": None,
        "uptime": None,
        "state": "unresponsive",
        "message": message,
        "pools": [],
        "workers": [],
    }
