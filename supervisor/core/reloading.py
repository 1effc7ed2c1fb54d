"""Replacing the code of a running pool, and taking that back when anything of it fails.

A second zygote, the candidate, imports the new code while the old one goes on forking. Its first
worker is the canary: it joins a slot beside the worker that is there, and has to get READY and to
stay up for a moment. Until then nothing of the old code has been stopped, and a failure costs
nothing. Then the two zygotes change places, and the other workers are replaced one after another,
each drained only when its successor is READY. Should something fail there, the zygotes change back,
and in the same way workers of the old code take the place of those of the new.

On a broker that gives each task to each worker there is no canary, and the worker stops taking
tasks before the next one is asked for.

A listener is replaced when all workers are: its successor does all but listen until it is gone. One
that the new code does not need leaves at once, since workers that listen for themselves are there;
one that only the new code needs comes last, when none of them is any more.

Which worker has to be replaced is not written down anywhere: it is the one whose code is not that
of the zygote that forks. So a reload goes on from whatever crashes, scaling and restarts made of
the pool meanwhile.
"""

from dataclasses import replace

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core import succession
from taskiq_supervise.supervisor.core.model import (
    LISTENER,
    Health,
    Reason,
    Reload,
    ReloadStage,
    Worker,
    WorkerState,
    Zygote,
    ZygoteState,
)
from taskiq_supervise.supervisor.core.policy import History, StopLevel
from taskiq_supervise.supervisor.core.turn import Turn
from taskiq_supervise.supervisor.core.worker_start import FORK_FAILED

_PUNISHED = {WorkerState.BACKOFF, WorkerState.QUARANTINED}
_COMING_UP = {WorkerState.EMPTY, WorkerState.FORKING, WorkerState.BOOTING, WorkerState.READY}


def request(turn: Turn) -> None:
    """One more; `advance` begins it when the present one has got far enough."""
    turn.pool = replace(turn.pool, reload_again=not turn.pool.stopping)


def advance(turn: Turn) -> None:
    """As far as it gets without anything new happening."""
    pool = turn.pool
    if pool.reload_again and pool.loaded and not _busy(pool.reload):
        if pool.reload is not None:
            _over(turn, pool.reload)
        _begin(turn)
        return
    if pool.reload is None:
        return
    match pool.reload.stage:
        case ReloadStage.LOADING:
            _load(turn, pool.reload)
        case ReloadStage.CANARY:
            _watch(turn, pool.reload)
        case ReloadStage.ROLLING:
            _roll(turn, pool.reload)
        case ReloadStage.ROLLING_BACK:
            _roll_back(turn, pool.reload)
    if turn.pool.reload is not None and turn.pool.reload.stage is ReloadStage.FINISHING:
        _finish(turn, turn.pool.reload)


def tick(turn: Turn) -> None:
    """The canary has stayed up for long enough, and has to say so; or has not said it in time."""
    reload, canary = turn.pool.reload, _canary(turn)
    if reload is None or reload.deadline is None or reload.deadline > turn.now or canary is None:
        return
    if reload.asked:
        silent = replace(canary, boot_error="the event loop of its first worker does not turn")
        turn.put(canary, silent)
        _abandon(turn, reload, turn.other_zygote(), silent)
        return
    deadline = turn.now + turn.pool.settings.canary_timeout
    turn.pool = replace(turn.pool, reload=replace(reload, asked=True, deadline=deadline))
    turn.effects.append(m.Ask(canary.slot, canary.generation))


def answered(turn: Turn, worker: Worker) -> None:
    """The canary lives: from now on the new code is the code."""
    reload = turn.pool.reload
    if reload is not None and reload.asked and worker is _canary(turn):
        _change_zygotes(turn, replace(reload, stage=ReloadStage.ROLLING, deadline=None))
        succession.promote(turn, worker, Reason.RELOAD)


def see_to_listener(turn: Turn) -> None:
    """There is one if the code that counts needs it, and all workers know that code."""
    zygote = turn.pool.zygote
    if zygote.transport is not None and not zygote.listens:
        for worker in turn.each():
            if worker.slot == LISTENER and worker.wanted:
                turn.dismiss(worker, StopLevel.DRAIN, Reason.RELOAD)
        return
    missing = zygote.listens and turn.pool.holder(LISTENER) is None
    if missing and not any(map(_holds_on, _outdated(turn))):
        turn.add(Worker(slot=LISTENER))


def call_off(turn: Turn, why: str) -> None:
    """The supervisor stops."""
    reload = turn.pool.reload
    if reload is not None:
        _over(turn, replace(reload, error=reload.error or why))
    elif turn.pool.reload_again:
        _over(turn, Reload(turn.pool.reloads + 1, ReloadStage.FINISHING, error=why))
    turn.pool = replace(turn.pool, reload_again=False)


