"""Real supervisors, real workers, and this test process as their client."""

import importlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from taskiq_supervise.supervisor.client import statuses

COMMAND = (str(Path(sys.executable).with_name("taskiq-supervise")),)
# Nothing here takes a second on an idle machine; the machine may be busy.
PATIENCE = 30.0


class Log:
    """Standard output and error of a process tree, read as it is written.

    The end of it is an event of its own: it comes when the last process that inherited the pipe has
    ended, orphans included.
    """

    def __init__(self, pipe: Any) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def text(self) -> str:
        with self._changed:
            return "".join(self._lines)

    @property
    def without_tasks(self) -> str:
        """Without the line that each task has."""
        return "".join(line for line in self.text.splitlines(True) if "Executing task" not in line)

    def wait_for(self, pattern: str, *, timeout: float = PATIENCE) -> re.Match[str]:
        """The first match of a regular expression in a line, past or to come."""
        read = 0
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in self._lines[read:]:
                    if match := re.search(pattern, line):
                        return match
                read = len(self._lines)
                if self._ended or not self._changed.wait(deadline - time.monotonic()):
                    break
        raise AssertionError(f"no line matches {pattern!r} in the log:\n{self.text}")

    def wait_for_end(self, *, timeout: float = PATIENCE) -> str:
        """All of it, once the last process is gone."""
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise AssertionError(
                f"some process still holds the log after {timeout} s:\n{self.text}"
            )
        return self.text


class Supervisor:
    """One `taskiq-supervise` command, started in the test's folder."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.arguments = arguments
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.pid = self.process.pid
        self.log = Log(self.process.stdout)

    def wait_ready(self) -> "Supervisor":
        self.log.wait_for(r"ready: \d+ workers?")
        return self

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def status(self) -> dict[str, Any]:
        """What `status --json` says of this instance, without the time that a command takes."""
        (instance,) = (one for one in statuses() if one["pid"] == self.pid)
        return instance

    def pool_status(self) -> dict[str, Any]:
        """Of its only pool."""
        (pool,) = self.status()["pools"]
        status: dict[str, Any] = pool
        return status

    @staticmethod
    def alive(tree: list[psutil.Process], *, timeout: float = 1.0) -> list[psutil.Process]:
        """Which of them have not ended by then; a zombie of PID 1's has."""
        deadline = time.monotonic() + timeout
        return [
            process
            for process in tree
            if process.is_running() and not ended(process.pid, deadline - time.monotonic())
        ]

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    def wait(self, *, timeout: float = PATIENCE) -> int:
        return self.process.wait(timeout)

    def stop(self, *, timeout: float = PATIENCE) -> int:
        """SIGTERM; the exit status, once every process of the tree is gone."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self.log.wait_for_end(timeout=1)
        return status

    def kill_everything(self) -> None:
        """SIGKILL to the supervisor first, so that it can do nothing about the others'."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(PATIENCE)
        self.log.wait_for_end()

    def end(self) -> None:
        """For the end of a test, whatever it left running."""
        if self.process.poll() is None:
            self.kill_everything()
        self.log.wait_for_end()


def ended(pid: int, timeout: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], max(timeout, 0))[0])
    finally:
        os.close(descriptor)


class Ledger:
    """What the tasks did, by their own account."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self, word: str) -> list[tuple[str, int]]:
        """(what, pid of the worker) for each line that begins with this word, in order."""
        if not self._path.exists():
            return []
        lines = (line.split() for line in self._path.read_text().splitlines())
        return [(what, int(pid)) for verb, what, pid in lines if verb == word]

    def counts(self, word: str) -> dict[str, int]:
        counted: dict[str, int] = defaultdict(int)
        for what, _ in self.entries(word):
            counted[what] += 1
        return dict(counted)

    def pids(self, word: str) -> set[int]:
        return {pid for _, pid in self.entries(word)}


class Bell:
    """Tasks ring it when they have begun."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Read and write: it never ends, and no task waits for a reader.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._text = ""

    def wait(self, *, timeout: float = PATIENCE) -> tuple[str, int]:
        """The next task that has begun: its name and its worker's pid."""
        deadline = time.monotonic() + timeout
        while "\n" not in self._text:
            remaining = deadline - time.monotonic()
            if remaining < 0 or not select.select([self._descriptor], [], [], remaining)[0]:
                raise AssertionError(f"no task rang within {timeout} s")
            self._text += os.read(self._descriptor, 4096).decode()
        line, self._text = self._text.split("\n", 1)
        _, name, pid = line.split()
        return name, int(pid)

    def close(self) -> None:
        os.close(self._descriptor)


class Gate:
    """Tasks wait at it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def let_by(self, count: int) -> None:
        os.write(self._descriptor, b"." * count)

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def app(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The application, as its clients import it; the workers find the same file in their folder."""
    shutil.copyfile(Path(__file__).with_name("application.py"), workdir / "app.py")
    monkeypatch.syspath_prepend(str(workdir))
    module = importlib.import_module("app")
    yield module
    del sys.modules["app"]


@pytest.fixture
async def client(app: ModuleType) -> Any:
    """The application, started as a client of its broker."""
    await app.broker.startup()
    yield app
    await app.broker.shutdown()


@pytest.fixture
def ledger(workdir: Path) -> Ledger:
    return Ledger(workdir / "ledger")


@pytest.fixture
def bell(workdir: Path) -> Iterator[Bell]:
    bell = Bell(workdir / "bell")
    yield bell
    bell.close()


@pytest.fixture
def gate(workdir: Path) -> Iterator[Gate]:
    gate = Gate(workdir / "gate")
    yield gate
    gate.close()


@pytest.fixture
def supervise(request: pytest.FixtureRequest, workdir: Path) -> Iterator[Callable[..., Supervisor]]:
    """Starts `taskiq-supervise <arguments>` in the test's folder, and ends what it started."""
    started: list[Supervisor] = []
    with ExitStack() as stack:

        def start(*arguments: str, environment: dict[str, str] | None = None) -> Supervisor:
            supervisor = Supervisor(*arguments, environment=environment)
            stack.callback(supervisor.end)
            started.append(supervisor)
            return supervisor

        yield start
    for number, supervisor in enumerate(started, 1):
        # pytest shows sections only for a test that failed.
        title = f"log of supervisor {number}: {' '.join(supervisor.arguments)}"
        request.node.add_report_section("teardown", title, supervisor.log.without_tasks)
