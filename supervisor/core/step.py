"""`step`: the supervisor's decisions as a pure function of state, event and time.

No clock, no syscall, no asyncio, no randomness inside: the shell passes them in and carries out the
effects that come out, in their order. That is what lets a test run years of crashes, late and
repeated exits, failing forks and jumping clocks in a second, and check after each of them that
no worker was forgotten.

The life of one worker is `worker_table`, that of the zygote `zygote_table`. What is here is the
pool's: which worker hears of what, and the three things that are nobody's alone: start what is
wanted as soon as it can be forked, say when the pool is up, and end when all is gone.
"""

from dataclasses import replace

from taskiq_supervise.supervisor import messages as m
from taskiq_supervise.supervisor import worker_table, zygote_table
from taskiq_supervise.supervisor.model import (
    EXIT_STOPPED,
    Pool,
    Reason,
    WorkerState,
    ZygoteState,
)
from taskiq_supervise.supervisor.policy import StopLevel, stop_level

_COMMAND: dict[StopLevel, type[m.Drain] | type[m.Stop] | type[m.Kill]] = {
    StopLevel.DRAIN: m.Drain,
    StopLevel.STOP: m.Stop,
    StopLevel.KILL: m.Kill,
}


def step(pool: Pool, event: m.Event, now: float) -> tuple[Pool, tuple[m.Effect, ...]]:
    """The state after `event` at time `now`, and what the shell has to do about it."""
    if pool.finished:
        return pool, ()
    turn = _Turn(pool, now)
    turn.take(event)
    turn.follow_up()
    return turn.pool, tuple(turn.effects)


