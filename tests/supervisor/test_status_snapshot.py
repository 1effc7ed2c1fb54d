"""What `status` says of a pool, as JSON and for people."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from taskiq_supervise.ipc import Board
from taskiq_supervise.supervisor import status
from taskiq_supervise.supervisor.commands import render
from taskiq_supervise.supervisor.core.model import (
    LISTENER,
    ExitStatus,
    Health,
    Pool,
    Reason,
    Settings,
    Worker,
    WorkerState,
    Zygote,
    new_pool,
)
from taskiq_supervise.supervisor.core.transport import Listening, Transport
from taskiq_supervise.supervisor.usage import Usage, UsageMeter

NOW = 1000.0
SHM = Transport("shm", "demo", "/dev/shm/x")
QUEUE = {"ready": 5, "leased": 2, "delayed": 0, "dead": 1, "capacity": 64}


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board.create(tmp_path / "board", 2, 10)
    yield board
    board.close()


def pool_of_two() -> Pool:
    """Worker 0 runs in its second generation, worker 1 waits for its next start."""
    pool = new_pool(Settings(workers=2))
    running = replace(
        pool.workers[0],
        state=WorkerState.READY,
        generation=2,
        pid=4711,
        started=990.0,
        ready_at=991.0,
        restarts=1,
        last_exit=ExitStatus(signal=9),
        last_reason=Reason.CRASH,
    )
    waiting = replace(
        pool.workers[1],
        state=WorkerState.BACKOFF,
        generation=3,
        deadline=1002.5,
        restarts=3,
        last_exit=ExitStatus(code=3),
        last_reason=Reason.BOOT,
        boot_error="connection refused",
    )
    return replace(pool, workers=(running, waiting), announced=True, loaded=True)


def snapshot(pool: Pool, tallies: status.Tallies, **changes: Any) -> dict[str, Any]:
    """An instance with this one pool, as the supervisor puts it together."""
    values: dict[str, Any] = {"transport": SHM, "queue": QUEUE, **changes}
    view = status.PoolView("", "app:broker", pool, tallies, **values)
    usage = {4711: Usage(12.5, 1 << 26)}
    found = status.pool_status(view, usage, NOW)
    return {
        "name": "one",
        "pid": 17,
        "version": "0.1.0",
        "uptime": 100.0,
        "state": found["state"],
        "message": found["message"],
        "pools": [found],
        "workers": status.worker_statuses(view, usage, NOW),
    }


def test_the_snapshot_has_what_programs_rely_on(board: Board) -> None:
    writer = board.writer(0)
    writer.reset(4711, 2)
    writer.end(writer.begin("t0", "app:add", 1), failed=True)
    writer.begin("t1", "app:nap", 2, NOW + 30)

    found = snapshot(pool_of_two(), status.Tallies(board))
    assert json.loads(json.dumps(found)) == found
    (pool,) = found["pools"]
    assert "connection refused" in pool.pop("message")
    assert pool == {
        "name": "",
        "app": "app:broker",
        "state": "running",
        "transport": "shm",
        "queue": QUEUE,
        "queue_name": "demo",
        "queue_directory": "/dev/shm/x",
        "listener": None,
        "zygote": {"state": "absent", "generation": 0},
        "target": 2,
        "min_workers": None,
        "max_workers": None,
        "reload": None,
    }
    running, waiting = found["workers"]
    (task,) = running.pop("running")
    assert (task["task_id"], task["task_name"], task["attempt"]) == ("t1", "app:nap", 2)
    assert task["remaining"] == pytest.approx(30.0)
    assert running == {
        "pool": "",
        "health": "ok",
        "reason": None,
        "slot": 0,
        "pid": 4711,
        "state": "ready",
        "generation": 2,
        "uptime": 10.0,
        "restarts": 1,
        "last_exit": "killed by SIGKILL",
        "last_exit_reason": "crash",
        "message": None,
        "next_start": None,
        "tasks": {"done": 1, "failed": 1},
        "cpu_percent": 12.5,
        "rss_bytes": 1 << 26,
    }
    assert waiting == {
        "pool": "",
        "health": None,
        "reason": None,
        "slot": 1,
        "pid": None,
        "state": "backoff",
        "generation": 3,
        "uptime": None,
        "restarts": 3,
        "last_exit": "exited with status 3",
        "last_exit_reason": "boot",
        "message": "connection refused",
        "next_start": 2.5,
        "tasks": {"done": 0, "failed": 0},
        "cpu_percent": None,
        "rss_bytes": None,
        "running": [],
    }


def test_an_application_on_another_broker_has_no_queue(board: Board) -> None:
    transport = Transport("broker", "taskiq_redis.ListQueueBroker")
    found = snapshot(pool_of_two(), status.Tallies(board), transport=transport, queue=None)
    (pool,) = found["pools"]
    assert (pool["queue"], pool["queue_name"]) == (None, None)
    assert pool["transport"] == "taskiq_redis.ListQueueBroker"


LISTENING = Transport(
    "listener",
    "listener-app",
    "/dev/shm/x",
    listener=Listening(
        "taskiq.ZeroMQBroker",
        "taskiq.brokers.zmq_broker.ZeroMQBroker",
        "it publishes",
        ("tcp://127.0.0.1:5555",),
    ),
)


def with_listener(**changes: Any) -> Pool:
    """Those two, and a listener in its third generation."""
    pool = pool_of_two()
    listener = Worker(
        **{
            "slot": LISTENER,
            "state": WorkerState.READY,
            "generation": 3,
            "seat": 1,
            "pid": 4712,
            "started": 995.0,
            "restarts": 2,
            **changes,
        }
    )
    return replace(pool, workers=(listener, *pool.workers))


def test_a_pool_whose_workers_are_joined_by_sockets_says_so(board: Board) -> None:
    listening = LISTENING.listener
    assert listening is not None
    transport = replace(LISTENING, listener=replace(listening, store="zmq"))
    (pool,) = snapshot(with_listener(), status.Tallies(board), transport=transport)["pools"]
    assert (pool["transport"], pool["queue_name"]) == ("zmq", None)
    assert pool["listener"]["broker"] == "taskiq.ZeroMQBroker"


def test_a_listener_stands_beside_the_workers_with_what_it_does_and_why(board: Board) -> None:
    writer = board.writer(1)
    writer.reset(4712, 3)
    writer.say_received(5)
    found = snapshot(with_listener(), status.Tallies(board), transport=LISTENING)
    (pool,) = found["pools"]
    assert [worker["slot"] for worker in found["workers"]] == [0, 1]
    assert pool["transport"] == "taskiq.brokers.zmq_broker.ZeroMQBroker"
    assert (pool["queue_name"], pool["target"]) == ("listener-app", 2)
    assert pool["listener"] == {
        "pid": 4712,
        "state": "ready",
        "health": "ok",
        "generation": 3,
        "uptime": 5.0,
        "restarts": 2,
        "last_exit": None,
        "last_exit_reason": None,
        "message": None,
        "next_start": None,
        "cpu_percent": None,
        "rss_bytes": None,
        "broker": "taskiq.ZeroMQBroker",
        "reason": "it publishes",
        "endpoints": ["tcp://127.0.0.1:5555"],
        "received": 5,
    }


def test_what_listeners_received_is_counted_over_their_generations(board: Board) -> None:
    tallies = status.Tallies(board)
    pool = with_listener()
    listener = pool.workers[0]
    writer = board.writer(1)
    writer.reset(4712, 3)
    assert not tallies.close_generation(listener)
    writer.say_received(1)
    assert tallies.close_generation(listener)
    successor = replace(listener, generation=4)
    writer.reset(4713, 4)
    writer.say_received(1)
    assert tallies.received(successor) == 2


def test_a_listener_that_cannot_start_is_the_message(board: Board) -> None:
    pool = with_listener(state=WorkerState.BACKOFF, deadline=1001.0, boot_error="address in use")
    found = snapshot(pool, status.Tallies(board), transport=LISTENING)
    assert found["message"] == "the listener cannot start: address in use"


def test_code_that_cannot_be_loaded_any_more_is_said(board: Board) -> None:
    pool = replace(pool_of_two(), zygote=Zygote(error="SyntaxError in app.py"))
    assert "SyntaxError in app.py" in snapshot(pool, status.Tallies(board))["message"]


def test_counters_belong_to_the_slot_and_outlive_its_workers(board: Board) -> None:
    tallies = status.Tallies(board)
    worker = pool_of_two().workers[0]
    writer = board.writer(0)
    writer.reset(4711, 2)
    for failed in (False, False, True):
        writer.end(writer.begin("t", "app:add", 1), failed=failed)
    assert tallies.of(worker) == (3, 1)

    assert tallies.close_generation(worker)
    gone = replace(worker, state=WorkerState.FORKING, generation=3, pid=0)
    assert tallies.of(gone) == (3, 1)
    successor = replace(worker, generation=3, pid=4712)
    assert tallies.of(successor) == (3, 1)
    writer.reset(4712, 3)
    assert not tallies.close_generation(successor)
    writer.end(writer.begin("t", "app:add", 1), failed=False)
    assert tallies.of(successor) == (4, 1)


def test_what_a_predecessor_left_on_the_board_is_not_what_its_successor_runs(board: Board) -> None:
    writer = board.writer(0)
    writer.reset(4710, 1)
    writer.begin("old", "app:nap", 1)
    found = snapshot(pool_of_two(), status.Tallies(board))
    assert found["workers"][0]["running"] == []


def test_two_workers_of_a_slot_are_told_apart_and_add_up(board: Board) -> None:
    """As in a reload: the leaving one and its successor, each in a seat of its own."""
    pool = pool_of_two()
    old = replace(pool.workers[0], state=WorkerState.DRAINING, wanted=False, reason=Reason.RELOAD)
    new = replace(pool.workers[0], seat=1, generation=3, pid=4713)
    tallies = status.Tallies(board)
    for worker, tasks in ((old, 2), (new, 3)):
        writer = board.writer(worker.seat)
        writer.reset(worker.pid, worker.generation)
        for _ in range(tasks):
            writer.end(writer.begin("t", "app:add", 1), failed=False)
    found = snapshot(replace(pool, workers=(old, new)), tallies)["workers"]
    assert [(one["slot"], one["generation"], one["state"]) for one in found] == [
        (0, 2, "draining"),
        (0, 3, "ready"),
    ]
    assert [one["tasks"]["done"] for one in found] == [2, 3]
    assert found[0]["reason"] == "reload"
    assert tallies.close_generation(old)
    assert tallies.of(new) == (5, 0)


@pytest.mark.parametrize(("health", "shows"), [(Health.HUNG, "hung"), (Health.STOPPED, "stopped")])
def test_people_see_who_does_not_go_on(board: Board, health: Health, shows: str) -> None:
    pool = pool_of_two()
    ill = replace(pool.workers[0], health=health)
    text = shown(snapshot(replace(pool, workers=(ill,)), status.Tallies(board)))
    assert shows in text
    assert "ready " not in text.split("WORKER")[1]


def test_two_pools_are_shown_one_after_the_other(board: Board) -> None:
    one = snapshot(pool_of_two(), status.Tallies(board))
    fast = {**one["pools"][0], "name": "fast", "min_workers": 1, "max_workers": 8}
    slow = {**one["pools"][0], "name": "slow", "app": "app:slow", "reload": "canary"}
    workers = [{**worker, "pool": name} for name in ("fast", "slow") for worker in one["workers"]]
    text = shown({**one, "pools": [fast, slow], "workers": workers})
    assert text.index("fast running  app:broker") < text.index("slow running  app:slow")
    assert "1 to 8 workers" in text
    assert "reload: canary" in text
    assert text.count("4711") == 2


# --- usage ---------------------------------------------------------------------------------------


def write_stat(proc: Path, pid: int, *, cpu_seconds: float, pages: int) -> None:
    ticks = int(cpu_seconds * os.sysconf("SC_CLK_TCK"))
    fields = ["S", *["0"] * 10, str(ticks), "0", *["0"] * 8, str(pages), "0"]
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / str(pid) / "stat").write_text(f"{pid} (a name) with ) in it) {' '.join(fields)}\n")


def test_cpu_is_the_share_since_the_last_question_that_is_a_second_old(tmp_path: Path) -> None:
    meter = UsageMeter(tmp_path)

    def ask(now: float, cpu_seconds: float) -> float | None:
        write_stat(tmp_path, 17, cpu_seconds=cpu_seconds, pages=10)
        return meter.measure({17: 100.0}, now)[17].cpu_percent

    assert ask(110.0, 1.0) == 10  # since the start
    assert ask(112.0, 2.0) == 50
    assert ask(112.5, 2.5) == 100  # too soon to be a new beginning
    assert ask(114.0, 3.0) == 50


def test_memory_is_in_bytes_and_a_process_that_is_gone_uses_nothing(tmp_path: Path) -> None:
    write_stat(tmp_path, 17, cpu_seconds=0, pages=10)
    found = UsageMeter(tmp_path).measure({17: 0.0, 18: 0.0}, 1.0)
    assert found[17].rss_bytes == 10 * os.sysconf("SC_PAGE_SIZE")
    assert found[18] == Usage(None, None)


def test_our_own_process_can_be_measured() -> None:
    usage = UsageMeter().measure({os.getpid(): 0.0}, 1e9)[os.getpid()]
    assert usage.rss_bytes is not None
    assert usage.rss_bytes > 1 << 20


# --- for people ----------------------------------------------------------------------------------


def shown(*instances: dict[str, Any], width: int = 100) -> str:
    out = io.StringIO()
    render.show(instances, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_people_see_workers_tasks_and_what_is_wrong(board: Board, width: int) -> None:
    writer = board.writer(0)
    writer.reset(4711, 2)
    writer.begin("id-1", "app:nap [really]", 2)
    text = shown(snapshot(pool_of_two(), status.Tallies(board)), width=width)
    for piece in (
        *("one running", "app:broker, pid 17, up 1m40s", "transport shm"),
        *("5 ready, 2 leased, 0 delayed, 1 dead; room for 64", "4711", "64M", "12%"),
        *("app:nap [really] for", "attempt 2, id-1", "connection refused", "backoff"),
    ):
        assert piece in text


def test_people_see_the_listener_first(board: Board) -> None:
    text = shown(snapshot(with_listener(), status.Tallies(board), transport=LISTENING))
    assert "listener: tcp://127.0.0.1:5555, 0 received" in text
    rows = [line.split() for line in text.splitlines()]
    ready = [row[:3] for row in rows if row[3:4] == ["ready"]]
    assert ready == [["listener", "3", "4712"], ["0", "2", "4711"]]


def test_a_long_list_of_tasks_is_cut(board: Board) -> None:
    writer = board.writer(0)
    writer.reset(4711, 2)
    for number in range(8):
        writer.begin(f"id-{number}", "app:nap", 1)
    text = shown(snapshot(pool_of_two(), status.Tallies(board)))
    assert text.count("app:nap") == 5
    assert "worker 0 runs 3 more" in text


def test_an_instance_that_does_not_answer_can_be_shown() -> None:
    text = shown(
        {
            "name": "one",
            "pid": None,
            "state": "unresponsive",
            "message": "it has not answered",
            "uptime": None,
            "pools": [],
            "workers": [],
        }
    )
    assert "one unresponsive" in text
    assert "it has not answered" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (59.94, "59.9s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (90000, "1d01h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (2048, "2K"), (34 << 20, "34M"), (3 << 29, "1.5G")]
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert render.size(count) == text
