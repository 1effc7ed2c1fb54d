"""`step`: the supervisor's decisions as a pure function of state, event and time.

No clock, no syscall, no asyncio, no randomness inside: the shell passes them in and carries out the
effects that come out, in their order. That is what lets a test run years of crashes, late and
repeated exits, failing forks and jumping clocks in a second, and check after each of them that
no worker was forgotten.

The life of one worker is `worker_table`, that of a zygote `zygote_table`; how one worker takes
another's place is `succession`, and how the whole pool's code is replaced `reloading`. What is
here is the pool's: which worker hears of what, how many there are, and the three things that are
nobody's alone: start what is wanted as soon as it can be forked, say when the pool is up, and end
when all is gone.
"""

from dataclasses import replace

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core import reloading, succession
from taskiq_supervise.supervisor.core.model import (
    EXIT_NOT_LOADED,
    EXIT_STOPPED,
    FAILURES,
    LISTENER,
    Pool,
    Reason,
    ReloadStage,
    Worker,
    WorkerState,
    ZygoteState,
)
from taskiq_supervise.supervisor.core.policy import StopLevel, stop_level
from taskiq_supervise.supervisor.core.turn import Turn
from taskiq_supervise.supervisor.core.worker_start import kill_stray

_HOLDS_UP_RECYCLING = {ReloadStage.LOADING, ReloadStage.CANARY, ReloadStage.ROLLING}


def step(pool: Pool, event: m.Event, now: float) -> tuple[Pool, tuple[m.Effect, ...]]:
    """The state after `event` at time `now`, and what the shell has to do about it."""
    if pool.finished:
        return pool, ()
    turn = Turn(pool, now)
    _take(turn, event)
    if turn.pool.stopping:
        _wind_down(turn)
    else:
        _carry_on(turn)
    return turn.pool, tuple(turn.effects)


def _take(turn: Turn, event: m.Event) -> None:
    match event:
        case m.WorkerEvent():
            _worker_event(turn, event)
        case m.ZygoteEvent():
            _zygote_event(turn, event)
        case m.Started():
            turn.tell_zygote(turn.pool.zygote, m.ZygoteBegin(turn.pool.zygote.generation))
        case m.Tick():
            _tick(turn)
        case m.ReloadRequested():
            reloading.request(turn)
        case m.Scale():
            _scale(turn, event)
        case m.Terminate():
            requests = turn.pool.stop_requests + 1
            turn.pool = replace(turn.pool, stop_requests=requests)
            _stop(turn, stop_level(requests, turn.pool.settings.hardkill_count))
        case m.Quit():
            _stop(turn, StopLevel.KILL)


# --- events --------------------------------------------------------------------------------------


def _worker_event(turn: Turn, event: m.WorkerEvent) -> None:
    worker = turn.pool.find(event.slot, event.generation)
    if worker is None:
        if isinstance(event, m.Forked):
            turn.effects += kill_stray(event)
        return
    if isinstance(event, m.Buried) and worker.wanted and not worker.successor:
        heir = turn.pool.successor(worker.slot)
        if heir is not None and not heir.canary:
            succession.inherit(turn, worker, heir)
            worker = replace(worker, wanted=False)
    if isinstance(event, m.Answered):
        reloading.answered(turn, worker)
        return
    if isinstance(event, m.BootFailed) and event.final and _gives_up(turn, worker):
        turn.report(m.Happening.REFUSED, detail=event.message)
        turn.leave(EXIT_NOT_LOADED)
        _send_away(turn, StopLevel.STOP)
        return
    turn.tell(worker, event)
    _judge_zygote(turn, worker, event)
    if isinstance(event, m.Buried) and not worker.wanted:
        succession.remember(turn, worker)
    if isinstance(event, m.Forked):
        born = turn.pool.find(event.slot, event.generation)
        unwanted = born is not None and not born.wanted and born.state is WorkerState.BOOTING
        if born is not None and unwanted and not _stays_to_the_end(turn, born):
            # It was asked for before it was to leave, and came after it.
            turn.command(born, turn.pool.stop or StopLevel.DRAIN, born.reason or Reason.STOP)


