"""A process of a running supervisor dies at each boundary of its life: nothing is lost.

Each failpoint kills one process, once: at the start, or during a reload, or when a worker leaves.
Afterwards the pool is whole and every task that was accepted has run.
"""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e import chaos_aftermath as aftermath

import taskiq_supervise
from taskiq_supervise.supervisor.client import Client
from taskiq_supervise.worker import failpoint

if TYPE_CHECKING:
    from tests.e2e.conftest import Bell, Gate, Ledger, Supervisor

Start = Callable[..., "Supervisor"]

WORKERS = 2
TASKS = 20
PATIENCE = 60.0

AT_THE_START = ("fork.before", "fork.after", "boot.before", "boot.after", "ready.before")
AT_WORK = (
    "ready.after",
    "claim.after",
    "start.before",
    "start.after",
    "save.before",
    "save.after",
    "ack.before",
    "ack.after",
)
AT_THE_END = ("drain.before", "drain.after", "exit.before")
IN_EACH_RUN = {"fork.before", "fork.after", "ready.before", "exit.before"}
"""During a reload; each takes seconds."""
RUNS_TWICE = {"save.before"}
"""It has run, and nobody knows."""


@pytest.fixture
def armed(supervise: Start, workdir: Path) -> Callable[[str], "Supervisor"]:
    """Starts a supervisor that has the failpoint; it does nothing before `arm`."""

    def start(name: str) -> "Supervisor":
        environment = {failpoint.VARIABLE: f"{name}:{workdir / 'armed'}"}
        options = ("--workers", str(WORKERS), "--max-async-tasks", "1")
        return supervise("app:broker", *options, environment=environment)

    return start


def arm() -> None:
    Path("armed").touch()


def struck() -> bool:
    return not Path("armed").exists()


async def all_have_run(tasks: list[Any]) -> None:
    results = [await task.wait_result(timeout=PATIENCE) for task in tasks]
    assert [result.return_value for result in results] == list(range(len(tasks)))


def is_whole(supervisor: "Supervisor") -> None:
    """Once the pool is, there is nobody else: supervisor, zygote and workers."""
    aftermath.settle(supervisor, PATIENCE)
    assert supervisor.pool_status()["target"] == WORKERS
    assert len(supervisor.tree()) == 2 + WORKERS


@pytest.mark.parametrize("name", [*AT_THE_START, *AT_WORK])
async def test_who_dies_there_is_replaced_and_every_task_runs(
    armed: Callable[[str], "Supervisor"], client: Any, ledger: "Ledger", name: str
) -> None:
    tasks = [await client.record.kiq(number) for number in range(TASKS)]
    arm()
    supervisor = armed(name)
    supervisor.log.wait_for("killed by SIGKILL")
    assert struck()
    await all_have_run(tasks)
    is_whole(supervisor)
    times = sorted(ledger.counts("record").values())
    again = int(name in RUNS_TWICE)
    assert times == [1] * (TASKS - again) + [2] * again
    assert supervisor.pool_status()["queue"]["dead"] == 0
    assert supervisor.stop() == 0


@pytest.mark.parametrize("name", AT_THE_END)
async def test_who_dies_while_it_leaves_is_replaced_and_every_task_runs_once(
    armed: Callable[[str], "Supervisor"], client: Any, ledger: "Ledger", name: str
) -> None:
    supervisor = armed(name).wait_ready()
    arm()
    tasks = [await client.record.kiq(number) for number in range(TASKS)]
    (leaving, *_) = supervisor.worker_pids()
    os.kill(leaving, signal.SIGTERM)
    supervisor.log.wait_for(f"pid={leaving} killed by SIGKILL")
    assert struck()
    await all_have_run(tasks)
    is_whole(supervisor)
    assert leaving not in supervisor.worker_pids()
    assert set(ledger.counts("record").values()) == {1}
    assert len(ledger.counts("record")) == TASKS
    assert supervisor.stop() == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in IN_EACH_RUN else pytest.mark.stress)
        for name in (*AT_THE_START, "ready.after", *AT_THE_END)
    ],
)
async def test_a_reload_in_which_somebody_dies_there_loses_and_doubles_nothing(
    armed: Callable[[str], "Supervisor"], client: Any, ledger: "Ledger", name: str
) -> None:
    """Whether it goes on or is rolled back; and the next one works."""
    supervisor = armed(name).wait_ready()
    before = supervisor.worker_pids()
    ended = asyncio.Event()
    values: list[int] = []

    async def send() -> None:
        while not ended.is_set():
            task = await client.record.kiq(len(values))
            values.append((await task.wait_result(timeout=PATIENCE)).return_value)

    sending = asyncio.create_task(send())
    arm()
    reloaded = await asyncio.to_thread(Client("app-broker").reload, wait=True)
    assert struck()
    assert reloaded["ok"] or "SIGKILL" in reloaded["message"], reloaded
    again = await asyncio.to_thread(Client("app-broker").reload, wait=True)
    assert again["ok"], again
    ended.set()
    await sending
    assert values == list(range(len(values)))
    is_whole(supervisor)
    assert set(supervisor.worker_pids()).isdisjoint(before)
    assert set(ledger.counts("record").values()) == {1}
    assert len(ledger.counts("record")) == len(values)
    assert supervisor.stop() == 0


async def test_what_the_first_worker_of_new_code_has_begun_it_finishes_though_it_has_to_go(
    supervise: Start, client: Any, ledger: "Ledger", bell: "Bell", gate: "Gate"
) -> None:
    one_at_a_time = ("--workers", "1", "--max-async-tasks", "1")
    supervisor = supervise("app:broker", *one_at_a_time).wait_ready()
    tasks = [await client.hold_async.kiq("old")]
    bell.wait()
    before = {process.pid for process in supervisor.tree()}
    tasks.append(await client.hold_async.kiq("new"))
    supervisor.process.send_signal(signal.SIGHUP)
    _, canary = bell.wait()
    (zygote,) = (one for one in supervisor.tree() if one.pid not in {*before, canary})
    zygote.kill()
    supervisor.log.wait_for("reload 1 rolled back|zygote=2 killed")
    gate.let_by(2)
    results = [await task.wait_result(timeout=PATIENCE) for task in tasks]
    assert [result.return_value for result in results] == ["old", "new"]
    assert ledger.counts("hold") == {"old": 1, "new": 1}
    assert supervisor.stop() == 0


def test_every_failpoint_in_the_code_is_listed_and_has_its_test() -> None:
    package = Path(taskiq_supervise.__file__).parent
    rooms = [package / room for room in ("broker", "ipc", "supervisor", "worker")]
    placed = {
        name
        for room in rooms
        for path in room.rglob("*.py")
        for name in re.findall(r'failpoint\("(.+?)"\)', path.read_text())
    }
    assert placed == set(failpoint.NAMES)
    assert sorted((*AT_THE_START, *AT_WORK, *AT_THE_END)) == sorted(failpoint.NAMES)