def _busy(reload: Reload | None) -> bool:
    """Another has to wait. Not for old workers to leave, which may take long, and not for a
    roll-back: that goes on by itself."""
    return reload is not None and reload.stage in {
        ReloadStage.LOADING,
        ReloadStage.CANARY,
        ReloadStage.ROLLING,
    }


def _begin(turn: Turn) -> None:
    number = turn.pool.reloads + 1
    candidate = Zygote(code=number, preload=turn.pool.settings.preload)
    turn.pool = replace(
        turn.pool,
        reloads=number,
        reload_again=False,
        reload=Reload(number, ReloadStage.LOADING),
        others=(*turn.pool.others, candidate),
    )
    turn.report(m.Happening.RELOAD_STARTED, reload=number)
    turn.tell_zygote(candidate, m.ZygoteBegin(0))


def _load(turn: Turn, reload: Reload) -> None:
    candidate = turn.other_zygote()
    if candidate is None or candidate.failed:
        _abandon(turn, reload, candidate)
    elif candidate.state is ZygoteState.READY and turn.pool.broadcast is not None:
        _change_zygotes(turn, replace(reload, stage=ReloadStage.ROLLING))
    elif candidate.state is ZygoteState.READY:
        turn.pool = replace(turn.pool, reload=replace(reload, stage=ReloadStage.CANARY))
        first = next(worker for worker in turn.pool.crew if worker.wanted)
        rival = turn.pool.successor(first.slot)
        if rival is not None:
            turn.dismiss(rival, StopLevel.DRAIN, Reason.RELOAD)
        holder = turn.pool.holder(first.slot)
        assert holder is not None
        succession.begin(turn, holder, canary=True)


def _watch(turn: Turn, reload: Reload) -> None:
    candidate, canary = turn.other_zygote(), _canary(turn)
    failed = candidate is None or candidate.state is not ZygoteState.READY
    if failed or canary is None or canary.state not in _COMING_UP or _stands_still(canary):
        _abandon(turn, reload, candidate, canary)
    elif canary.state is WorkerState.READY and reload.deadline is None:
        deadline = turn.now + turn.pool.settings.canary_time
        turn.pool = replace(turn.pool, reload=replace(reload, deadline=deadline))


def _abandon(
    turn: Turn, reload: Reload, candidate: Zygote | None, canary: Worker | None = None
) -> None:
    """Before anything of the old code was stopped by it; a roll-back that it has interrupted goes
    on."""
    error, trace = _broken(canary)
    if candidate is not None:
        if canary is None or candidate.state is not ZygoteState.READY:
            error = candidate.error or error or "the process that imported the new code ended"
            trace = candidate.traceback
        turn.tell_zygote(candidate, m.ZygoteEnd(candidate.generation))
    failed = replace(
        reload,
        stage=ReloadStage.ROLLING_BACK,
        deadline=None,
        error=error or "the first worker of the new code was lost",
        traceback=trace,
    )
    turn.pool = replace(turn.pool, reload=failed)
    if canary is not None:
        succession.give_up(turn, canary)
    _tell_failure(turn, failed)


def _roll(turn: Turn, reload: Reload) -> None:
    new = turn.pool.zygote
    broken = next((worker for worker in turn.pool.workers if _has_failed(turn, worker)), None)
    if broken is not None or new.state is not ZygoteState.READY:
        _turn_back(turn, reload, broken)
    elif not _replace_next(turn) and _all_have_been_ready(turn):
        _commit(turn, reload)


def _has_failed(turn: Turn, worker: Worker) -> bool:
    """The new code, in this worker, before it was of any use.

    Not a fork that failed: that says nothing about the code, and a way back would take forks too.
    """
    new = worker.wanted and worker.code == turn.pool.zygote.code
    not_forked = worker.boot_error is not None and worker.boot_error.startswith(FORK_FAILED)
    return new and worker.ready_at is None and worker.state not in _COMING_UP and not not_forked


def _all_have_been_ready(turn: Turn) -> bool:
    """With the new code, in every slot; who has crashed since may wait for his next start."""
    at_rest = {WorkerState.READY, WorkerState.BACKOFF, WorkerState.QUARANTINED}
    return all(worker.state in at_rest for worker in turn.pool.workers if worker.wanted)


