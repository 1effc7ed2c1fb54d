"""Whatever happens to clients, listener, workers and supervisor: none is lost, none is doubled.

Three pools: on our ZeroMQBroker, with the queue in shared memory and with `--transport zmq`, and on
taskiq's, which only publishes, so that a message may be lost on its way to the listener.
"""

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from tests.e2e.chaos_scene import (
    LONG_STORM,
    PATIENCE,
    SHORT_STORM,
    Cast,
    Report,
    Scene,
    application,
    lines,
    scene,
)
from tests.e2e.zeromq_chaos import ListenerStorm

from taskiq_supervise.broker import WorkerLostError

if TYPE_CHECKING:
    from tests.e2e.conftest import Ledger, Supervisor

Start = Callable[..., "Supervisor"]

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pool:
    """broker: "own" or "stock"; scheme: of its address."""

    broker: str
    scheme: str
    options: tuple[str, ...] = ()

    def cast(self, address: str) -> Cast:
        # taskiq's client binds the address, so there is one; and it waits in vain for what is lost.
        clients, patience = (2, PATIENCE) if self.broker == "own" else (1, 0.5)
        environment = {"CHAOS_BROKER": self.broker, "CHAOS_ADDRESS": address}
        return Cast(self.options, clients, patience, ListenerStorm, environment)


TCP, IPC, STOCK = Pool("own", "tcp"), Pool("own", "ipc"), Pool("stock", "tcp")
NO_SHM = Pool("own", "tcp", ("--transport", "zmq"))
NAMES = {TCP: "own-tcp", IPC: "own-ipc", NO_SHM: "own-no-shm", STOCK: "stock"}


def storms(*pools: Pool, brief: tuple[Pool, ...]) -> pytest.MarkDecorator:
    """Short and long ones over each. brief: whose short ones are part of `make test`."""
    found = []
    for pool in pools:
        for storm in (SHORT_STORM, LONG_STORM):
            more = [] if pool in brief or storm is LONG_STORM else [pytest.mark.stress]
            marks, name = [*storm.marks, *more], f"{NAMES[pool]}-{storm.id}"
            found.append(pytest.param(pool, *storm.values, id=name, marks=marks))
    return pytest.mark.parametrize(("pool", "seconds", "seed"), found)


@pytest.fixture
def address(pool: Pool, workdir: Path) -> Iterator[str]:
    """A free one, and free again afterwards."""
    if pool.scheme == "ipc":
        path = workdir / "socket"
        yield f"ipc://{path}"
        assert not path.exists()
        return
    # A host of this process alone: while nobody listens, nobody else is given the port.
    with socket.create_server((f"127.7.{os.getpid() >> 8 & 255}.{os.getpid() & 255}", 0)) as probe:
        host, port = probe.getsockname()
    yield f"tcp://{host}:{port}"
    socket.create_server((host, port)).close()


@pytest.fixture
def cast(pool: Pool, address: str) -> Cast:
    return pool.cast(address)


@pytest.fixture
def app(cast: Cast, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with application(cast, workdir, monkeypatch) as module:
        yield module


@storms(TCP, IPC, NO_SHM, STOCK, brief=(TCP, STOCK))
async def test_after_any_kills_what_was_accepted_is_run_and_was_put_once(
    supervise: Start,
    cast: Cast,
    app: ModuleType,
    ledger: "Ledger",
    pool: Pool,
    seconds: float,
    seed: str,
) -> None:
    with scene(cast, supervise, app, seed, kills=True) as one:
        await play_and_check(one, pool, seconds, ledger)


@storms(IPC, NO_SHM, STOCK, brief=(IPC,))
async def test_without_kills_every_task_is_run_exactly_once(
    supervise: Start,
    cast: Cast,
    app: ModuleType,
    ledger: "Ledger",
    pool: Pool,
    seconds: float,
    seed: str,
) -> None:
    with scene(cast, supervise, app, seed, kills=False) as one:
        report = await play_and_check(one, pool, seconds, ledger)
        assert not one.storm.killed
        assert "WorkerLostError" not in {task["outcome"] for task in report}


async def play_and_check(one: Scene, pool: Pool, seconds: float, ledger: "Ledger") -> Report:
    report = await one.play(seconds)
    check = check_published if pool is STOCK else check_reliable
    check(one, report, ledger)
    return report


def check_reliable(one: Scene, report: Report, ledger: "Ledger") -> None:
    """What `kiq()` returned for is run, whatever became of its client; who waits is told."""
    check_runs(accepted(), one, ledger)
    for task in report:
        good = "ValueError" if task["kind"] == "fail" else "value"
        assert task["outcome"] in {good, "WorkerLostError"}, task
    lost = [task for task in report if task["outcome"] == "WorkerLostError"]
    assert len(lost) < len(report) / 10


def check_published(one: Scene, report: Report, ledger: "Ledger") -> None:
    """What has reached the queue got there once, is run, and has a result."""
    assert set(ledger.counts("putting").values()) == {1}
    kinds = accepted()
    # A client may be killed between sending a task and saying so.
    put = {number: kinds.get(number, UNKNOWN) for number in ledger.counts("put")}
    check_runs({number: kind for number, kind in put.items() if number.isdigit()}, one, ledger)
    assert not [number for number in put if not Path("results", number).exists()]
    known = {"value", "ValueError", "WorkerLostError", "none"}
    assert {task["outcome"] for task in report} <= known


def accepted() -> dict[str, str]:
    """The kind of each task that `kiq()` has returned for, by its number."""
    return {number: kind for kind, number in map(str.split, lines(Path("accepted")))}


def check_runs(kinds: dict[str, str], one: Scene, ledger: "Ledger") -> None:
    """Each of them is, once; again only if the worker died with it, or had to give it back."""
    runs: defaultdict[str, list[int]] = defaultdict(list)
    for number, pid in ledger.entries("begun"):
        runs[number].append(pid)
    # What is acknowledged before it runs is never run again, but who waits is told.
    may_be_early = {number for number, kind in kinds.items() if kind in {"early", UNKNOWN}}
    told = {n for n, result in one.unrun.items() if isinstance(result.error, WorkerLostError)}
    unrun = {number: kinds[number] for number in kinds if number not in runs}
    assert unrun.keys() <= may_be_early & (told | one.forgotten), (unrun, one.unrun)
    broken_off = one.storm.killed | one.storm.terminated
    again = {number: pids for number, pids in runs.items() if not {*pids[:-1]} <= broken_off}
    assert not again
    early = {number for number, kind in kinds.items() if kind == "early"}
    assert not {number: runs[number] for number in early if len(runs[number]) > 1}
