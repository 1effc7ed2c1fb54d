"""A task that runs for too long is noticed by the supervisor, however stuck its worker is."""

import asyncio
import math
import os
import select
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import TaskiqMessage
from tests.broker.conftest import SMALL

from taskiq_supervise.broker import (
    InvalidLabelError,
    QueueTask,
    SharedMemoryBroker,
    TaskTimeoutError,
)
from taskiq_supervise.broker.task import QueueKicker
from taskiq_supervise.ipc import Board, timerfd
from taskiq_supervise.worker.deadlines import Deadline, Deadlines

if TYPE_CHECKING:
    from tests.worker.conftest import Notes, Nursery

Start = Callable[[str], "Nursery"]

BODIES = """
def note(text):
    fd = os.open("notes", os.O_WRONLY)
    os.write(fd, text.encode() + b"\\n")
    os.close(fd)

def gate(name):
    with open(name) as file:
        return file.read()

@broker.task(task_name="hold")
def hold() -> str:
    note("begun")
    text = gate("gate")
    note("left")
    return text

@broker.task(task_name="block the loop")
async def block() -> str:
    note("begun")
    return gate("gate")

@broker.task(task_name="wait")
async def wait() -> None:
    note("begun")
    try:
        await asyncio.Event().wait()
    finally:
        note("cleaned up")

@broker.task(task_name="ping")
async def ping() -> str:
    return "pong"
"""

APP = (
    "import asyncio, os\n"
    "from taskiq_supervise import SharedMemoryBroker\n"
    "broker = SharedMemoryBroker('deadlines')\n" + BODIES
)


@pytest.fixture
def start(nursery: Start, notes: "Notes") -> Callable[..., "Nursery"]:
    """`gate` is a FIFO that nobody has opened."""
    os.mkfifo("gate")

    def load(**options: Any) -> "Nursery":
        zygote = nursery(APP)
        assert zygote.load(**{"log_level": "WARNING", **options})["op"] == "loaded"
        zygote.supervise("deadlines")
        return zygote

    return load


@pytest.fixture
async def client() -> AsyncIterator[SharedMemoryBroker]:
    """Started by the test, once the supervisor has made the queue."""
    broker = SharedMemoryBroker("deadlines", geometry=SMALL)
    yield broker
    await broker.shutdown()


async def send(client: SharedMemoryBroker, name: str, **labels: Any) -> QueueTask[Any]:
    kicker: QueueKicker[Any, Any] = QueueKicker(name, client, labels)
    task = await kicker.kiq()
    assert isinstance(task, QueueTask)
    return task


async def error_of(task: QueueTask[Any]) -> BaseException | None:
    return (await task.wait_result(timeout=10)).error


@pytest.mark.parametrize("name", ["hold", "block the loop", "wait"])
@pytest.mark.parametrize("limit", [0.05, "0.05"])
async def test_a_task_that_takes_too_long_ends_in_an_error_and_its_neighbour_is_redelivered(
    start: Callable[..., "Nursery"],
    client: SharedMemoryBroker,
    notes: "Notes",
    name: str,
    limit: float | str,
) -> None:
    life = start()
    await client.startup()
    worker = life.fork(2).wait_ready()
    neighbour = await send(client, "wait")
    assert notes.next() == "begun"
    task = await send(client, name, hard_timeout=limit)
    assert notes.next() == "begun"
    overdue, burial = life.end_overdue(worker)
    assert overdue == {task.task_id}
    assert (burial.timed_out, burial.redelivered) == ((task.task_id,), (neighbour.task_id,))
    error = await error_of(task)
    assert isinstance(error, TaskTimeoutError)
    assert str(error) == (
        f"{name} ran into its hard time limit; worker 2 (pid {worker.pid}) was killed for it"
    )
    assert life.queue is not None
    lease = life.queue.claim()
    assert lease is not None
    assert (lease.task_id, lease.attempt) == (neighbour.task_id, 0)
    lease.release()