def _gives_up(turn: Turn, worker: Worker) -> bool:
    """Who starts a pool is told that it can't be; one that was ready once goes on trying."""
    starting = not (turn.pool.announced or turn.pool.stopping)
    return starting and worker.state is WorkerState.BOOTING


def _judge_zygote(turn: Turn, before: Worker, event: m.WorkerEvent) -> None:
    """Whether its code is of any use shows in the first workers that have it."""
    zygote = turn.zygote(before.zygote)
    if zygote is None or before.slot == LISTENER:
        return  # a listener fails for want of an address, too
    if isinstance(event, m.Ready):
        turn.tell_zygote(zygote, m.ZygoteProven(zygote.generation))
    elif isinstance(event, m.Exited) and before.alive and before.ready_at is None:
        gone = turn.pool.find(before.slot, before.generation)
        if gone is not None and gone.last_reason in FAILURES:
            how = gone.boot_error or str(gone.last_exit)
            turn.tell_zygote(zygote, m.ZygoteStillborn(zygote.generation, how))


def _zygote_event(turn: Turn, event: m.ZygoteEvent) -> None:
    zygote = turn.zygote(event.generation)
    if zygote is None:
        return
    turn.tell_zygote(zygote, event)
    if isinstance(event, m.QueueOpened) and turn.pool.zygote.state is ZygoteState.READY:
        turn.pool = replace(turn.pool, loaded=True)
    if isinstance(event, m.ZygoteExited):
        for worker in turn.each():
            if worker.zygote == event.generation:
                turn.tell(worker, m.ForkLost(worker.slot, worker.generation))


def _tick(turn: Turn) -> None:
    for worker in turn.each():
        retires = worker.retire_at if worker.state is WorkerState.READY else None
        if any(time is not None and time <= turn.now for time in (worker.deadline, retires)):
            turn.tell(worker, m.Due(worker.slot, worker.generation))
    for zygote in (turn.pool.zygote, *turn.pool.others):
        if zygote.deadline is not None and zygote.deadline <= turn.now:
            turn.tell_zygote(zygote, m.ZygoteDue(zygote.generation))
    reloading.tick(turn)


def _scale(turn: Turn, event: m.Scale) -> None:
    pool = turn.pool
    if pool.stopping or event.workers == pool.target or event.workers < 1:
        return
    if pool.broadcast is not None and event.workers > 1:
        turn.report(m.Happening.SCALE_REFUSED, detail=pool.broadcast)
        return
    detail = f"from {pool.target} to {event.workers} workers ({event.by})"
    turn.pool = replace(pool, target=event.workers)
    turn.report(m.Happening.SCALED, detail=detail)


def _stop(turn: Turn, level: StopLevel) -> None:
    if turn.pool.stop is not None and level <= turn.pool.stop:
        return
    turn.report(m.Happening.STOP_REQUESTED, detail=level.name.lower())
    turn.leave(EXIT_STOPPED)
    _send_away(turn, level)


def _send_away(turn: Turn, level: StopLevel) -> None:
    turn.pool = replace(turn.pool, stop=level)
    reloading.call_off(turn, "the supervisor was stopped")
    for worker in turn.each():
        if not _stays_to_the_end(turn, worker):
            turn.command(worker, level, Reason.STOP)
    if level is StopLevel.KILL:
        for zygote in (turn.pool.zygote, *turn.pool.others):
            turn.tell_zygote(zygote, m.ZygoteEnd(zygote.generation))


def _stays_to_the_end(turn: Turn, worker: Worker) -> bool:
    """A listener leaves last: what arrives meanwhile is kept, and results get through."""
    return turn.pool.stop is StopLevel.DRAIN and _listens(worker)


def _listens(worker: Worker) -> bool:
    """It is a listener that is there, or comes, and has not been told to leave."""
    here = {WorkerState.FORKING, WorkerState.BOOTING, WorkerState.READY}
    return worker.slot == LISTENER and worker.state in here


# --- what follows from every event ---------------------------------------------------------------


