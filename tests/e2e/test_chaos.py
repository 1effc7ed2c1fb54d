"""Whatever happens to the processes, the pool comes back and nothing that was accepted is lost."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from taskiq.kicker import AsyncKicker
from tests.e2e import chaos
from tests.e2e import chaos_aftermath as aftermath
from tests.e2e.chaos_scene import LONG_STORM, PATIENCE, SHORT_STORM, Cast, application, scene

from taskiq_supervise.supervisor.client import Client

if TYPE_CHECKING:
    from tests.e2e.conftest import Ledger, Supervisor

Start = Callable[..., "Supervisor"]
CAST = Cast()
STORMS = [SHORT_STORM, LONG_STORM]


@pytest.fixture
def app(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """As in the other tests, but that of the chaos."""
    with application(CAST, workdir, monkeypatch) as module:
        yield module


@pytest.fixture
def marker() -> str:
    return uuid.uuid4().hex


@pytest.mark.parametrize(("seconds", "seed"), STORMS)
async def test_after_any_kills_the_pool_is_whole_and_every_task_ran(
    supervise: Start, app: ModuleType, ledger: "Ledger", seconds: float, seed: str
) -> None:
    with scene(CAST, supervise, app, seed, kills=True) as one:
        report = await one.play(seconds)
        begun = ledger.counts("begun")
        for task in report:
            times = begun.get(str(task["number"]), 0)
            if task["kind"] == "early":
                # Acknowledged before it ran: never again, and who waits is told.
                assert times == 1 or (times, task["outcome"]) == (0, "WorkerLostError"), task
                assert task["outcome"] in {"value", "WorkerLostError"}, task
            else:
                assert times >= 1, task
                good = "ValueError" if task["kind"] == "fail" else "value"
                # Whoever is hit three times is given up.
                assert task["outcome"] in {good, "WorkerLostError"}, task
        lost = [task for task in report if task["outcome"] == "WorkerLostError"]
        assert len(lost) < len(report) / 10


@pytest.mark.parametrize(("seconds", "seed"), STORMS)
async def test_without_kills_every_task_runs_exactly_once(
    supervise: Start, app: ModuleType, ledger: "Ledger", seconds: float, seed: str
) -> None:
    with scene(CAST, supervise, app, seed, kills=False) as one:
        report = await one.play(seconds)
        # One that was draining already gives back what it runs when it gets a SIGTERM.
        given_back = {what for what, pid in ledger.entries("begun") if pid in one.storm.terminated}
        begun, done = ledger.counts("begun"), ledger.counts("done")
        for task in report:
            number = str(task["number"])
            assert done.get(number) == 1, task
            assert begun[number] == 1 or number in given_back, task
            assert task["outcome"] == ("ValueError" if task["kind"] == "fail" else "value"), task


# --- what storms have found -----------------------------------------------------------------------


async def test_a_supervisor_without_descriptors_goes_on_and_leaks_none(
    supervise: Callable[..., "Supervisor"], client: Any, marker: str
) -> None:
    """A fork takes several; here they run out at each of them, one after the other."""
    supervisor = supervise("app:broker", "-w", "1", environment={aftermath.MARKER: marker})
    supervisor.wait_ready()
    before = aftermath.descriptors(supervisor.pid)
    failed = []
    for spare in range(10):
        (worker,) = supervisor.status()["workers"]
        with chaos.starving(supervisor.pid, spare):
            os.kill(worker["pid"], signal.SIGKILL)
            line = rf"worker=0 gen={worker['generation'] + 1} (could not be forked|pid=\d+ ready)"
            failed.append(supervisor.log.wait_for(line)[1] == "could not be forked")
        aftermath.settle(supervisor, PATIENCE)
        assert not aftermath.strangers(supervisor, marker)
        aftermath.check_descriptors(supervisor.pid, before, PATIENCE)
        # With a task that it completed the next one is not held up by what failed before.
        task = await client.quick.kiq(spare)
        assert (await task.wait_result(timeout=PATIENCE)).return_value == spare
    assert failed[0]
    assert not failed[-1]
    assert supervisor.stop() == 0


async def test_a_worker_that_comes_when_there_is_no_descriptor_for_it_is_nobodys(
    supervise: Callable[..., "Supervisor"], client: Any, marker: str
) -> None:
    supervisor = supervise("app:broker", "-w", "1", environment={aftermath.MARKER: marker})
    supervisor.wait_ready()
    (worker,) = supervisor.status()["workers"]
    (zygote,) = {process.pid for process in supervisor.tree()} - {supervisor.pid, worker["pid"]}
    os.kill(zygote, signal.SIGSTOP)
    os.kill(worker["pid"], signal.SIGKILL)
    supervisor.log.wait_for("worker=0 gen=1 .* killed by SIGKILL")
    assert supervisor.status()["workers"][0]["state"] == "forking"
    with chaos.starving(supervisor.pid, 0):
        os.kill(zygote, signal.SIGCONT)
        supervisor.log.wait_for(r"worker=0 gen=\d+ (could not be forked|pid=\d+ ready)")
    aftermath.settle(supervisor, PATIENCE)
    assert not aftermath.strangers(supervisor, marker)
    task = await client.quick.kiq(1)
    assert (await task.wait_result(timeout=PATIENCE)).return_value == 1
    assert supervisor.stop() == 0


@pytest.mark.parametrize("broken", chaos.BROKEN[3:], ids=["raises", "dies"])
async def test_a_zygote_that_came_back_with_broken_code_is_replaced_once_it_is_mended(
    supervise: Callable[..., "Supervisor"], workdir: Path, client: Any, marker: str, broken: str
) -> None:
    """It can be loaded, a reload has refused it, and it lay there when the zygote was killed."""
    release = chaos.Release(workdir)
    supervisor = supervise(
        "app:broker", "release", "-w", "2", environment={aftermath.MARKER: marker}
    ).wait_ready()
    release.publish(broken)
    assert not Client("app-broker").reload(wait=True)["ok"]
    (zygote,) = {process.pid for process in supervisor.tree()} - {
        supervisor.pid,
        *supervisor.worker_pids(),
    }
    os.kill(zygote, signal.SIGKILL)
    supervisor.log.wait_for("zygote=1 killed by SIGKILL")
    for pid in supervisor.worker_pids():
        os.kill(pid, signal.SIGKILL)
    supervisor.log.wait_for(r"zygote=\d+ failed: its workers do not get ready")
    release.publish()
    aftermath.settle(supervisor, PATIENCE)
    version: Any = AsyncKicker("release:version", client.broker, {})
    result = await (await version.kiq()).wait_result(timeout=PATIENCE)
    assert result.return_value == release.number
    assert supervisor.stop() == 0
