"""One worker takes another's place: the successor is READY before its predecessor drains.

For new code, and for workers that have reached a limit of their life. Of the latter only a quarter
of the pool, and at least one, is under way at a time: a pool that was started in one moment would
else be replaced in one moment, with twice the memory.
"""

from dataclasses import replace

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    FAILURES,
    Reason,
    Worker,
    WorkerState,
)
from taskiq_supervise.supervisor.core.policy import History, StopLevel
from taskiq_supervise.supervisor.core.turn import Turn

_SHARE = 4


def begin(turn: Turn, predecessor: Worker, *, canary: bool = False) -> None:
    """Ask for a worker beside this one, to take its place."""
    turn.add(
        Worker(
            slot=predecessor.slot,
            successor=True,
            canary=canary,
            history=predecessor.history,
            restarts=predecessor.restarts,
            last_exit=predecessor.last_exit,
            last_reason=predecessor.last_reason,
        )
    )


def exchange(turn: Turn, predecessor: Worker, reason: Reason) -> None:
    """On a broker that gives each task to each worker, two would run it twice: first this one
    stops taking tasks, then the next one is asked for."""
    turn.dismiss(predecessor, StopLevel.DRAIN, reason)
    turn.add(Worker(slot=predecessor.slot, restarts=predecessor.restarts))


def promote(turn: Turn, successor: Worker, reason: Reason) -> None:
    """It is READY: the slot is its own from now on, and who was there drains."""
    predecessor = turn.pool.holder(successor.slot)
    turn.put(successor, replace(successor, successor=False, canary=False))
    if predecessor is not None:
        if predecessor.state is WorkerState.READY:
            turn.report(m.Happening.WORKER_REPLACED, predecessor, reason=reason)
        turn.dismiss(predecessor, StopLevel.DRAIN, reason)


def inherit(turn: Turn, predecessor: Worker, successor: Worker) -> None:
    """The predecessor has ended before its time: the successor need not wait any more."""
    failed = predecessor.last_reason in FAILURES
    history = History(
        failures=(0 if predecessor.proven else successor.history.failures) + failed,
        restarts=(*successor.history.restarts, turn.now),
    )
    heir = replace(
        successor,
        successor=False,
        history=history,
        restarts=predecessor.restarts + 1,
        last_exit=predecessor.last_exit,
        last_reason=predecessor.last_reason,
    )
    turn.put(successor, heir)
    turn.put(predecessor, replace(predecessor, wanted=False))


def remember(turn: Turn, gone: Worker) -> None:
    """How a predecessor ended is the slot's last exit, though another has the slot by now."""
    holder = turn.pool.holder(gone.slot)
    if holder is not None:
        turn.put(holder, replace(holder, last_exit=gone.last_exit, last_reason=gone.last_reason))


def give_up(turn: Turn, successor: Worker) -> None:
    """It is not to take anybody's place after all."""
    expected = replace(
        successor,
        reason=Reason.RELOAD,
        last_reason=(
            Reason.RELOAD if successor.state is WorkerState.REAPED else successor.last_reason
        ),
    )
    turn.put(successor, expected)
    turn.dismiss(expected, StopLevel.DRAIN, Reason.RELOAD)


def advance(turn: Turn, *, recycle: bool) -> None:
    """Let the READY ones take over; `recycle`: and begin what limits ask for."""
    for worker in turn.each():
        if not worker.successor or worker.canary or worker.state is not WorkerState.READY:
            continue
        outdated = _outdated(turn, worker.slot)
        promote(turn, worker, Reason.RELOAD if outdated else Reason.RECYCLE)
    if not recycle:
        return
    limit = max(1, turn.pool.target // _SHARE)
    for worker in turn.each():
        if _under_way(turn) >= limit:
            return
        worn = worker.worn is not None and worker.state is WorkerState.READY
        if worn and worker is turn.pool.holder(worker.slot) and _has_no_heir(turn, worker):
            if turn.pool.broadcast is None:
                begin(turn, worker)
            else:
                exchange(turn, worker, Reason.RECYCLE)


def _has_no_heir(turn: Turn, worker: Worker) -> bool:
    return turn.pool.successor(worker.slot) is None


def _outdated(turn: Turn, slot: int) -> bool:
    holder = turn.pool.holder(slot)
    return holder is not None and holder.code != turn.pool.zygote.code


def _under_way(turn: Turn) -> int:
    """Slots that are changing hands, of those that run tasks."""
    return len(
        {
            worker.slot
            for worker in turn.pool.crew
            if (worker.wanted and worker.successor)
            or (not worker.wanted and worker.reason is Reason.RECYCLE)
        }
    )
