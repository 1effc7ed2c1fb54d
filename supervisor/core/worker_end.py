"""A worker leaves: told to drain, stopped, killed, and then dead."""

import signal
from dataclasses import replace

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    FAILURES,
    UNHURRIED,
    Health,
    Reason,
    Worker,
    WorkerState,
)
from taskiq_supervise.supervisor.core.worker_turn import Surroundings, Turn, report


def leave(worker: Worker, _event: m.Draining, around: Surroundings) -> Turn:
    """It drains and we did not ask: somebody sent it a SIGTERM."""
    leaving = replace(
        worker,
        state=WorkerState.DRAINING,
        reason=Reason.OPERATOR,
        confirmed=True,
        deadline=around.now + around.settings.graceful_timeout,
    )
    return leaving, (report(m.Happening.WORKER_DRAINING, leaving),)


def drain(worker: Worker, event: m.Drain, around: Surroundings) -> Turn:
    leaving = replace(
        worker,
        state=WorkerState.DRAINING,
        reason=event.reason,
        deadline=_drain_until(event.reason, around),
    )
    return leaving, (m.SendDrain(worker.slot, worker.generation),)


def press(worker: Worker, event: m.Drain, around: Surroundings) -> Turn:
    """It drains, and had all the time in the world so far."""
    if worker.deadline is not None:
        return worker, ()
    return replace(worker, deadline=_drain_until(event.reason, around)), ()


def _drain_until(reason: Reason, around: Surroundings) -> float | None:
    """Who is recycled, or too many, is in nobody's way: tasks that run longer than others would
    else be thrown away and begun again with every recycling."""
    if reason in UNHURRIED:
        return None
    return around.now + around.settings.graceful_timeout


def defer(worker: Worker, event: m.Drain | m.Stop | m.Kill, _around: Surroundings) -> Turn:
    """It cannot be told before it exists."""
    return replace(worker, reason=event.reason), ()


def agreed(worker: Worker, _event: m.Draining, _around: Surroundings) -> Turn:
    """Between being told to drain and this, it may still have taken a task."""
    return replace(worker, confirmed=True), ()


def close(worker: Worker, _event: m.Drained, around: Surroundings) -> Turn:
    """Its tasks are done; what is left is the broker's shutdown, which has its own limit."""
    closing = replace(
        worker,
        state=WorkerState.STOPPING,
        reason=worker.reason or Reason.OPERATOR,
        deadline=around.now + around.settings.stop_timeout,
    )
    return closing, ()


def stop(worker: Worker, event: m.Stop, around: Surroundings) -> Turn:
    return _stopping(replace(worker, reason=worker.reason or event.reason), around)


def hurry(worker: Worker, _event: m.Due, around: Surroundings) -> Turn:
    stopping, effects = _stopping(worker, around)
    detail = f"still had tasks {around.settings.graceful_timeout:g} s after it was told to drain"
    return stopping, (*effects, report(m.Happening.WORKER_STOPPING, worker, detail=detail))


def kill(worker: Worker, event: m.Kill, around: Surroundings) -> Turn:
    return killing(replace(worker, reason=worker.reason or event.reason), around)


def force(worker: Worker, _event: m.Due, around: Surroundings) -> Turn:
    gone, effects = killing(worker, around)
    detail = f"had not ended {around.settings.stop_timeout:g} s after it was told to stop"
    return gone, (*effects, report(m.Happening.WORKER_KILLED, worker, detail=detail))


def insist(worker: Worker, _event: m.Due, around: Surroundings) -> Turn:
    """Only a process that the kernel holds (uninterruptible sleep) outlives SIGKILL."""
    gone, effects = killing(worker, around)
    detail = f"was still there {around.settings.kill_timeout:g} s after SIGKILL (state D?)"
    return gone, (*effects, report(m.Happening.WORKER_KILLED, worker, detail=detail))


def vacate(worker: Worker, _event: m.WorkerEvent, _around: Surroundings) -> Turn:
    return replace(worker, state=WorkerState.EMPTY, deadline=None), ()


def reap(worker: Worker, event: m.Exited, around: Surroundings) -> Turn:
    reason = _why(worker, event)
    steady = around.settings.restart.steady
    boot_error = worker.boot_error
    if worker.state is WorkerState.BOOTING and reason in FAILURES:
        boot_error = f"{event.status} before it was ready"
    reaped = replace(
        worker,
        state=WorkerState.REAPED,
        pid=event.pid,
        deadline=None,
        retire_at=None,
        health=Health.OK,
        last_exit=event.status,
        last_reason=reason,
        boot_error=boot_error,
        proven=event.worked
        or (worker.ready_at is not None and around.now - worker.ready_at >= steady),
    )
    return reaped, (m.Bury(worker.slot, worker.generation, event.pid, event.status, reason),)


def _why(worker: Worker, event: m.Exited) -> Reason:
    killed = event.status.signal == signal.SIGKILL
    crash = Reason.OOM if event.oom and killed else Reason.CRASH
    if worker.reason is None:
        if worker.state is not WorkerState.READY:
            return Reason.BOOT if event.status.code is not None else crash
        return Reason.OPERATOR if event.status.clean else crash
    # It was told to leave and died of something else. Not news: what we killed ourselves, and a
    # start that fails while it is being called off.
    expected = (
        event.status.clean
        or worker.state is WorkerState.KILLING
        or (worker.ready_at is None and event.status.code is not None)
    )
    return worker.reason if expected else crash


def _stopping(worker: Worker, around: Surroundings) -> Turn:
    deadline = around.now + around.settings.stop_timeout
    return (
        replace(worker, state=WorkerState.STOPPING, deadline=deadline),
        (m.SendStop(worker.slot, worker.generation),),
    )


def killing(
    worker: Worker, around: Surroundings, *, blame: bool = False, dump: bool = False
) -> Turn:
    deadline = around.now + around.settings.kill_timeout
    return (
        replace(worker, state=WorkerState.KILLING, deadline=deadline),
        (m.KillWorker(worker.slot, worker.generation, blame=blame, dump=dump),),
    )
