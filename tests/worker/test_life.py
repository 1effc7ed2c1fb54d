"""A worker's end loses nothing and costs no task a start, whichever way it comes."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from taskiq import TaskiqMessage
from tests.broker.conftest import SMALL

from taskiq_supervise.broker import QueueTask, SharedMemoryBroker, WorkerLostError
from taskiq_supervise.broker.task import QueueKicker

if TYPE_CHECKING:
    from taskiq.kicker import AsyncKicker
    from tests.worker.conftest import Notes, Nursery

Start = Callable[[str], "Nursery"]

# Tasks note what they do in a FIFO that the test reads; `gate` is one that it writes to.
APP = """
import asyncio, os, signal, time
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends, TaskiqEvents
from taskiq_supervise import SharedMemoryBroker

broker = SharedMemoryBroker("life")
broker.add_middlewares(SimpleRetryMiddleware(default_retry_label=True))

def note(text):
    fd = os.open("notes", os.O_WRONLY)
    os.write(fd, text.encode() + b"\\n")
    os.close(fd)

@broker.task(task_name="add")
async def add(a: int, b: int) -> int:
    return a + b

@broker.task(task_name="fail", retry_on_error=False)
async def fail(a: int, b: int) -> None:
    raise ValueError

@broker.task(task_name="wait")
async def wait(seconds: float) -> str:
    note("begun")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("cancelled")
        raise
    finally:
        await asyncio.sleep(0)
        note("cleaned up")
    return "finished"

@broker.task(task_name="stubborn")
async def stubborn() -> str:
    note("begun")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await add.kiq(1, 1)
    return "done after all"

@broker.task(task_name="block")
def block(seconds: float) -> str:
    note("begun")
    time.sleep(seconds)
    return "slept"

@broker.task(task_name="gate")
def gate() -> str:
    note("begun")
    with open("gate") as file:
        return file.read()

@broker.task(task_name="die")
async def die(number: int) -> None:
    os.kill(os.getpid(), number)

@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def up(state):
    if os.path.exists("no-startup"):
        raise ConnectionError("no server there")

@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def down(state):
    open("shutdown", "w").close()
