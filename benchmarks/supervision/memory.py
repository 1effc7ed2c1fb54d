"""What a tree of four workers takes of memory, each with numpy and pandas and some tasks behind it.

PSS: each page counts for as many parts as there are processes that have it, so the sum is what the
whole tree takes. RSS of the process that supervises is its own, shared pages included.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING

import psutil

from benchmarks.figure import Effort, Figure, Unit
from benchmarks.ipc.processes import fork
from benchmarks.supervision import contestants as who
from benchmarks.supervision.contestants import HEAVY, WORKERS, Contestant, Weight, up
from benchmarks.supervision.turns import take_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

BASE = "taskiq-supervise"
POOL = "ProcessPoolExecutor, by fork"
ROUNDS = 3
BUDGET = 90.0
"""Seconds, of each figure."""
TASKS = 100
SETTLING = 1.0
"""Seconds after the last task: buffers are freed, and what is done once has been done."""
NOTES = (
    (
        f"Four workers; the application imports numpy and pandas; {TASKS} tasks in each. All "
        "processes of the tree count: supervisor, zygote, master, resource tracker."
    ),
    "`taskiq worker` runs the same application on the same broker.",
    (
        f"{POOL}: a process that imports numpy and pandas, without supervision, event loop or "
        "broker, and four forked ones."
    ),
)


def _weight() -> Weight:
    return Weight(modules=HEAVY)


def pss(processes: Sequence[psutil.Process]) -> float:
    return sum(float(process.memory_full_info().pss) for process in processes)


def of_tree(contestant: Contestant) -> list[float]:
    with up(contestant, _weight()) as round_:
        work(round_.client.who)
        return [pss(round_.running.tree())]


def of_root(contestant: Contestant) -> list[float]:
    with up(contestant, _weight()) as round_:
        work(round_.client.who)
        return [float(psutil.Process(round_.running.pid).memory_info().rss)]


def work(run: Callable[[int, float], list[int]]) -> None:
    """Until each worker has run enough."""
    runs: dict[int, int] = {}
    while len(runs) < WORKERS or min(runs.values()) < TASKS:
        for pid in run(WORKERS, 0.003):
            runs[pid] = runs.get(pid, 0) + 1
    time.sleep(SETTLING)


def _nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def _pool(answer: Connection) -> None:
    """In a process without anything of ours but this module."""
    for name in HEAVY:
        import_module(name)
    with ProcessPoolExecutor(WORKERS, mp_context=fork) as pool:
        work(lambda count, seconds: list(pool.map(_nap, [seconds] * count)))
        root = psutil.Process()
        answer.send(pss([root, *root.children(recursive=True)]))


def of_pool() -> list[float]:
    context = get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_pool, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return [float(mine.recv())]
    finally:
        mine.close()
        process.join()


def each(
    measured: Callable[[Contestant], list[float]],
) -> tuple[dict[str, Callable[[], list[float]]], list[str]]:
    """Those that are installed, by name, and a note for each that is not."""
    there, absent = who.present(
        [who.supervise(BASE), who.taskiq_worker(), who.celery(), who.gunicorn(), who.uwsgi()]
    )
    return {contestant.name: partial(measured, contestant) for contestant in there}, absent


def measure(effort: Effort) -> list[Figure]:
    contestants, absent = each(of_tree)
    contestants[POOL] = of_pool
    rounds = effort.rounds or ROUNDS
    title = "Memory of the whole tree (PSS), median of {rounds}"
    unit = Unit("MiB", scale=2**-20, digits=0)
    figure = Figure("memory", title, unit, (*NOTES, *absent), BASE)
    return [take_turns(figure, contestants, rounds, BUDGET)]


def measure_roots(effort: Effort) -> list[Figure]:
    contestants, absent = each(of_root)
    rounds = effort.rounds or ROUNDS
    notes = (
        (
            "Of the first process of each tree. That of gunicorn, uWSGI and Celery has the "
            "application in it; the manager of `taskiq worker` imports taskiq; ours imports "
            "neither."
        ),
        *absent,
    )
    title = "Memory of the process that supervises (RSS), median of {rounds}"
    unit = Unit("MB", scale=1e-6, digits=1)
    return [take_turns(Figure("rss", title, unit, notes, BASE), contestants, rounds, BUDGET)]
