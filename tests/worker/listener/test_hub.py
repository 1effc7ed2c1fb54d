"""The hub between a listener and its workers, each a process of its own that may be killed."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).with_name("hub_programs.py")
PATIENCE = 30.0


class Program:
    """One of them, and what it says."""

    def __init__(self, kind: str, folder: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS), kind, str(folder), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._put_by: list[dict[str, Any]] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        self._number = 0
        self.hear("ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))
        self._said.put(None)

    def hear(self, key: str, value: Any = None) -> dict[str, Any]:
        """The next thing that it says with this key; the rest is put by."""
        for said in self._put_by:
            if key in said and value in (None, said[key]):
                self._put_by.remove(said)
                return said
        while True:
            said_now = self._said.get(timeout=PATIENCE)
            assert said_now is not None, f"it ended before it said {key}={value}"
            if key in said_now and value in (None, said_now[key]):
                return said_now
            self._put_by.append(said_now)

    def order(self, op: str, **values: Any) -> int:
        assert self.process.stdin is not None
        self._number += 1
        self.process.stdin.write(json.dumps({"op": op, "number": self._number, **values}) + "\n")
        return self._number

    def put(self, task_id: str, payload: str = "work", **schedule: Any) -> None:
        self.order("put", id=task_id, payload=payload, schedule=schedule)
        self.hear("accepted", task_id)

    def outcome(self, task_id: str) -> dict[str, Any]:
        return self.hear("number", self.order("wait", id=task_id))

    def gone(self, pid: int, *, explained: bool = False, overdue: tuple[str, ...] = ()) -> None:
        order = self.order("gone", pid=pid, explained=explained, overdue=overdue)
        self.hear("number", order)

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a listener, or a worker that runs so many messages at the same time."""
    programs: list[Program] = []
    folder = tmp_path / "hub"
    folder.mkdir(mode=0o700)

    def start_it(kind: str, most: int = 10) -> Program:
        programs.append(Program(kind, folder, str(most)))
        return programs[-1]

    yield start_it
    for program in programs:
        program.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What a task waits for, until somebody writes into it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def test_each_message_runs_once_on_all_workers(start: Start, gate: Path) -> None:
    listener, workers = start("listener"), [start("worker"), start("worker")]
    ids = [f"task-{number}" for number in range(20)]
    for task_id in ids:
        listener.put(task_id, f"until {gate}")
    started = [worker.hear("started")["started"] for worker in workers for _ in range(10)]
    assert sorted(started) == sorted(ids)
    gate.write_bytes(b"")
    pids = {listener.outcome(task_id)["data"] for task_id in ids}
    assert pids == {str(worker.pid) for worker in workers}


def test_workers_and_listener_come_in_any_order(start: Start) -> None:
    worker = start("worker")
    listener = start("listener")
    listener.put("a")
    assert listener.outcome("a")["data"] == str(worker.pid)


def test_a_worker_takes_no_more_than_it_can_run(start: Start) -> None:
    listener, first = start("listener"), start("worker", 1)
    listener.put("a", "hang")
    first.hear("started", "a")
    listener.put("b")
    second = start("worker", 1)
    assert listener.outcome("b")["data"] == str(second.pid)


def test_what_a_killed_worker_had_is_given_to_others_at_once(start: Start) -> None:
    listener, first = start("listener"), start("worker")
    listener.put("a", "hang")
    first.hear("started", "a")
    second = start("worker")
    first.kill()
    assert second.hear("started", "a") == {"started": "a", "attempt": 2}


def test_a_task_that_kills_its_workers_is_given_up_and_the_cause_is_told(start: Start) -> None:
    listener = start("listener")
    listener.put("a", "die", max_deliveries=2)
    for _ in range(2):
        worker = start("worker")
        worker.process.wait(PATIENCE)
        listener.gone(worker.pid)
    assert listener.outcome("a") == {
        "number": 4,
        "kind": "DEAD",
        "data": "",
        "attempts": 2,
        "cause": "killed by SIGKILL",
        "worker": 3,
    }


def test_the_death_of_a_worker_is_seen_without_the_supervisor(start: Start) -> None:
    listener, worker = start("listener"), start("worker")
    listener.put("a", "die", max_deliveries=1)
    worker.process.wait(PATIENCE)
    outcome = listener.outcome("a")
    assert (outcome["kind"], outcome["cause"], outcome["worker"]) == ("DEAD", "died", None)


