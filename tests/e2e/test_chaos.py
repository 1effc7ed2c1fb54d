"""Whatever happens to the processes, the pool comes back and nothing that was accepted is lost."""

import importlib
import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from taskiq.kicker import AsyncKicker
from tests.e2e import chaos
from tests.e2e import chaos_aftermath as aftermath

from taskiq_supervise.supervisor.client import Client

if TYPE_CHECKING:
    from tests.e2e.conftest import Ledger, Supervisor

KINDS = ["quick", "quick", "pause", "pause", "block", "fail", "early"]
SHORT = 5.0
"""Seconds."""
LONG = max(60.0, float(os.environ.get("STRESS_SECONDS", "60")))
SEED = os.environ.get("CHAOS_SEED")
"""The one that a failure has named."""

STORMS = [
    pytest.param(SHORT, SEED or "1", id="short"),
    pytest.param(
        LONG,
        SEED or uuid.uuid4().hex[:8],
        id="long",  # the same in all processes of pytest-xdist
        marks=[pytest.mark.stress, pytest.mark.timeout(4 * LONG + 300)],
    ),
]
# After a minute of kills and broken code some wait for half a minute, by design.
PATIENCE = 90.0


@pytest.fixture
def app(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """As in the other tests, but that of the chaos."""
    shutil.copyfile(Path(__file__).with_name("chaos_application.py"), workdir / "app.py")
    monkeypatch.syspath_prepend(str(workdir))
    module = importlib.import_module("app")
    yield module
    module._core.fork_away = module._fork_away
    del sys.modules["app"]


class Scene:
    """A supervisor, its clients, and the storm that comes over them."""

    def __init__(
        self,
        start: Callable[..., "Supervisor"],
        client: Any,
        folder: Path,
        marker: str,
        seed: str,
        *,
        kills: bool,
    ) -> None:
        """marker: all processes of the supervisor have it in their environment."""
        self._client = client
        self._marker = marker
        self._start = start
        self._storm = chaos.Storm(self._supervise, folder, seed, kills=kills)
        kinds = KINDS if kills else [*KINDS, "keep_child"]
        self._load = chaos.Load(folder, seed, PATIENCE, kinds)

    @property
    def terminated(self) -> set[int]:
        return self._storm.terminated

    def _supervise(self) -> "Supervisor":
        options = ("-w", str(chaos.WORKERS), "--max-tasks-per-worker", "500")
        environment = {aftermath.MARKER: self._marker}
        return self._start("app:broker", "release", *options, environment=environment)

    async def play(self, seconds: float) -> list[dict[str, Any]]:
        """Returns what the clients know of their tasks."""
        storm = self._storm
        before = aftermath.descriptors(storm.supervisor.pid)
        storm.blow(seconds)
        storm.calm()
        supervisor = storm.supervisor
        assert not aftermath.lacking(supervisor)
        aftermath.settle(supervisor, PATIENCE)
        assert Client("app-broker").reload(wait=True)["ok"]
        version: Any = AsyncKicker("release:version", self._client.broker, {})
        tasks = [await version.kiq() for _ in range(20)]
        results = [await task.wait_result(timeout=PATIENCE) for task in tasks]
        assert {result.return_value for result in results} == {storm.release.number}
        self._load.end()
        aftermath.settle(supervisor, PATIENCE)
        assert not aftermath.strangers(supervisor, self._marker)
        aftermath.check_descriptors(supervisor.pid, before, PATIENCE)
        queue = supervisor.pool_status()["queue"]
        assert (queue["ready"], queue["leased"], queue["delayed"]) == (0, 0, 0)
        assert "in callback" not in supervisor.log.without_tasks
        assert supervisor.stop() == 0
        assert not aftermath.marked(self._marker)
        return [json.loads(line) for line in self._load.report.read_text().splitlines()]

    def end(self) -> None:
        self._load.kill()

    def story(self) -> str:
        return "\n  ".join(["what was done:", *self._storm.done])


@pytest.fixture
def scene(
    supervise: Callable[..., "Supervisor"], workdir: Path, client: Any, marker: str
) -> Callable[..., AbstractContextManager[Scene]]:
    """What fails in its context is told with the seed and what was done."""

    @contextmanager
    def begin(seed: str, *, kills: bool) -> Iterator[Scene]:
        one = Scene(supervise, client, workdir, marker, seed, kills=kills)
        try:
            yield one
        except Exception as error:
            raise AssertionError(f"{error}\nCHAOS_SEED={seed}, {one.story()}") from error
        finally:
            one.end()

    return begin


@pytest.fixture
def marker() -> str:
    return uuid.uuid4().hex


@pytest.mark.parametrize(("seconds", "seed"), STORMS)
async def test_after_any_kills_the_pool_is_whole_and_every_task_ran(
    scene: Callable[..., AbstractContextManager[Scene]], ledger: "Ledger", seconds: float, seed: str
) -> None:
    with scene(seed, kills=True) as storm:
        report = await storm.play(seconds)
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
    scene: Callable[..., AbstractContextManager[Scene]], ledger: "Ledger", seconds: float, seed: str
) -> None:
    with scene(seed, kills=False) as storm:
        report = await storm.play(seconds)
        # One that was draining already gives back what it runs when it gets a SIGTERM.
        given_back = {what for what, pid in ledger.entries("begun") if pid in storm.terminated}
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