@pytest.mark.parametrize("ack_type", ["when_received", "manual"])
async def test_however_it_acknowledges(
    start: Callable[..., "Nursery"], client: SharedMemoryBroker, notes: "Notes", ack_type: str
) -> None:
    life = start(ack_type=ack_type)
    await client.startup()
    worker = life.fork().wait_ready()
    task = await send(client, "hold", hard_timeout=0.05)
    assert notes.next() == "begun"
    _, burial = life.end_overdue(worker)
    assert burial.timed_out == (task.task_id,)
    assert isinstance(await error_of(task), TaskTimeoutError)


async def test_the_worker_has_a_limit_for_all_and_a_task_its_own_or_none(
    start: Callable[..., "Nursery"], client: SharedMemoryBroker, notes: "Notes"
) -> None:
    life = start(task_timeout=100)
    await client.startup()
    life.fork().wait_ready()
    tasks = [
        await send(client, "wait"),
        await send(client, "wait", hard_timeout=1000),
        await send(client, "wait", hard_timeout=0),
    ]
    assert [notes.next() for _ in tasks] == ["begun"] * 3
    running = {task.task_id: task for task in life.board.read(0).running}
    limits = []
    for sent in tasks:
        task = running[sent.task_id]
        limits.append(task.deadline and round(task.deadline - task.started, -1))
    assert limits == [100, 1000, None]


@pytest.mark.parametrize("pool", [False, True])
async def test_the_time_of_a_sync_task_begins_when_its_turn_comes(
    start: Callable[..., "Nursery"], client: SharedMemoryBroker, notes: "Notes", pool: bool
) -> None:
    life = start(max_threadpool_threads=1, use_process_pool=pool, max_process_pool_processes=1)
    await client.startup()
    worker = life.fork().wait_ready()
    first = await send(client, "hold")
    assert notes.next() == "begun"
    second = await send(client, "hold", hard_timeout=0.05)
    while len(running := life.board.read(0).running) < 2:
        assert psutil.pid_exists(worker.pid)
    assert {task.deadline for task in running} == {None}
    Path("gate").write_text("open")
    assert (await first.wait_result(timeout=10)).return_value == "open"
    assert {notes.next(), notes.next()} == {"left", "begun"}
    children = psutil.Process(worker.pid).children()
    overdue, burial = life.end_overdue(worker)
    assert overdue == {second.task_id}
    assert burial.timed_out == (second.task_id,)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
async def test_processes_of_a_pool_say_it_however_they_are_started(
    nursery: Start, client: SharedMemoryBroker, notes: "Notes", method: str
) -> None:
    os.mkfifo("gate")
    life = nursery(
        APP + f"import multiprocessing\nmultiprocessing.set_start_method({method!r}, force=True)\n"
    )
    life.load(use_process_pool=True, max_process_pool_processes=1, log_level="WARNING")
    life.supervise("deadlines")
    await client.startup()
    worker = life.fork().wait_ready()
    task = await send(client, "hold", hard_timeout=0.05)
    assert notes.next() == "begun"
    overdue, burial = life.end_overdue(worker)
    assert burial.timed_out == (task.task_id,)
    assert overdue == {task.task_id}


async def test_a_task_in_time_has_no_deadline_left_when_the_timer_rings(
    start: Callable[..., "Nursery"], client: SharedMemoryBroker
) -> None:
    life = start()
    await client.startup()
    worker = life.fork().wait_ready()
    # A limit that is longer than the task may take on a machine that is busy.
    task = await send(client, "ping", hard_timeout=1)
    assert (await task.wait_result(timeout=10)).return_value == "pong"
    assert life.overdue(worker) == set()


# --- with a broker that is not ours --------------------------------------------------------------

OTHER = (
    """
import asyncio, os
from taskiq import AsyncBroker, AsyncResultBackend, AckableMessage

class NotedResults(AsyncResultBackend):
    async def set_result(self, task_id, result):
        note(f"saved {result.return_value!r} {result.error} {result.labels}")
    async def get_result(self, task_id, with_logs=False): ...
    async def is_result_ready(self, task_id): ...

class FileBroker(AsyncBroker):
    '''Messages are lines of a FIFO.'''
    async def kick(self, message): ...
    async def listen(self):
        fd = os.open("messages", os.O_RDWR | os.O_NONBLOCK)
        queue = asyncio.Queue()
        asyncio.get_running_loop().add_reader(fd, lambda: queue.put_nowait(os.read(fd, 65536)))
        while True:
            for line in (await queue.get()).splitlines():
                yield AckableMessage(data=line, ack=lambda: note("acknowledged"))

broker = FileBroker().with_result_backend(NotedResults())
"""
    + BODIES
)