def test_an_acknowledged_task_is_lost_with_its_worker(start: Start) -> None:
    listener, worker = start("listener"), start("worker")
    listener.put("a", "acknowledge-and-die")
    worker.process.wait(PATIENCE)
    assert listener.outcome("a")["kind"] == "WORKER_LOST"


def test_a_task_that_took_too_long_ends_with_its_worker(start: Start) -> None:
    listener, worker = start("listener"), start("worker")
    listener.put("late", "hang")
    worker.hear("started", "late")
    worker.kill()
    listener.gone(worker.pid, overdue=("late",))
    assert listener.outcome("late")["kind"] == "TIMED_OUT"


@pytest.mark.parametrize("who_says_so", ["worker", "supervisor"])
def test_a_planned_end_of_a_worker_costs_no_start(start: Start, who_says_so: str) -> None:
    listener, first = start("listener"), start("worker")
    listener.put("a", "leave" if who_says_so == "worker" else "hang", max_deliveries=2)
    first.hear("started", "a")
    if who_says_so == "supervisor":
        first.kill()
        listener.gone(first.pid, explained=True)
    else:
        first.process.wait(PATIENCE)
    assert start("worker").hear("started", "a")["attempt"] == 1


def test_a_worker_that_drains_gives_back_what_it_has_at_once(start: Start) -> None:
    listener, first = start("listener"), start("worker")
    listener.put("a", "hang")
    first.hear("started", "a")
    first.process.terminate()
    first.hear("closed")
    assert start("worker").hear("started", "a")["attempt"] == 1


def test_tasks_outlive_the_listener_and_their_results_are_kept(start: Start, gate: Path) -> None:
    listener, worker = start("listener"), start("worker")
    listener.put("running", f"until {gate}")
    worker.hear("started", "running")
    listener.kill()
    gate.write_bytes(b"")  # it ends while nobody listens
    successor = start("listener")
    assert successor.outcome("running")["data"] == str(worker.pid)
    worker.hear("ended", "running")
    assert "started" not in str(worker._put_by), "it was started again"


def test_what_was_accepted_survives_everybody_s_death(start: Start) -> None:
    listener = start("listener")
    worker = start("worker", 2)
    for task_id in ("running", "waiting"):
        listener.put(task_id, "hang" if task_id == "running" else "work", priority=5)
        worker.hear("started", task_id)
    worker.hear("ended", "waiting")
    listener.put("new", "work", due=None)
    worker.hear("ended", "new")
    listener.kill()
    worker.kill()
    listener = start("listener")
    assert start("worker").hear("started", "running")["attempt"] == 2
    assert listener.outcome("new")["data"] == str(worker.pid)


def test_a_worker_that_died_while_nobody_listened_has_lost_its_tasks_to_others(
    start: Start,
) -> None:
    listener, first, second = start("listener"), start("worker", 1), start("worker", 1)
    listener.put("a", "hang")
    listener.put("b", "hang")
    one = first.hear("started")["started"]
    second.hear("started")
    listener.kill()
    first.kill()
    start("listener")
    third = start("worker")
    assert third.hear("started", one)["attempt"] == 2


def test_a_task_that_sends_another_is_not_kept_by_a_listener_that_restarts(
    start: Start,
) -> None:
    listener = start("listener")
    listener.put("a", "send b")
    listener.kill()
    worker = start("worker")
    listener = start("listener")
    assert listener.outcome("a")["data"] == str(worker.pid)
    assert listener.outcome("b")["data"] == str(worker.pid)


def test_listeners_killed_in_a_row_lose_and_double_nothing(start: Start) -> None:
    listener, worker = start("listener"), start("worker", 4)
    ids = []
    for turn in range(5):
        for number in range(20):
            ids.append(f"task-{turn}-{number}")
            listener.put(ids[-1])
        listener.kill()
        listener = start("listener")
    for task_id in ids:
        assert listener.outcome(task_id)["kind"] == "RESULT"
        worker.hear("ended", task_id)
    started = [worker.hear("started")["started"] for _ in ids]
    assert sorted(started) == sorted(ids)
    assert worker._put_by == []
