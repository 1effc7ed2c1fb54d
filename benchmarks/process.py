"""A contestant as a process of ours: started, listened to, and gone when its round is over.

READY is an event: a line in its log, stamped when it has come through the pipe.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping, Sequence

PATIENCE = 60.0
"""Seconds for anything that is waited for."""
ROOT = Path(__file__).parents[1]


class ContestantFailed(Exception):
    """It did not do what was waited for; the message ends with its last lines."""


class Running:
    """A started contestant, and the lines that it writes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path):
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "HOME": str(folder), "PYTHONPATH": _search_path(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self._tail: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while data := self._process.stdout.read(65536):
            now = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._lines.put((now, line))
        self._lines.put((time.monotonic(), b""))

    def until(self, pattern: re.Pattern[bytes]) -> tuple[float, re.Match[bytes]]:
        """The next line with `pattern`: when it came, time.monotonic(), and what was found."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                moment, line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self._failed(f"did not say {pattern.pattern!r} in {PATIENCE:.0f} s") from None
            self._tail = [*self._tail[-20:], line]
            if not line and self._process.poll() is not None:
                raise self._failed(f"ended with status {self._process.returncode}")
            if found := pattern.search(line):
                return moment, found

    def skip(self) -> None:
        """Forgets the lines that are there."""
        with suppress(queue.Empty):
            while True:
                self._lines.get_nowait()

    def _failed(self, what: str) -> ContestantFailed:
        lines = b"\n".join(self._tail).decode(errors="replace")
        return ContestantFailed(f"{self._process.args!r} {what}:\n{lines}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def end(self) -> None:
        """SIGTERM; whoever is left of its tree after that is killed."""
        with suppress(psutil.NoSuchProcess):
            tree = self.tree()
            self._process.send_signal(signal.SIGTERM)
            _, left = psutil.wait_procs(tree, timeout=15)
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _search_path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


@contextmanager
def places() -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder, and the environment that keeps a contestant inside of it."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskiq-bench-")))
        memory = stack.enter_context(tempfile.TemporaryDirectory(prefix="taskiq-bench-", dir=shm))
        (folder / "run").mkdir()
        yield (
            folder,
            {
                "TASKIQ_SUPERVISE_RUNTIME_DIR": str(folder / "run"),
                "TASKIQ_SUPERVISE_QUEUE_DIR": memory,
                "BENCHMARK_CELERY": str(folder),
                "BENCHMARK_LEDGER": str(folder / "ledger"),
            },
        )


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Ours, for what the clients read there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