def _carry_on(turn: Turn) -> None:
    if turn.pool.loaded and turn.pool.zygote.state is ZygoteState.ABSENT:
        turn.tell_zygote(turn.pool.zygote, m.ZygoteBegin(turn.pool.zygote.generation))
    _fill(turn)
    reloading.advance(turn)
    reload = turn.pool.reload
    held_up = reload is not None and reload.stage in _HOLDS_UP_RECYCLING
    succession.advance(turn, recycle=not held_up)
    # What has taken over may let a reload go on.
    reloading.advance(turn)
    reloading.see_to_listener(turn)
    for worker in turn.each():
        ready = turn.forks_for(worker).state is ZygoteState.READY
        if ready and worker.wanted and worker.state is WorkerState.EMPTY:
            turn.tell(worker, m.Begin(worker.slot, worker.generation))
    wanted = [worker for worker in turn.pool.workers if worker.wanted]
    up = wanted and all(worker.state is WorkerState.READY for worker in wanted)
    if up and not turn.pool.announced:
        turn.pool = replace(turn.pool, announced=True)
        crew = sum(worker.wanted for worker in turn.pool.crew)
        turn.report(m.Happening.POOL_READY, detail=str(crew))


def _fill(turn: Turn) -> None:
    """One worker for each slot that is to have one, none for the others."""
    target = turn.pool.target
    for worker in turn.each():
        if worker.wanted and worker.slot >= target:
            turn.dismiss(worker, StopLevel.DRAIN, Reason.SCALE)
    for slot in range(target):
        if turn.pool.holder(slot) is None:
            turn.add(Worker(slot=slot))


def _wind_down(turn: Turn) -> None:
    for worker in turn.each():
        if worker.state is WorkerState.EMPTY:
            turn.put(worker, replace(worker, wanted=False))
    if turn.pool.workers:
        _announce_drain(turn)
        if not turn.pool.crew:
            _send_listeners_away(turn)
        elif turn.pool.ends_need_listener:
            _keep_listening(turn)
        return
    _end_zygotes(turn)
    if turn.pool.zygote.state is ZygoteState.ABSENT and not turn.pool.others:
        turn.pool = replace(turn.pool, finished=True)
        if turn.pool.stop is not None:
            turn.report(m.Happening.STOPPED)
        turn.effects.append(m.Finish(turn.pool.exit_code or EXIT_STOPPED))


def _keep_listening(turn: Turn) -> None:
    """One that has ended is replaced: the workers could not say what they have done."""
    if turn.pool.zygote.state is not ZygoteState.READY:
        return
    if not any(worker.slot == LISTENER for worker in turn.pool.workers):
        listener = Worker(slot=LISTENER)
        turn.add(listener)
        turn.tell(listener, m.Begin(LISTENER, listener.generation))


def _send_listeners_away(turn: Turn) -> None:
    for worker in turn.each():
        if _listens(worker) or worker.state in {WorkerState.BACKOFF, WorkerState.QUARANTINED}:
            turn.dismiss(worker, turn.pool.stop or StopLevel.DRAIN, Reason.STOP)
        else:
            turn.put(worker, replace(worker, wanted=False))


def _end_zygotes(turn: Turn) -> None:
    for zygote in (turn.pool.zygote, *turn.pool.others):
        ended = zygote.state is ZygoteState.ABSENT and zygote is turn.pool.zygote
        if not ended and not (zygote.retired and zygote.state is ZygoteState.ENDING):
            turn.tell_zygote(zygote, m.ZygoteEnd(zygote.generation))


def _announce_drain(turn: Turn) -> None:
    """Once nobody takes tasks any more, and somebody still has some."""
    draining = [w for w in turn.pool.crew if w.state is WorkerState.DRAINING]
    taking = {WorkerState.FORKING, WorkerState.BOOTING, WorkerState.READY}
    if (
        turn.pool.drain_announced
        or not draining
        or any(worker.state in taking for worker in turn.pool.crew)
        or not all(worker.confirmed for worker in draining)
    ):
        return
    turn.pool = replace(turn.pool, drain_announced=True)
    turn.report(m.Happening.POOL_DRAINING, detail=str(len(draining)))
