"""The command as a person meets it: on a terminal, which is asked and which has a width."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

PATIENCE = 30.0


class Terminal:
    """A command that runs on a terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 100) -> None:
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "taskiq_supervise", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**environment, "TERM": "xterm-256color"},
        )
        os.close(terminal)
        self.text = ""

    def read_until(self, expected: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while expected not in self.text:
            assert self._read(deadline), f"it ended after {self.text!r}"

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def end(self) -> int:
        """The exit status, once all is read."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            continue
        os.close(self._controller)
        return self._process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        assert select.select([self._controller], [], [], left)[0], f"it hangs after {self.text!r}"
        try:
            data = os.read(self._controller, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.text += data.decode().replace("\r\n", "\n")
        return bool(data)
