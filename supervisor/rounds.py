"""Looks at a pool from time to time: who hangs, who has grown too large, how many are needed.

Only what was asked for is looked at, and the next look is as far away as its limits allow, so that
an idle supervisor stays idle. What is seen goes to the core as events.
"""

import asyncio
import logging

from taskiq_supervise.supervisor.autoscale import INTERVAL, Autoscaler, Sample
from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import Health, Worker, WorkerState
from taskiq_supervise.supervisor.core.policy import lower
from taskiq_supervise.supervisor.health import Hang, HealthWatch
from taskiq_supervise.supervisor.memory import resident
from taskiq_supervise.supervisor.pool_shell import PoolShell

_WORKING = {WorkerState.READY, WorkerState.DRAINING}
_MEMORY_PERIOD = 2.0
"""Seconds. A look takes some 100 µs per process."""


class Rounds:
    """The looks at one pool; `start` once it has begun, `stop` before it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shell: PoolShell) -> None:
        self._loop = loop
        self._shell = shell
        self._settings = settings = shell.plan.settings
        self._watch: HealthWatch[tuple[int, int]] = HealthWatch(
            settings.hang_warn, settings.hang_timeout
        )
        self._memory_due: float | None = None
        self._scale_due: float | None = None
        self._autoscaler: Autoscaler | None = None
        if settings.min_workers is not None and settings.max_workers is not None:
            self._autoscaler = Autoscaler(settings.min_workers, settings.max_workers)
        self._timer: asyncio.TimerHandle | None = None
        self._warned_of_memory = False

    def start(self) -> None:
        now = self._loop.time()
        if self._settings.max_memory is not None:
            self._memory_due = now + _MEMORY_PERIOD
        if self._autoscaler is not None:
            self._scale_due = now + INTERVAL
        self._shell.on_ready = self._look
        self._set_timer()

    def stop(self) -> None:
        self._shell.on_ready = None
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        times = [self._watch.next_look, self._memory_due, self._scale_due]
        due = min((time for time in times if time is not None), default=None)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        self._look_for_hangs(now)
        if self._memory_due is not None and self._memory_due <= now:
            self._memory_due = now + _MEMORY_PERIOD
            self._look_at_memory()
        if self._autoscaler is not None and self._scale_due is not None and self._scale_due <= now:
            self._scale_due = now + INTERVAL
            self._look_at_load(self._autoscaler, now)
        self._set_timer()

    def _look_for_hangs(self, now: float) -> None:
        beats = {}
        for worker in self._shell.pool.workers:
            # One that a signal has stopped is measured anew when it goes on.
            if worker.state in _WORKING and worker.health is not Health.STOPPED:
                view = self._shell.tallies.view(worker)
                if view is not None:
                    beats[worker.slot, worker.generation] = view.heartbeat
        for news in self._watch.look(beats, now):
            if isinstance(news, Hang):
                self._shell.post(m.Hung(*news.worker, news.seconds, news.too_long))
            else:
                self._shell.post(m.Recovered(*news.worker, news.seconds))

    def _look_at_memory(self) -> None:
        most = self._settings.max_memory
        assert most is not None
        for worker in self._ready():
            if worker.worn is not None:
                continue
            limit = lower(most, self._settings.recycle_jitter, worker.jitter)
            taken = resident(worker.pid)
            if taken is None or taken <= limit:
                continue
            view = self._shell.tallies.view(worker)
            if view is None or not view.done + view.failed:
                # The next one would have as much.
                self._warn_of_memory(taken)
            else:
                why = f"takes {taken / 2**20:.0f} MiB of {limit / 2**20:.0f} that it may"
                self._shell.post(m.Worn(worker.slot, worker.generation, why))

    def _warn_of_memory(self, taken: int) -> None:
        if not self._warned_of_memory:
            self._warned_of_memory = True
            self._shell.journal.note(
                f"--max-memory is less than the {taken / 2**20:.0f} MiB that a worker takes before "
                "its first task: workers without a completed task are not recycled",
                logging.WARNING,
            )

    def _look_at_load(self, autoscaler: Autoscaler, now: float) -> None:
        pool = self._shell.pool
        if not pool.announced or pool.stopping or pool.broadcast is not None:
            return
        ready = self._ready()
        capacity = self._shell.plan.config.max_async_tasks
        views = [view for view in map(self._shell.tallies.view, ready) if view is not None]
        in_flight = sum(view.in_flight for view in views)
        counts = self._shell.custody.stats()
        target = autoscaler.decide(
            Sample(
                backlog=None if counts is None else counts["ready"],
                busy=in_flight / (capacity * len(views)) if views and capacity > 0 else 0.0,
                workers=len(ready),
                target=pool.target,
                now=now,
            )
        )
        if target != pool.target:
            self._shell.post(m.Scale(target, "by itself"))

    def _ready(self) -> list[Worker]:
        """Of those that run tasks."""
        return [one for one in self._shell.pool.crew if one.state is WorkerState.READY]
