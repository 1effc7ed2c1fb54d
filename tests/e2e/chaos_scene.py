"""A supervisor, its clients, and the storm that comes over them; played to its end."""

import asyncio
import importlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from taskiq import TaskiqResult, TaskiqResultTimeoutError
from taskiq.kicker import AsyncKicker
from tests.e2e import chaos
from tests.e2e import chaos_aftermath as aftermath
from tests.e2e.conftest import Supervisor

from taskiq_supervise.broker.errors import ResultExpiredError
from taskiq_supervise.supervisor.client import Client

RESULTS_KEPT = 16_000
"""At least, by a queue of the usual size."""
KINDS = ["quick", "quick", "pause", "pause", "block", "fail", "early"]
SHORT = 4.0
"""Seconds."""
LONG = max(60.0, float(os.environ.get("STRESS_SECONDS", "60")))
SEED = os.environ.get("CHAOS_SEED")
"""The one that a failure has named."""

SHORT_STORM = pytest.param(SHORT, SEED or "1", id="short")
LONG_STORM = pytest.param(
    LONG,
    SEED or uuid.uuid4().hex[:8],
    id="long",  # the same in all processes of pytest-xdist
    marks=[pytest.mark.stress, pytest.mark.timeout(4 * LONG + 300)],
)
# After a minute of kills and broken code some wait for half a minute, by design.
PATIENCE = 90.0

FLOW = 200
"""Lines in the ledger."""

Report = list[dict[str, Any]]


@dataclass(frozen=True)
class Cast:
    """Who plays."""

    options: tuple[str, ...] = ()
    """The supervisor's, beyond the usual ones."""
    clients: int = 1
    patience: float = PATIENCE
    """The clients', in seconds, for one result."""
    storm: type[chaos.Storm] = chaos.Storm
    environment: dict[str, str] = field(default_factory=dict)
    """The application's."""


