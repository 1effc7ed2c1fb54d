"""SIGKILL of an idle worker that has completed a task, until its replacement is READY."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.figure import Effort, Figure, Unit
from benchmarks.supervision import contestants as who
from benchmarks.supervision.contestants import WORKERS, Contestant, Weight, up
from benchmarks.supervision.turns import take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = "taskiq-supervise"
HEAVY = "taskiq-supervise, numpy and pandas too"
IMPORT = Weight(seconds=1.2)
ROUNDS = 3
BUDGET = 270.0
"""Seconds."""
QUICK, SLOW = 32, 6
"""Deaths in a round; fewer of those that take seconds for each."""
NOTES = (
    (
        "The application takes 1.2 s to import (a sleep in a module). Four workers; each "
        "completes a task between two kills; the one that has lived longest is killed."
    ),
    (
        "READY of `taskiq-supervise` is its log line about the worker, which has joined the "
        "queue by then; of `taskiq worker`, on the same broker, the worker's line “Listening "
        "started”; of gunicorn its hook `post_worker_init`, of uWSGI `post_fork_hook`, of "
        "Celery the signal `worker_process_init`. Each is a line in the contestant's stderr, "
        "stamped when it is read."
    ),
    (
        "gunicorn, uWSGI and Celery fork from a process that has the application; so does "
        "`taskiq-supervise`. `taskiq worker` looks after its workers once a second and starts "
        "Python anew."
    ),
)


def kill_each(contestant: Contestant, weight: Weight, deaths: int) -> list[float]:
    seconds = []
    with up(contestant, weight) as round_:
        lived: dict[int, None] = {}  # in the order of birth, as far as they have worked
        for _ in range(deaths):
            at_work = set(round_.client.who(WORKERS, 0.03))
            lived = {pid: None for pid in (*lived, *at_work) if pid in at_work}
            victim = next(iter(lived))
            round_.running.skip()
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            ready, _ = round_.running.until(contestant.ready)
            seconds.append(ready - killed)
            del lived[victim]
    return seconds


def kill_one_of_each(contestant: Contestant, weight: Weight, deaths: int) -> list[float]:
    """Started anew for each."""
    return [kill_each(contestant, weight, 1)[0] for _ in range(deaths)]


def measure(effort: Effort) -> list[Figure]:
    heavy = Weight(seconds=1.2, modules=who.HEAVY)
    entries = [
        (who.supervise(BASE), IMPORT, QUICK),
        (who.supervise(HEAVY), heavy, QUICK),
        (who.taskiq_worker(), IMPORT, SLOW),
        (who.gunicorn(), IMPORT, QUICK),
        (who.uwsgi(), IMPORT, SLOW),
        (who.celery(), IMPORT, SLOW),
    ]
    there, absent = who.present([contestant for contestant, _, _ in entries])
    contestants: dict[str, Callable[[], list[float]]] = {
        contestant.name: partial(
            kill_one_of_each if contestant.fragile else kill_each,
            contestant,
            weight,
            effort.of(deaths),
        )
        for contestant, weight, deaths in entries
        if contestant in there
    }
    rounds = effort.rounds or ROUNDS
    title = (
        "SIGKILL of a worker until its replacement is ready, median of {rounds} of "
        f"{effort.of(QUICK)} deaths ({effort.of(SLOW)} where they take long)"
    )
    unit = Unit("ms", scale=1e3, digits=1, percentiles=(50, 99))
    figure = Figure("death", title, unit, (*NOTES, *absent), BASE)
    return [take_turns(figure, contestants, rounds, BUDGET)]
