"""One call of `step` in progress: the pool as it is by now, and the effects so far.

What the parts of the core share: who is told what, and what a worker or zygote may know of its
surroundings when it answers.
"""

from collections.abc import Iterator
from dataclasses import replace

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core import worker_table, zygote_table
from taskiq_supervise.supervisor.core.model import (
    Pool,
    Reason,
    Worker,
    WorkerState,
    Zygote,
    ZygoteState,
)
from taskiq_supervise.supervisor.core.policy import StopLevel
from taskiq_supervise.supervisor.core.worker_turn import Surroundings, report

_COMMAND: dict[StopLevel, type[m.Drain] | type[m.Stop] | type[m.Kill]] = {
    StopLevel.DRAIN: m.Drain,
    StopLevel.STOP: m.Stop,
    StopLevel.KILL: m.Kill,
}


class Turn:
    """Changes `pool`, in place of the caller's, and adds to `effects`."""

    def __init__(self, pool: Pool, now: float) -> None:
        self.pool = pool
        self.now = now
        self.effects: list[m.Effect] = []

    # --- workers ---------------------------------------------------------------------------------

    def each(self) -> Iterator[Worker]:
        """All workers, each as it is when its turn comes."""
        for before in self.pool.workers:
            worker = self.pool.find(before.slot, before.generation)
            if worker is not None:
                yield worker

    def tell(self, worker: Worker, event: m.WorkerEvent) -> None:
        answer, effects = worker_table.answer(worker, event, self._around_worker(worker))
        self.put(worker, answer)
        self.effects += effects

    def put(self, before: Worker, after: Worker) -> None:
        """In its place; who is neither wanted nor there any more goes."""
        place = self.pool.workers.index(before)
        gone = not after.wanted and after.state is WorkerState.EMPTY
        rest = () if gone else (after,)
        workers = (*self.pool.workers[:place], *rest, *self.pool.workers[place + 1 :])
        generations = self.pool.generations
        if after.generation > generations.get(after.slot, 0):
            generations = {**generations, after.slot: after.generation}
        self.pool = replace(self.pool, workers=workers, generations=generations)

    def add(self, worker: Worker) -> None:
        workers = sorted((*self.pool.workers, worker), key=lambda one: one.slot)
        self.pool = replace(self.pool, workers=tuple(workers))

    def dismiss(self, worker: Worker, level: StopLevel, reason: Reason) -> None:
        """Nobody takes its place; one that cannot be told yet is told when it can."""
        unwanted = replace(worker, wanted=False)
        self.put(worker, unwanted)
        if unwanted in self.pool.workers:
            self.command(unwanted, level, reason)

    def command(self, worker: Worker, level: StopLevel, reason: Reason) -> None:
        self.tell(worker, _COMMAND[level](worker.slot, worker.generation, reason))

    def _around_worker(self, worker: Worker) -> Surroundings:
        policy = self.pool.settings.restart
        others = (one.history for one in self.pool.workers if one is not worker)
        return Surroundings(
            now=self.now,
            settings=self.pool.settings,
            zygote=self.forks_for(worker),
            generation=self.pool.generations.get(worker.slot, 0) + 1,
            seat=self.pool.free_seat(worker),
            pool_recent=sum(history.recent(policy, self.now) for history in others),
        )

    # --- zygotes ---------------------------------------------------------------------------------

    def tell_zygote(self, zygote: Zygote, event: m.ZygoteEvent) -> None:
        pool = self.pool
        reload = pool.reload
        around = zygote_table.Surroundings(
            now=self.now,
            settings=pool.settings,
            generation=pool.zygotes + 1,
            target=pool.target,
            candidate=zygote is not pool.zygote,
            loaded=pool.loaded,
            stopping=pool.stopping and not pool.ends_need_listener,
            stop=pool.stop,
        )
        turn = zygote_table.answer(zygote, event, around)
        after = turn.zygote
        if zygote is pool.zygote:
            self.pool = replace(pool, zygote=after)
        else:
            gone = after.state is ZygoteState.ABSENT and after.retired
            rest = () if gone else (after,)
            place = pool.others.index(zygote)
            others = (*pool.others[:place], *rest, *pool.others[place + 1 :])
            self.pool = replace(pool, others=others)
            if reload is not None and reload.other == zygote.generation:
                self.pool = replace(self.pool, reload=replace(reload, other=after.generation))
        self.pool = replace(self.pool, zygotes=max(self.pool.zygotes, after.generation))
        self.effects += turn.effects
        if turn.exit_code is not None:
            self.leave(turn.exit_code)

    def zygote(self, generation: int) -> Zygote | None:
        """While it is one of the pool's."""
        zygotes = (self.pool.zygote, *self.pool.others)
        return next((one for one in zygotes if one.generation == generation), None)

    def other_zygote(self) -> Zygote | None:
        """The second one of a reload, while it is there."""
        if self.pool.reload is None:
            return None
        for zygote in self.pool.others:
            if zygote.generation == self.pool.reload.other:
                return zygote
        return None

    def forks_for(self, worker: Worker) -> Zygote:
        if worker.canary:
            candidate = self.other_zygote()
            if candidate is not None:
                return candidate
        return self.pool.zygote

    # --- the whole -------------------------------------------------------------------------------

    def leave(self, exit_code: int) -> None:
        """From here on nothing is started; the first reason to leave is the exit status."""
        if self.pool.exit_code is None:
            self.pool = replace(self.pool, exit_code=exit_code)
        for worker in self.each():
            self.put(worker, replace(worker, wanted=False))

    def report(self, what: m.Happening, worker: Worker | None = None, **rest: object) -> None:
        if worker is None:
            self.effects.append(m.Report(what, **rest))  # type: ignore[arg-type]
        else:
            self.effects.append(report(what, worker, **rest))