@contextmanager
def application(cast: Cast, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """That of the chaos, as its clients import it."""
    for name, value in cast.environment.items():
        monkeypatch.setenv(name, value)
    here = Path(__file__).parent
    shutil.copyfile(here / "chaos_application.py", workdir / "app.py")
    shutil.copyfile(here / "file_results.py", workdir / "file_results.py")
    monkeypatch.syspath_prepend(str(workdir))
    module = importlib.import_module("app")
    yield module
    module._core.fork_away = module._fork_away
    if (context := getattr(module.broker, "context", None)) is not None:
        context.destroy(linger=0)
    del sys.modules["app"]


@contextmanager
def scene(
    cast: Cast,
    supervise: Callable[..., Supervisor],
    app: ModuleType,
    seed: str,
    *,
    kills: bool,
) -> Iterator["Scene"]:
    """What fails in its context is told with the seed and what was done."""
    one = Scene(cast, supervise, app, seed, kills=kills)
    try:
        yield one
    except Exception as error:
        raise AssertionError(f"{error}\nCHAOS_SEED={seed}, {one.story()}") from error
    finally:
        one.end()


class Scene:
    """One storm and its aftermath.

    Attributes:
        unrun: the outcome of each task that was accepted and has not begun, by its number.
        forgotten: those of them whose outcome made room for those of so many others.
    """

    def __init__(
        self,
        cast: Cast,
        start: Callable[..., Supervisor],
        app: ModuleType,
        seed: str,
        *,
        kills: bool,
    ) -> None:
        self.unrun: dict[str, TaskiqResult[Any]] = {}
        self.forgotten: set[str] = set()
        self._app = app
        self._cast = cast
        self._marker = uuid.uuid4().hex
        """All processes of the supervisor have it in their environment."""
        self._start = start
        folder = Path.cwd()
        self.storm = cast.storm(self._supervise, folder, seed, kills=kills)
        supervisor = self.storm.supervisor
        self._before = aftermath.descriptors(supervisor.pid)
        self._listener_before = aftermath.descriptors_of_listener(supervisor, PATIENCE)
        kinds = KINDS if kills else [*KINDS, "keep_child"]
        for number in range(cast.clients):
            first = number * chaos.MOST_TASKS * 1000
            load = chaos.Load(folder, f"{seed} {number}", cast.patience, kinds, first)
            self.storm.loads.append(load)

    def _supervise(self) -> Supervisor:
        options = ("-w", str(chaos.WORKERS), "--max-tasks-per-worker", "500", *self._cast.options)
        environment = {aftermath.MARKER: self._marker}
        return self._start("app:broker", "release", *options, environment=environment)

    async def play(self, seconds: float) -> Report:
        """Returns what the clients know of their tasks."""
        storm = self.storm
        await flow()
        storm.blow(seconds)
        storm.calm()
        supervisor = storm.supervisor
        assert not aftermath.lacking(supervisor)
        aftermath.settle(supervisor, PATIENCE)
        assert Client("app-broker").reload(wait=True)["ok"]
        await flow()
        for load in storm.loads:
            load.end()
        async with running(self._app.broker) as broker:
            await self._see_release(broker)
            await self._look_for_unrun(broker)
        aftermath.settle(supervisor, PATIENCE)
        assert not aftermath.strangers(supervisor, self._marker)
        aftermath.check_descriptors(supervisor.pid, self._before, PATIENCE)
        if (listener := aftermath.listener_pid(supervisor)) is not None:
            aftermath.check_descriptors(listener, self._listener_before, PATIENCE)
        queue = supervisor.pool_status()["queue"]
        if queue is not None:
            assert (queue["ready"], queue["leased"], queue["delayed"]) == (0, 0, 0)
        assert "in callback" not in supervisor.log.without_tasks
        assert supervisor.stop() == 0
        if queue is None:
            assert aftermath.unfinished() == 0
        assert not aftermath.marked(self._marker)
        reports = [load.report.read_text().splitlines() for load in storm.loads]
        return [json.loads(line) for lines in reports for line in lines]

    async def _see_release(self, broker: Any) -> None:
        """All workers have the newest code."""
        version: Any = AsyncKicker("release:version", broker, {})
        while True:  # a broker that only publishes loses what it sends before it is heard
            with_patience = {"check_interval": 0.05, "timeout": 1.0}
            try:
                await (await version.kiq()).wait_result(**with_patience)
                break
            except TaskiqResultTimeoutError:
                continue
        tasks = [await version.kiq() for _ in range(20)]
        results = [await task.wait_result(timeout=PATIENCE) for task in tasks]
        assert {result.return_value for result in results} == {self.storm.release.number}

    async def _look_for_unrun(self, broker: Any) -> None:
        noted = [line.split()[:2] for line in lines(Path("ledger"))]
        begun = {number for word, number in noted if word == "begun"}
        known = {number for word, number in noted if word == "put"}
        known |= {line.split()[1] for line in lines(Path("accepted"))}
        for number in known - begun:
            try:
                if await broker.result_backend.is_result_ready(number):
                    self.unrun[number] = await broker.result_backend.get_result(number)
            except ResultExpiredError:
                if len(known) <= RESULTS_KEPT:
                    raise
                self.forgotten.add(number)

    def end(self) -> None:
        for load in self.storm.loads:
            load.kill()

    def story(self) -> str:
        return "\n  ".join(["what was done:", *self.storm.done])


async def flow() -> None:
    """Waits until tasks come through again; what is begun notes it."""
    ledger = Path("ledger")
    before, until = len(lines(ledger)), time.monotonic() + PATIENCE
    while len(lines(ledger)) < before + FLOW:
        assert time.monotonic() < until, "no tasks come through"
        await asyncio.sleep(0.05)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@asynccontextmanager
async def running(broker: Any) -> AsyncIterator[Any]:
    """The broker on the side of its client."""
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()
        if hasattr(broker, "socket"):  # taskiq's leaves it open
            broker.socket.close(linger=0)