def _turn_back(turn: Turn, reload: Reload, broken: Worker | None) -> None:
    new = turn.pool.zygote
    error, trace = _broken(broken)
    if broken is None:
        error, trace = new.error or "the new code's zygote ended", new.traceback
    failed = replace(reload, stage=ReloadStage.ROLLING_BACK, error=error, traceback=trace)
    _change_zygotes(turn, failed)
    for worker in turn.each():
        if worker.successor and worker.wanted:
            succession.give_up(turn, worker)
    _end_other(turn)
    _tell_failure(turn, failed)


def _roll_back(turn: Turn, reload: Reload) -> None:
    if not _replace_next(turn):
        turn.pool = replace(turn.pool, reload=replace(reload, stage=ReloadStage.FINISHING))


def _replace_next(turn: Turn) -> bool:
    """One worker at a time; False: none is left."""
    if any(worker.wanted and worker.successor for worker in turn.pool.workers):
        return True
    code = turn.pool.zygote.code
    for worker in turn.each():
        if worker.wanted and worker.code != code and worker.state in _PUNISHED:
            # For what the other code did.
            fresh = replace(worker, state=WorkerState.EMPTY, deadline=None, history=History())
            turn.put(worker, fresh)
    outdated = _outdated(turn)
    for worker in outdated:
        if worker.state is WorkerState.READY:
            if turn.pool.broadcast is None:
                succession.begin(turn, worker)
            else:
                succession.exchange(turn, worker, Reason.RELOAD)
            return True
    return any(map(_holds_on, outdated)) or _replace_listener(turn)


def _outdated(turn: Turn) -> list[Worker]:
    """Workers that are to be replaced, for they have other code than counts."""
    code = turn.pool.zygote.code
    wanted = [one for one in turn.pool.crew if one.wanted and not one.canary]
    return [one for one in wanted if one.code != code]


def _holds_on(outdated: Worker) -> bool:
    """One that boots is replaced when it is READY; one that waits to be forked gets the right
    code."""
    return outdated.alive or outdated.state is WorkerState.FORKING


def _replace_listener(turn: Turn) -> bool:
    """False: it is that of the code that counts, or there is none to be."""
    zygote, listener = turn.pool.zygote, turn.pool.holder(LISTENER)
    if not zygote.listens:
        return False
    if listener is None:
        see_to_listener(turn)
        return True
    if listener.code == zygote.code:
        return False
    if listener.state is WorkerState.READY:
        succession.begin(turn, listener)
        return True
    return _holds_on(listener)


def _commit(turn: Turn, reload: Reload) -> None:
    turn.pool = replace(turn.pool, reload=replace(reload, stage=ReloadStage.FINISHING))
    _end_other(turn)
    workers = sum(worker.wanted for worker in turn.pool.crew)
    turn.report(m.Happening.RELOAD_DONE, reload=reload.number, detail=str(workers))


def _finish(turn: Turn, reload: Reload) -> None:
    if turn.other_zygote() is None and not any(
        worker.reason is Reason.RELOAD for worker in turn.pool.workers if not worker.wanted
    ):
        _over(turn, reload)


def _over(turn: Turn, reload: Reload) -> None:
    turn.pool = replace(turn.pool, reload=None)
    turn.effects.append(m.ReloadEnded(reload.number, reload.error, reload.traceback))
    if reload.error is not None:
        turn.report(m.Happening.RELOAD_ENDED, reload=reload.number)


def _change_zygotes(turn: Turn, reload: Reload) -> None:
    """The second one forks from now on, and the one that did is the second."""
    now, other = turn.pool.zygote, turn.other_zygote()
    assert other is not None
    others = tuple(now if zygote is other else zygote for zygote in turn.pool.others)
    turn.pool = replace(
        turn.pool,
        zygote=other,
        others=others,
        reload=replace(reload, other=now.generation),
    )


def _end_other(turn: Turn) -> None:
    other = turn.other_zygote()
    if other is not None:
        turn.tell_zygote(other, m.ZygoteEnd(other.generation))


def _canary(turn: Turn) -> Worker | None:
    return next((one for one in turn.pool.workers if one.canary and one.wanted), None)


def _stands_still(worker: Worker) -> bool:
    """Then it proves nothing by staying up."""
    return worker.health is Health.STOPPED


def _broken(worker: Worker | None) -> tuple[str | None, str | None]:
    if worker is None:
        return None, None
    error = worker.boot_error or f"its first worker {worker.last_exit or 'left'}"
    if _stands_still(worker):
        error = "its first worker was stopped by a signal"
    return error, worker.boot_traceback


def _tell_failure(turn: Turn, reload: Reload) -> None:
    turn.report(
        m.Happening.RELOAD_FAILED,
        reload=reload.number,
        detail=reload.error or "",
        traceback=reload.traceback,
    )