class _Turn:
    """One call of `step` in progress."""

    def __init__(self, pool: Pool, now: float) -> None:
        self.pool = pool
        self.now = now
        self.effects: list[m.Effect] = []

    def take(self, event: m.Event) -> None:
        match event:
            case m.WorkerEvent():
                self._worker_event(event)
            case m.ZygoteEvent():
                self._zygote_event(event)
            case m.Started():
                self._tell_zygote(m.ZygoteBegin(self.pool.zygote.generation))
            case m.Tick():
                self._tick()
            case m.Terminate():
                requests = self.pool.stop_requests + 1
                self.pool = replace(self.pool, stop_requests=requests)
                self._stop(stop_level(requests, self.pool.settings.hardkill_count))
            case m.Quit():
                self._stop(StopLevel.KILL)

    def follow_up(self) -> None:
        if self.pool.stopping:
            self._wind_down()
            return
        if self.pool.zygote.state is ZygoteState.READY:
            for worker in self.pool.workers:
                if worker.wanted and worker.state is WorkerState.EMPTY:
                    self._tell_worker(m.Begin(worker.slot, worker.generation))
        wanted = [worker for worker in self.pool.workers if worker.wanted]
        up = wanted and all(worker.state is WorkerState.READY for worker in wanted)
        if up and not self.pool.announced:
            self.pool = replace(self.pool, announced=True)
            self.effects.append(m.Report(m.Happening.POOL_READY, detail=str(len(wanted))))

    def _worker_event(self, event: m.WorkerEvent) -> None:
        if not 0 <= event.slot < len(self.pool.workers):
            return
        worker = self.pool.workers[event.slot]
        if event.generation == worker.generation:
            self._tell_worker(event)
        elif isinstance(event, m.Forked):
            self._apply(worker_table.stray(worker, event, self._around(event.slot)))
        # A process that was asked for before the stop and came after it.
        worker = self.pool.workers[event.slot]
        if isinstance(event, m.Forked) and not worker.wanted and self.pool.stop is not None:
            self._command(event.slot, self.pool.stop)

    def _zygote_event(self, event: m.ZygoteEvent) -> None:
        if event.generation != self.pool.zygote.generation:
            return
        self._tell_zygote(event)
        if isinstance(event, m.QueueOpened) and self.pool.zygote.state is ZygoteState.READY:
            self.pool = replace(self.pool, loaded=True)
        if isinstance(event, m.ZygoteExited):
            for worker in self.pool.workers:
                self._tell_worker(m.ForkLost(worker.slot, worker.generation))

    def _tick(self) -> None:
        for worker in self.pool.workers:
            if worker.deadline is not None and worker.deadline <= self.now:
                self._tell_worker(m.Due(worker.slot, worker.generation))
        deadline = self.pool.zygote.deadline
        if deadline is not None and deadline <= self.now:
            self._tell_zygote(m.ZygoteDue(self.pool.zygote.generation))

    def _stop(self, level: StopLevel) -> None:
        if self.pool.stop is not None and level <= self.pool.stop:
            return
        self.effects.append(m.Report(m.Happening.STOP_REQUESTED, detail=level.name.lower()))
        self._leave(EXIT_STOPPED)
        self.pool = replace(self.pool, stop=level)
        for worker in self.pool.workers:
            self._command(worker.slot, level)
        if level is StopLevel.KILL:
            self._tell_zygote(m.ZygoteEnd(self.pool.zygote.generation))

    def _leave(self, exit_code: int) -> None:
        """From here on nothing is started; the first reason to leave is the exit status."""
        if self.pool.exit_code is None:
            self.pool = replace(self.pool, exit_code=exit_code)
        workers = tuple(replace(worker, wanted=False) for worker in self.pool.workers)
        self.pool = replace(self.pool, workers=workers)

    def _wind_down(self) -> None:
        if any(worker.state is not WorkerState.EMPTY for worker in self.pool.workers):
            self._announce_drain()
            return
        if self.pool.zygote.state not in {ZygoteState.ABSENT, ZygoteState.ENDING}:
            self._tell_zygote(m.ZygoteEnd(self.pool.zygote.generation))
        if self.pool.zygote.state is ZygoteState.ABSENT:
            self.pool = replace(self.pool, finished=True)
            if self.pool.stop is not None:
                self.effects.append(m.Report(m.Happening.STOPPED))
            self.effects.append(m.Finish(self.pool.exit_code or EXIT_STOPPED))

    def _announce_drain(self) -> None:
        """Once nobody takes tasks any more, and somebody still has some."""
        draining = [w for w in self.pool.workers if w.state is WorkerState.DRAINING]
        taking = {WorkerState.FORKING, WorkerState.BOOTING, WorkerState.READY}
        if (
            self.pool.drain_announced
            or not draining
            or any(worker.state in taking for worker in self.pool.workers)
            or not all(worker.confirmed for worker in draining)
        ):
            return
        self.pool = replace(self.pool, drain_announced=True)
        self.effects.append(m.Report(m.Happening.POOL_DRAINING, detail=str(len(draining))))

    def _command(self, slot: int, level: StopLevel) -> None:
        generation = self.pool.workers[slot].generation
        self._tell_worker(_COMMAND[level](slot, generation, Reason.STOP))

    def _tell_worker(self, event: m.WorkerEvent) -> None:
        worker = self.pool.workers[event.slot]
        self._apply(worker_table.answer(worker, event, self._around(event.slot)))

    def _apply(self, turn: worker_table.Turn) -> None:
        worker, effects = turn
        self.pool = self.pool.with_worker(worker)
        self.effects += effects

    def _around(self, slot: int) -> worker_table.Surroundings:
        policy = self.pool.settings.restart
        return worker_table.Surroundings(
            now=self.now,
            settings=self.pool.settings,
            can_fork=self.pool.zygote.state is ZygoteState.READY,
            zygote_generation=self.pool.zygote.generation,
            pool_recent=sum(
                other.history.recent(policy, self.now)
                for other in self.pool.workers
                if other.slot != slot
            ),
        )

    def _tell_zygote(self, event: m.ZygoteEvent) -> None:
        around = zygote_table.Surroundings(
            now=self.now,
            settings=self.pool.settings,
            loaded=self.pool.loaded,
            stopping=self.pool.stopping,
            stop=self.pool.stop,
        )
        turn = zygote_table.answer(self.pool.zygote, event, around)
        self.pool = replace(self.pool, zygote=turn.zygote)
        self.effects += turn.effects
        if turn.exit_code is not None:
            self._leave(turn.exit_code)
