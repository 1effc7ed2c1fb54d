"""A worker may die at every boundary of its life: nothing is lost, and the next one goes on."""

import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.broker.conftest import SMALL

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.broker.task import QueueKicker
from taskiq_supervise.ipc import OutcomeKind
from taskiq_supervise.worker import failpoint

if TYPE_CHECKING:
    from tests.worker.conftest import Nursery

Start = Callable[..., "Nursery"]

APP = """
from taskiq_supervise import SharedMemoryBroker
broker = SharedMemoryBroker("failing")

@broker.task(task_name="add")
async def add(a: int, b: int) -> int:
    with open("ledger", "a") as file:
        file.write("ran\\n")
    return a + b
"""

OF_A_WORKER = [name for name in failpoint.NAMES if not name.startswith("fork.")]
AT_THE_END = {"drain.before", "drain.after", "exit.before"}
RUNS_TWICE = {"save.before"}
"""The task ran, and nobody knows."""


@pytest.fixture
def armed(nursery: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """Starts a zygote that the failpoint is armed in."""

    def start(name: str) -> "Nursery":
        armed = tmp_path / "armed"
        armed.touch()
        monkeypatch.setenv(failpoint.VARIABLE, f"{name}:{armed}")
        zygote = nursery(APP)
        assert zygote.load(log_level="WARNING")["op"] == "loaded"
        zygote.supervise("failing")
        return zygote

    return start


@pytest.fixture
async def client() -> AsyncIterator[SharedMemoryBroker]:
    """Started by the test, once the supervisor has made the queue."""
    broker = SharedMemoryBroker("failing", geometry=SMALL)
    yield broker
    await broker.shutdown()


async def add(client: SharedMemoryBroker, **labels: Any) -> Any:
    kicker: QueueKicker[Any, Any] = QueueKicker("add", client, labels)
    return await kicker.kiq(1, 2)


@pytest.mark.parametrize("name", OF_A_WORKER)
async def test_a_worker_that_dies_there_loses_nothing(
    armed: Start, client: SharedMemoryBroker, name: str
) -> None:
    life = armed(name)
    await client.startup()
    task = await add(client)
    first = life.fork(0)
    if name in AT_THE_END:
        first.wait_ready()
        assert (await task.wait_result(timeout=10)).return_value == 3
        first.order("drain")
    assert first.wait() == -signal.SIGKILL
    assert not Path("armed").exists()
    life.bury(first)
    # The same code, the failpoint still named: it kills one process only.
    second = life.fork(1).wait_ready()
    assert (await task.wait_result(timeout=10)).return_value == 3
    second.order("drain")
    assert second.wait() == 0
    assert Path("ledger").read_text().count("ran") == 1 + (name in RUNS_TWICE)
    assert life.queue is not None
    assert (life.queue.stats().running, life.queue.stats().ready) == (0, 0)


@pytest.mark.parametrize("name", ["start.after", "save.before", "ack.after"])
async def test_a_task_that_was_acknowledged_first_is_not_run_again(
    armed: Start, client: SharedMemoryBroker, name: str
) -> None:
    life = armed(name)
    await client.startup()
    task = await add(client, ack_type="when_received")
    first = life.fork(0)
    assert first.wait() == -signal.SIGKILL
    burial = life.bury(first)
    again = name == "start.after"  # one step before
    assert (burial.redelivered, burial.lost) == (
        ((task.task_id,), ()) if again else ((), (task.task_id,))
    )
    assert life.queue is not None
    if not again:
        outcome = life.queue.outcome(task.task_id)
        assert outcome is not None
        assert outcome.kind is OutcomeKind.WORKER_LOST


def test_a_zygote_that_dies_before_it_forks_leaves_no_worker(armed: Start) -> None:
    life = armed("fork.before")
    worker = life.ask()
    with suppress(ConnectionResetError), pytest.raises(EOFError):
        life.next()
    assert life.process.wait(20) == -signal.SIGKILL
    # Nobody has the other end.
    assert worker.socket.recv(1) == b""
    worker.close()


def test_a_zygote_that_dies_after_it_forked_leaves_a_worker_that_ends_with_its_link(
    armed: Start,
) -> None:
    life = armed("fork.after")
    worker = life.ask()
    assert life.process.wait(20) == -signal.SIGKILL
    [child] = psutil.Process().children()
    worker.pid = child.pid
    worker.close()
    # Nobody is left to end its process group but itself.
    assert worker.wait() == -signal.SIGKILL


def test_every_failpoint_is_somewhere() -> None:
    sources = Path(failpoint.__file__).parent.glob("*.py")
    placed = {
        name for path in sources for name in re.findall(r'failpoint\("(.+?)"\)', path.read_text())
    }
    assert placed == set(failpoint.NAMES)


def test_a_failpoint_that_does_not_exist_is_refused(nursery: Start, monkeypatch: Any) -> None:
    monkeypatch.setenv(failpoint.VARIABLE, "lunch.before:/nowhere")
    life = nursery(APP)
    assert life.process.wait(20) != 0
    assert "no failpoint 'lunch.before'" in life.log
