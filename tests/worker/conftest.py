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
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.broker.conftest import SMALL, broker, working

from taskiq_supervise.ipc import Board, DeathCause, Role, TaskQueue, timerfd
from taskiq_supervise.ipc.framing import LineDecoder, encode, send
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

    def __init__(self, sock: socket.socket, slot: int, seat: int, stacks: int, timer: int) -> None:
        super().__init__(sock)
        self.pid = 0
        self.slot = slot
        self.seat = seat
        self.stacks = stacks
        """The reading end of the pipe that it writes stacks to."""
        self.timer = timer
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

    def close(self) -> None:
        self.socket.close()
        os.close(self.stacks)
        os.close(self.timer)

    def read_stacks(self, *, until: str) -> str:
        """What it has written to its pipe, once that is part of it."""
        text = ""
        while until not in text:
            assert select.select([self.stacks], [], [], PATIENCE)[0], f"only this came: {text}"
            data = os.read(self.stacks, 65536)
            assert data, f"it ended; {text}"
            text += data.decode()
        return text

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

    def ask(
        self,
        slot: int = 0,
        supervisor_pid: int | None = None,
        *,
        seat: int | None = None,
        max_tasks: int | None = None,
    ) -> WorkerProcess:
        """Orders a worker; its pid is not known yet."""
        ours, theirs = socket.socketpair()
        stacks, stacks_of_worker = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(stacks_of_worker, False)
        timer = timerfd.create()
        seat = slot if seat is None else seat
        order = {
            "op": "fork",
            "slot": slot,
            "generation": 1,
            "seat": seat,
            "max_tasks": max_tasks,
            "board": str(self.board_path),
            "instance": "test",
            "pool": "",
            "guardian": self.queue.participant if self.queue else 0,
            "supervisor_pid": supervisor_pid or os.getpid(),
        }
        with theirs:
            fds = [theirs.fileno(), stacks_of_worker, timer]
            socket.send_fds(self.socket, [encode(order)], fds)
        os.close(stacks_of_worker)
        return WorkerProcess(ours, slot, seat, stacks, timer)

    def fork(self, slot: int = 0, supervisor_pid: int | None = None, **order: Any) -> WorkerProcess:
        worker = self.ask(slot, supervisor_pid, **order)
        try:
            answer = self.next()
            assert answer["op"] == "forked", answer
            assert (answer["slot"], answer["generation"]) == (slot, 1)
        except BaseException:
            worker.close()
            raise
        worker.pid = answer["pid"]
        self.workers.append(worker)
        with suppress(BrokenPipeError):  # it may have died at once
            worker.order("go")
        return worker

    def end_overdue(self, worker: WorkerProcess) -> tuple[set[str], Any]:
        """Waits for the worker's timer, and does what is to be done: ids, and its burial."""
        assert self.queue is not None
        overdue = self.overdue(worker)
        for task_id in overdue:
            assert self.queue.time_out(worker.pid, task_id)
        self.queue.explain(worker.pid)
        os.killpg(worker.pid, signal.SIGKILL)
        return overdue, self.bury(worker)

    def overdue(self, worker: WorkerProcess) -> set[str]:
        """Waits until the worker's timer rings; the ids of the tasks that it rings for."""
        assert select.select([worker.timer], [], [], PATIENCE)[0], "the timer does not ring"
        os.read(worker.timer, 8)
        now = time.monotonic()
        return {
            task.task_id
            for task in self.board.read(worker.seat).running
            if task.deadline is not None and task.deadline <= now
        }

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
            worker.close()
        self.socket.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self.board.close()
        if self.queue is not None:
            self.queue.close()


class Notes:
    """A FIFO in which tasks say what they do, as they do it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)
        self._file = os.fdopen(self._fd, closefd=False)

    def next(self) -> str:
        return self._file.readline().rstrip()

    def close(self) -> None:
        self._file.close()
        os.close(self._fd)


@pytest.fixture
def notes(workdir: Path) -> Iterator[Notes]:
    notes = Notes(workdir / "notes")
    yield notes
    notes.close()


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
    # What a worker that was killed had started has become ours.
    for orphan in psutil.Process().children():
        orphan.wait(PATIENCE)
    be_subreaper(False)