SAVED = "saved None {} ran into its hard time limit of 0.05 s {{'hard_timeout': 0.05}}"


class Foreign:
    """A worker whose broker is not ours, and its messages."""

    def __init__(self, zygote: "Nursery") -> None:
        os.mkfifo("messages")
        os.mkfifo("gate")
        self._messages = os.open("messages", os.O_RDWR)
        zygote.load(log_level="WARNING")
        self.zygote = zygote
        self.worker = zygote.fork().wait_ready()

    def send(self, name: str, **labels: Any) -> None:
        message = TaskiqMessage(
            task_id=f"id of {name}", task_name=name, labels=labels, args=[], kwargs={}
        )
        os.write(self._messages, message.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        os.close(self._messages)


@pytest.fixture
def foreign(nursery: Start, notes: "Notes") -> Any:
    foreign = Foreign(nursery(OTHER))
    yield foreign
    foreign.close()


def test_with_another_broker_the_error_is_saved_and_acknowledged_while_the_loop_turns(
    foreign: Foreign, notes: "Notes"
) -> None:
    foreign.send("wait", hard_timeout=0.05)
    assert notes.next() == "begun"
    noted = {notes.next() for _ in range(3)}
    assert noted == {"cleaned up", SAVED.format("wait"), "acknowledged"}
    assert foreign.zygote.overdue(foreign.worker) == {"id of wait"}


def test_with_another_broker_nothing_else_is_saved_of_a_sync_task(
    foreign: Foreign, notes: "Notes"
) -> None:
    foreign.send("hold", hard_timeout=0.05)
    assert notes.next() == "begun"
    assert [notes.next(), notes.next()] == [SAVED.format("hold"), "acknowledged"]
    Path("gate").write_text("too late")
    assert notes.next() == "left"
    foreign.send("ping")
    assert [notes.next(), notes.next()] == ["saved 'pong' None {}", "acknowledged"]
    assert foreign.zygote.overdue(foreign.worker) == {"id of hold"}


def test_with_another_broker_a_task_that_ended_in_time_is_left_alone(
    foreign: Foreign, notes: "Notes"
) -> None:
    # The second time tells that the first one's is long over.
    for _ in range(2):
        foreign.send("ping", hard_timeout=1)
        assert notes.next() == "saved 'pong' None {'hard_timeout': 1}"
        assert notes.next() == "acknowledged"
        assert foreign.zygote.overdue(foreign.worker) == set()
    foreign.send("ping")
    assert [notes.next(), notes.next()] == ["saved 'pong' None {}", "acknowledged"]


def test_with_another_broker_a_blocked_loop_says_nothing_and_the_timer_rings_all_the_same(
    foreign: Foreign, notes: "Notes"
) -> None:
    foreign.send("block the loop", hard_timeout=0.05)
    assert notes.next() == "begun"
    assert foreign.zygote.overdue(foreign.worker) == {"id of block the loop"}
    foreign.worker.kill()
    foreign.worker.wait()
    foreign.send("nothing is noted before this")
    fd = os.open("notes", os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"the last\n")
    os.close(fd)
    assert notes.next() == "the last"


def test_with_another_broker_a_label_without_sense_is_the_tasks_error(
    foreign: Foreign, notes: "Notes"
) -> None:
    error = InvalidLabelError(
        label="hard_timeout", value="long", allowed="a number of seconds, 0 (no limit) or more"
    )
    foreign.send("wait", hard_timeout="long")
    assert notes.next() == f"saved None {error} {{'hard_timeout': 'long'}}"
    assert notes.next() == "acknowledged"


# --- when the timer is set -----------------------------------------------------------------------


class Supervisor:
    """A worker's deadlines, a clock, and what the supervisor can know of them."""

    def __init__(self, board: Board) -> None:
        self.now = 1000.0
        self.armed: float | None = None
        self.calls = 0
        self.writer = board.writer(0)
        self.writer.reset(1, 1)
        self.deadlines = Deadlines(self.writer, -1, lambda: self.now)
        self.running: list[tuple[int, Deadline]] = []
        self.seen: set[int] = set()

    def arm(self, _fd: int, at: float | None) -> None:
        self.armed = at
        self.calls += 1

    def begin(self, limit: float) -> None:
        entry = self.writer.begin("id", "name", 1)
        deadline = self.deadlines.add(entry, limit)
        self.running.append((entry, deadline))
        deadline.begin()

    def end(self, which: int) -> None:
        if self.running:
            entry, deadline = self.running.pop(which % len(self.running))
            deadline.end()
            self.writer.end(entry, failed=False)

    def look(self) -> None:
        """The supervisor gets to it: has the timer rung, it knows what is on the board."""
        if self.armed is not None and self.armed <= self.now:
            self.seen |= {deadline.number for _, deadline in self.running}
            self.armed = None  # it has read it

    def check(self) -> None:
        for _, deadline in self.running:
            if deadline.number not in self.seen:
                assert self.armed is not None
                assert self.armed <= deadline.at


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board.create(tmp_path / "board", 1, 300)
    yield board
    board.close()


async def test_tasks_with_one_limit_cost_a_system_call_per_limit(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Supervisor(board)
    monkeypatch.setattr(timerfd, "arm", of.arm)
    for _ in range(200):
        of.begin(60)
        of.now += 0.1
    assert (of.calls, of.armed) == (1, 1060)
    of.begin(1)
    assert (of.calls, of.armed) == (2, of.now + 1)
    of.begin(60)
    assert of.calls == 2
    of.end(200)
    of.now = 1062
    of.begin(60)
    # For the first one: it is overdue, and whether the supervisor has seen it is not known here.
    assert (of.calls, of.armed) == (3, 1060)


OPERATIONS = st.lists(
    st.tuples(st.just("begin"), st.sampled_from([0.5, 1.0, 5.0, 60.0]))
    | st.tuples(st.just("end"), st.integers(0, 300))
    | st.tuples(st.just("sleep"), st.floats(0, 3))
    | st.tuples(st.just("look"), st.none()),
    max_size=100,
)


def test_whatever_happens_no_deadline_is_forgotten(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()

    @given(OPERATIONS)
    def check(operations: list[tuple[str, Any]]) -> None:
        async def run() -> None:
            of = Supervisor(board)
            monkeypatch.setattr(timerfd, "arm", of.arm)
            for name, value in operations:
                if name == "sleep":
                    of.now += value
                elif name == "look":
                    of.look()
                else:
                    getattr(of, name)(value)
                of.check()

        loop.run_until_complete(run())

    check()
    loop.close()


async def test_a_full_board_is_said_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board.create(tmp_path / "board", 1, 1)
    writer = board.writer(0)
    writer.reset(1, 1)
    fd = timerfd.create()
    of = Deadlines(writer, fd)
    first, second = (of.add(writer.begin("id", "name", 1), limit=0.001) for _ in range(2))
    second.begin()
    assert "The board is full" in caplog.text
    assert not select.select([fd], [], [], 0.05)[0]
    first.begin()
    assert select.select([fd], [], [], 20)[0]
    for deadline in (first, second):
        deadline.end()
    os.close(fd)
    board.close()


async def test_a_task_that_is_over_when_its_thread_begins_has_no_deadline(tmp_path: Path) -> None:
    """taskiq's label `timeout` may end it there; its entry on the board may be another's by now."""
    board = Board.create(tmp_path / "board", 1, 1)
    writer = board.writer(0)
    writer.reset(1, 1)
    fd = timerfd.create()
    of = Deadlines(writer, fd)
    entry = writer.begin("first", "name", 1)
    deadline = of.add(entry, 60)
    target = deadline.from_its_thread(lambda: math.pi)
    deadline.end()
    writer.end(entry, failed=True)
    writer.begin("second", "name", 1)
    assert target() == math.pi
    [task] = board.read(0).running
    assert (task.task_id, task.deadline) == ("second", None)
    os.close(fd)
    board.close()
