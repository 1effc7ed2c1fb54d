"""The supervisor's part, played by the test: one zygote, the workers it forks, and their links."""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.broker.conftest import SMALL, broker, working

from taskiq_supervise.ipc import Board, DeathCause, Role, TaskQueue
from taskiq_supervise.ipc.framing import LineDecoder, send, send_with_fd
from taskiq_supervise.worker.config import WorkerConfig

__all__ = ["broker", "working"]

PATIENCE = 20.0
_PR_SET_CHILD_SUBREAPER = 36


def be_subreaper(on: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


class Channel:
    """Our end of a socket, read until a message is there."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = LineDecoder()
        self._messages: list[dict[str, Any]] = []
        self.ended = False

    def next(self, timeout: float = PATIENCE) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not self._messages:
            if not select.select([self.socket], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"nothing was said within {timeout} s")
            data = self.socket.recv(65536)
            if not data:
                self.ended = True
                raise EOFError("the other end closed")
            self._messages += self._decoder.feed(data)
        return self._messages.pop(0)


class WorkerProcess(Channel):
    """A worker that was forked for the test."""

    def __init__(self, sock: socket.socket, pid: int, slot: int) -> None:
        super().__init__(sock)
        self.pid = pid
        self.slot = slot
        self.status: int | None = None

    def wait_ready(self) -> "WorkerProcess":
        assert self.next() == {"event": "ready"}
        return self

    def order(self, op: str) -> None:
        send(self.socket, {"op": op})

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status, negative for a signal."""
        if self.status is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                assert select.select([pidfd], [], [], timeout)[0], "the worker does not end"
            finally:
                os.close(pidfd)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    @property
    def title(self) -> str:
        return Path(f"/proc/{self.pid}/cmdline").read_bytes().rstrip(b"\0").decode()


class Nursery(Channel):
    """A zygote and its workers."""

    def __init__(self, log: Path) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        with theirs, open(log, "wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "taskiq_supervise.worker.zygote",
                    "--fd",
                    str(theirs.fileno()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._log = log
        self.workers: list[WorkerProcess] = []
        self.board_path = log.with_name("board")
        self.board = Board.create(self.board_path, 4, 10)
        self.queue: TaskQueue | None = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def load(self, app: str = "app:broker", **options: Any) -> dict[str, Any]:
        """Returns the zygote's answer."""
        send(self.socket, {"op": "load", "config": WorkerConfig(app, **options).to_dict()})
        return self.next()

    def supervise(self, name: str) -> TaskQueue:
        """Takes part in the queue as the supervisor of the workers to come."""
        self.queue = TaskQueue.open(name, role=Role.SUPERVISOR, geometry=SMALL)
        self.queue.become_supervisor("test")
        return self.queue

    def fork(self, slot: int = 0, supervisor_pid: int | None = None) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        order = {
            "op": "fork",
            "slot": slot,
            "generation": 1,
            "board": str(self.board_path),
            "instance": "test",
            "guardian": self.queue.participant if self.queue else 0,
            "supervisor_pid": supervisor_pid or os.getpid(),
        }
        with theirs:
            send_with_fd(self.socket, order, theirs.fileno())
        answer = self.next()
        assert answer["op"] == "forked", answer
        assert (answer["slot"], answer["generation"]) == (slot, 1)
        worker = WorkerProcess(ours, answer["pid"], slot)
        self.workers.append(worker)
        return worker

    def bury(self, worker: WorkerProcess) -> Any:
        """What became of the tasks that a dead worker held."""
        assert self.queue is not None
        status = worker.wait()
        cause = DeathCause(
            pid=worker.pid,
            worker=worker.slot,
            signal=-status if status < 0 else None,
            exit_code=status if status >= 0 else None,
        )
        return self.queue.bury(worker.pid, cause)

    def end(self) -> None:
        for worker in self.workers:
            if worker.status is None:
                worker.kill()
                worker.wait()
            worker.socket.close()
        self.socket.close()
        self.process.wait(PATIENCE)
        self.board.close()
        if self.queue is not None:
            self.queue.close()


@pytest.fixture
def nursery(workdir: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Nursery]]:
    """Writes `app.py` and starts a zygote beside it."""
    started: list[Nursery] = []
    be_subreaper(True)

    def start(app: str) -> Nursery:
        (workdir / "app.py").write_text(app)
        nursery = Nursery(workdir / "log")
        started.append(nursery)
        return nursery

    yield start
    for nursery in started:
        nursery.end()
        request.node.add_report_section("teardown", "log of the zygote", nursery.log)
    be_subreaper(False)