"""


@pytest.fixture
def life(nursery: Start, notes: "Notes") -> "Nursery":
    zygote = nursery(APP)
    assert zygote.load(log_level="WARNING")["op"] == "loaded"
    zygote.supervise("life")
    return zygote


@pytest.fixture
async def client(life: "Nursery") -> AsyncIterator[SharedMemoryBroker]:
    broker = SharedMemoryBroker("life", geometry=SMALL)
    await broker.startup()
    yield broker
    await broker.shutdown()


async def send(client: SharedMemoryBroker, name: str, *args: Any) -> QueueTask[Any]:
    kicker: AsyncKicker[Any, Any] = QueueKicker(name, client, {})
    task = await kicker.kiq(*args)
    assert isinstance(task, QueueTask)
    return task


async def test_a_worker_runs_tasks(life: "Nursery", client: SharedMemoryBroker) -> None:
    life.fork().wait_ready()
    assert (await (await send(client, "add", 1, 2)).wait_result(timeout=10)).return_value == 3


@pytest.mark.parametrize("way", ["drain", signal.SIGTERM, signal.SIGINT])
async def test_draining_finishes_what_runs(
    life: "Nursery", client: SharedMemoryBroker, notes: "Notes", way: Any
) -> None:
    worker = life.fork().wait_ready()
    task = await send(client, "wait", 0.05)
    assert notes.next() == "begun"
    if way == "drain":
        worker.order("drain")
    else:
        worker.kill(way)
    assert [worker.next()["event"] for _ in range(2)] == ["draining", "drained"]
    assert worker.wait() == 0
    assert (await task.get_result()).return_value == "finished"
    assert Path("shutdown").exists()
    assert life.bury(worker).redelivered == ()


@pytest.mark.parametrize("way", ["stop", "two SIGTERMs", "the link's end"])
async def test_stopping_gives_back_what_runs_and_costs_it_no_start(
    life: "Nursery", client: SharedMemoryBroker, notes: "Notes", way: str
) -> None:
    os.mkfifo("gate")  # which nobody opens
    worker = life.fork().wait_ready()
    waiting = await send(client, "wait", 60)
    assert notes.next() == "begun"
    blocking = await send(client, "gate")
    assert notes.next() == "begun"
    if way == "stop":
        worker.order("stop")
    elif way == "the link's end":
        worker.socket.close()
    else:
        worker.kill(signal.SIGTERM)
        assert worker.next() == {"event": "draining"}
        worker.kill(signal.SIGTERM)
    assert [notes.next(), notes.next()] == ["cancelled", "cleaned up"]
    # Without a supervisor it is the last deed of a worker to end its process group.
    assert worker.wait() == (-signal.SIGKILL if way == "the link's end" else 0)
    assert Path("shutdown").exists()
    burial = life.bury(worker)
    assert set(burial.redelivered) == {waiting.task_id, blocking.task_id}
    # No retry was sent, nothing was saved, and the starts do not count.
    assert life.queue is not None
    assert (life.queue.stats().ready, life.queue.stats().done) == (2, 0)
    lease = life.queue.claim()
    assert lease is not None
    assert lease.attempt == 0
    lease.release()


async def test_a_task_that_is_given_back_sends_nothing_and_returns_nothing(
    life: "Nursery", client: SharedMemoryBroker, notes: "Notes"
) -> None:
    worker = life.fork().wait_ready()
    await send(client, "stubborn")
    assert notes.next() == "begun"
    worker.order("stop")
    assert worker.wait() == 0
    assert len(life.bury(worker).redelivered) == 1
    assert life.queue is not None
    assert (life.queue.stats().ready, life.queue.stats().done) == (1, 0)


async def test_what_was_given_back_runs_again_in_another_worker(
    life: "Nursery", client: SharedMemoryBroker, notes: "Notes"
) -> None:
    worker = life.fork().wait_ready()
    task = await send(client, "wait", 0.3)
    assert notes.next() == "begun"
    worker.order("stop")
    worker.wait()
    life.bury(worker)
    life.fork(1).wait_ready()
    assert (await task.wait_result(timeout=10)).return_value == "finished"


async def test_sigquit_is_the_end_at_once(
    life: "Nursery", client: SharedMemoryBroker, notes: "Notes"
) -> None:
    worker = life.fork().wait_ready()
    await send(client, "wait", 60)
    assert notes.next() == "begun"
    worker.kill(signal.SIGQUIT)
    assert worker.wait() == 0
    assert not Path("shutdown").exists()
    assert len(life.bury(worker).redelivered) == 1
    assert life.queue is not None
    lease = life.queue.claim()
    assert lease is not None
    assert lease.attempt == 1, "nobody ordered it: it may be the task that sends the signal"


async def test_a_task_that_kills_its_worker_three_times_is_over_and_names_the_signal(
    life: "Nursery", client: SharedMemoryBroker
) -> None:
    task = await send(client, "die", int(signal.SIGKILL))
    for start in (1, 2, 3):
        worker = life.fork(2).wait_ready()
        assert worker.wait() == -signal.SIGKILL
        burial = life.bury(worker)
        assert (burial.redelivered, burial.dead) == (
            ((task.task_id,), ()) if start < 3 else ((), (task.task_id,))
        )
    error = (await task.wait_result(timeout=10)).error
    assert isinstance(error, WorkerLostError)
    assert "was killed by SIGKILL while running die, start 3 of 3" in str(error)
    assert (error.signal, error.worker, error.attempts) == (signal.SIGKILL, 2, 3)


async def test_a_worker_that_has_run_enough_says_so_once_and_works_on(
    life: "Nursery", client: SharedMemoryBroker
) -> None:
    worker = life.fork(max_tasks=2).wait_ready()
    for count in range(1, 5):
        task = await send(client, "add" if count % 2 else "fail", count, 1)
        result = await task.wait_result(timeout=10)
        assert result.return_value == (count + 1 if count % 2 else None)
        if count == 2:
            assert worker.next() == {"event": "worn", "why": "tasks"}
    worker.order("drain")
    assert [worker.next()["event"] for _ in range(2)] == ["draining", "drained"]
    assert worker.wait() == 0


async def test_a_start_that_fails_is_said_in_one_line_and_by_its_traceback(
    life: "Nursery",
) -> None:
    Path("no-startup").touch()
    worker = life.fork()
    event = worker.next()
    assert (event["event"], event["kind"]) == ("boot_failed", "startup")
    assert event["message"] == "broker.startup() failed: ConnectionError: no server there"
    assert "in up" in event["traceback"]
    assert worker.wait() == 3


async def test_a_worker_that_has_not_started_yet_can_be_stopped(nursery: Start) -> None:
    zygote = nursery(
        APP + "\n@broker.on_event(TaskiqEvents.WORKER_STARTUP)\n"
        "async def forever(state):\n"
        "    open('starting', 'w').close()\n"
        "    await asyncio.Event().wait()\n"
    )
    zygote.load()
    for slot, way in enumerate(("drain", "stop")):
        worker = zygote.fork(slot)
        worker.order(way)
        if way == "drain":
            assert worker.next() == {"event": "draining"}
        assert worker.wait() == 0


async def test_a_worker_ends_with_its_supervisor(workdir: Path, notes: "Notes") -> None:
    """Killed, so that nothing is said: the link's end and the kernel's signal have to do."""
    (workdir / "app.py").write_text(APP)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.worker.conftest import Nursery, be_subreaper\n"
        "be_subreaper(True)\n"
        "zygote = Nursery(Path('log').absolute())\n"
        "zygote.load()\n"
        "print(zygote.fork().wait_ready().pid, zygote.process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = str(Path(__file__).parents[2])
    supervisor = subprocess.Popen(  # noqa: ASYNC220 - the test waits for it anyway
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    below = [psutil.Process(int(pid)) for pid in supervisor.stdout.readline().split()]
    supervisor.kill()
    supervisor.communicate()
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive


async def test_the_heartbeat_is_on_the_board(life: "Nursery") -> None:
    worker = life.fork(1).wait_ready()
    view = life.board.read(1)
    assert (view.pid, view.generation) == (worker.pid, 1)
    assert view.heartbeat > 0


async def test_sync_tasks_in_a_process_pool(nursery: Start, notes: "Notes", workdir: Path) -> None:
    zygote = nursery(
        APP + "\n@broker.task(task_name='where')\ndef where() -> int:\n    return os.getpid()\n"
    )
    zygote.load(use_process_pool=True, max_process_pool_processes=2, log_level="WARNING")
    zygote.supervise("life")
    client = SharedMemoryBroker("life", geometry=SMALL)
    await client.startup()
    worker = zygote.fork().wait_ready()
    pid = (await (await send(client, "where")).wait_result(timeout=20)).return_value
    assert pid != worker.pid
    pool = psutil.Process(worker.pid).children()
    assert pid in {process.pid for process in pool}
    worker.kill(signal.SIGKILL)
    worker.wait()
    _, alive = psutil.wait_procs(pool, timeout=20)
    assert not alive
    await client.shutdown()


OTHER = """
import asyncio, os
from taskiq import AsyncBroker, AckableMessage, TaskiqMessage

