"""What must hold when a storm is over: the pool is whole, and nothing is left of anything else."""

import os
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from tests.e2e.conftest import Supervisor

from taskiq_supervise.worker.listener.ledger import Ledger, Limits
from taskiq_supervise.worker.listener.store import FILE, Store

MARKER = "TASKIQ_SUPERVISE_CHAOS_ID"
"""In the environment of the processes of a storm; its value is the storm's own."""

_BELL = re.compile(r"/bell-\d+")
_CHANGES = re.compile(r":\[\d+\]$|\.new-[-\w]+ \(deleted\)$")
"""What a name ends in that is not the same each time: a queue's first lock was linked in place."""
_PER_PLACE = 2
"""Descriptors for a place in the queue: a supervisor watches whoever is there, and rings them, for
which it opens what it needs when it needs it."""


def lacking(supervisor: Supervisor) -> str:
    """Live + pending = target: each slot has somebody, or waits for somebody. Else: who is not."""
    status = supervisor.status()
    (pool,) = status["pools"]
    slots = {worker["slot"] for worker in status["workers"]}
    missing = set(range(pool["target"])) - slots
    return f"slots {missing} are forgotten: {status}" if missing else ""


def unsettled(supervisor: Supervisor) -> str:
    """What keeps the pool from being as large as it is to be, all of it READY and nothing else."""
    status = supervisor.status()
    (pool,) = status["pools"]
    workers = [(worker["slot"], worker["state"]) for worker in status["workers"]]
    whole = workers == [(slot, "ready") for slot in range(pool["target"])]
    whole &= pool["listener"] is None or pool["listener"]["state"] == "ready"
    if whole and pool["reload"] is None and pool["zygote"]["state"] == "ready":
        return ""
    return str(status)


def settle(supervisor: Supervisor, patience: float) -> None:
    until = time.monotonic() + patience
    while what := unsettled(supervisor):
        assert time.monotonic() < until, f"the pool is not whole after {patience} s: {what}"
        time.sleep(0.05)


def strangers(supervisor: Supervisor, marker: str) -> list[str]:
    """Processes of this storm, by the marker in their environment, that nobody answers for.

    Supervisor, zygote, listener and workers do, and workers for their process groups. Zombies are
    strangers.
    """
    workers = set(supervisor.worker_pids())
    children = psutil.Process(supervisor.pid).children()
    known = {supervisor.pid, *workers, listener_pid(supervisor)}
    zygotes = [one for one in children if "zygote" in " ".join(one.cmdline() or ["?"])]
    if len(zygotes) == 1:
        known.add(zygotes[0].pid)
    found = [one for one in children if one.status() == psutil.STATUS_ZOMBIE]
    for process in marked(marker):
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if process.pid not in known and os.getpgid(process.pid) not in workers:
                found.append(process)
    return [f"{one.pid} ({one.status()}) {' '.join(one.cmdline())}" for one in found]


def listener_pid(supervisor: Supervisor) -> int | None:
    """Its newest one's, of a pool that has one."""
    listener = supervisor.pool_status()["listener"]
    return None if listener is None else int(listener["pid"])


def marked(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(MARKER) == marker:
                found.append(process)
    return found


def descriptors(pid: int) -> Counter[str]:
    """How many of each kind a process has."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            kinds[_CHANGES.sub("", str(entry.readlink()))] += 1
    return kinds


def descriptors_of_listener(supervisor: Supervisor, patience: float) -> Counter[str]:
    """None where there is no listener."""
    listener = listener_pid(supervisor)
    if listener is None:
        return Counter()
    until = time.monotonic() + patience
    pool = supervisor.pool_status()
    while True:
        now = descriptors(listener)
        # Without shared memory it watches the workers and the supervisor, once they have joined.
        if pool["queue"] is not None or now["anon_inode:[pidfd]"] == pool["target"] + 1:
            return now
        assert time.monotonic() < until, f"the workers have not joined the listener: {now}"
        time.sleep(0.01)


def unfinished() -> int:
    """Messages in the store of `--transport zmq`, whose supervisor has ended."""
    folder = Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"], "listener-app-broker")
    ledger = Ledger(Store(folder / FILE), Limits())
    try:
        return ledger.unfinished
    finally:
        ledger.close()


def check_descriptors(pid: int, before: Counter[str], patience: float) -> None:
    """It has those that it had before, once it is done with our last question."""
    until = time.monotonic() + patience
    while True:
        now = descriptors(pid)
        places: Counter[str] = Counter()
        for what in now:
            if bell := _BELL.search(what):
                places[bell[0]] += now[what]
        is_rung = max(places.values(), default=0) <= _PER_PLACE
        if is_rung and _without_bells(now) == _without_bells(before):
            return
        assert time.monotonic() < until, f"descriptors were {before} and are {now}"
        time.sleep(0.05)


def _without_bells(kinds: Counter[str]) -> dict[str, int]:
    return {what: count for what, count in kinds.items() if not _BELL.search(what)}