class FileBroker(AsyncBroker):
    '''Messages are lines of a FIFO; acknowledgements are lines of a file.'''
    async def kick(self, message): ...
    async def listen(self):
        fd = os.open("messages", os.O_RDWR | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue()
        loop.add_reader(fd, lambda: queue.put_nowait(os.read(fd, 65536)))
        while True:
            for line in (await queue.get()).splitlines():
                def ack():
                    with open("acks", "a") as file: file.write("ack\\n")
                yield AckableMessage(data=line, ack=ack)

broker = FileBroker()

def note(text):
    fd = os.open("notes", os.O_WRONLY); os.write(fd, text.encode() + b"\\n"); os.close(fd)

@broker.task(task_name="wait")
async def wait(seconds: float):
    note("begun")
    try:
        await asyncio.sleep(seconds)
    finally:
        note("cleaned up")
"""


async def test_with_another_broker_a_task_that_is_given_back_is_not_acknowledged(
    nursery: Start, notes: "Notes"
) -> None:
    zygote = nursery(OTHER)
    zygote.load(log_level="WARNING")
    os.mkfifo("messages")
    messages = os.open("messages", os.O_RDWR)
    worker = zygote.fork().wait_ready()

    def send_wait(seconds: float) -> None:
        message = TaskiqMessage(task_id="x", task_name="wait", labels={}, args=[seconds], kwargs={})
        os.write(messages, message.model_dump_json().encode() + b"\n")

    send_wait(0)
    assert [notes.next(), notes.next()] == ["begun", "cleaned up"]
    while not Path("acks").exists():
        assert psutil.pid_exists(worker.pid)
    send_wait(60)
    assert notes.next() == "begun"
    assert zygote.board.read(0).running[0].task_name == "wait"
    worker.order("stop")
    assert notes.next() == "cleaned up"
    assert worker.wait() == 0
    assert Path("acks").read_text() == "ack\n"
    os.close(messages)
