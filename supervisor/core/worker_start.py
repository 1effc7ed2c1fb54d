"""A worker comes up: asked for, forked, booting, ready, or not; and again after its end."""

from dataclasses import replace

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    FAILURES,
    LISTENER,
    Health,
    Reason,
    Worker,
    WorkerState,
    ZygoteState,
)
from taskiq_supervise.supervisor.core.policy import Verdict, judge, lower
from taskiq_supervise.supervisor.core.worker_end import killing, vacate
from taskiq_supervise.supervisor.core.worker_turn import Surroundings, Turn, report

FORK_FAILED = "fork failed"


def fork(worker: Worker, _event: m.WorkerEvent, around: Surroundings) -> Turn:
    """Ask for a process; without a zygote wait EMPTY until there is one."""
    if not (worker.wanted and around.zygote.state is ZygoteState.READY):
        return replace(worker, state=WorkerState.EMPTY, deadline=None), ()
    forking = replace(
        worker,
        state=WorkerState.FORKING,
        generation=around.generation,
        seat=around.seat,
        zygote=around.zygote.generation,
        code=around.zygote.code,
        deadline=around.now + around.settings.fork_timeout,
        pid=0,
        reason=None,
        confirmed=False,
        ready_at=None,
        retire_at=None,
        worn=None,
        health=Health.OK,
    )
    return forking, (m.Fork(forking.slot, forking.generation, forking.seat, forking.zygote),)


def boot(worker: Worker, event: m.Forked, around: Surroundings) -> Turn:
    booting = replace(
        worker,
        state=WorkerState.BOOTING,
        pid=event.pid,
        jitter=event.jitter,
        started=around.now,
        deadline=_after(around.settings.boot_timeout, around),
    )
    return booting, (report(m.Happening.WORKER_FORKED, booting),)


def stray(worker: Worker, event: m.Forked, _around: Surroundings) -> Turn:
    if event.pid == worker.pid:
        return worker, ()  # the same answer twice
    return worker, kill_stray(event)


def kill_stray(event: m.Forked) -> tuple[m.Effect, ...]:
    """A process we do not wait for must not go on taking tasks unseen."""
    return (
        m.KillStray(event.slot, event.generation, event.pid),
        m.Report(m.Happening.STRAY_KILLED, event.slot, event.generation, event.pid),
    )


def retry(worker: Worker, event: m.ForkFailed, around: Surroundings) -> Turn:
    if not worker.wanted:
        return vacate(worker, event, around)
    verdict = judge(
        around.settings.restart,
        worker.history,
        failed=True,
        proven=False,
        pool_recent=around.pool_recent,
        now=around.now,
        jitter=event.jitter,
    )
    failed = replace(worker, boot_error=f"{FORK_FAILED}: {event.message}")
    waiting, effects = _again_after(failed, event, verdict, around)
    told = report(
        m.Happening.FORK_FAILED,
        worker,
        detail=event.message,
        delay=verdict.delay,
        quarantined=verdict.quarantined,
    )
    return waiting, (told, *effects)


def lost(worker: Worker, _event: m.ForkLost, _around: Surroundings) -> Turn:
    empty = replace(worker, state=WorkerState.EMPTY, deadline=None)
    return empty, (
        m.AbandonFork(worker.slot, worker.generation),
        report(m.Happening.FORK_LOST, worker),
    )


def stuck(worker: Worker, _event: m.Due, around: Surroundings) -> Turn:
    """No answer to a fork: the zygote is replaced, and its exit brings `ForkLost`."""
    waiting = replace(worker, deadline=around.now + around.settings.fork_timeout)
    return waiting, (
        m.KillZygote(worker.zygote),
        m.Report(
            m.Happening.ZYGOTE_STUCK,
            generation=worker.zygote,
            detail=f"no answer to a fork within {around.settings.fork_timeout:g} s",
        ),
    )


def ready(worker: Worker, _event: m.Ready, around: Surroundings) -> Turn:
    lifetime = None if worker.slot == LISTENER else around.settings.max_lifetime
    up = replace(
        worker,
        state=WorkerState.READY,
        ready_at=around.now,
        deadline=None,
        boot_error=None,
        boot_traceback=None,
        retire_at=None
        if lifetime is None
        else around.now + lower(lifetime, around.settings.recycle_jitter, worker.jitter),
    )
    return up, (report(m.Happening.WORKER_READY, up),)


def broken(worker: Worker, event: m.BootFailed, around: Surroundings) -> Turn:
    """It says that it could not start; it exits by itself, or is made to."""
    leaving = replace(
        worker,
        state=WorkerState.STOPPING,
        reason=Reason.BOOT,
        boot_error=event.message,
        boot_traceback=event.traceback,
        deadline=around.now + around.settings.stop_timeout,
    )
    return leaving, ()


def slow(worker: Worker, _event: m.Due, around: Surroundings) -> Turn:
    """It has not got READY in its time."""
    error = (
        f"not ready within {around.settings.boot_timeout:g} s (--boot-timeout); "
        "where it stood is in the log"
    )
    failed = replace(worker, reason=worker.reason or Reason.BOOT, boot_error=error)
    gone, effects = killing(failed, around, dump=True)
    return gone, (*effects, report(m.Happening.WORKER_KILLED, worker, detail=error))


def _again_after(
    worker: Worker, event: m.WorkerEvent, verdict: Verdict, around: Surroundings
) -> Turn:
    remembering = replace(worker, history=verdict.history)
    if verdict.delay <= 0:
        return fork(remembering, event, around)
    state = WorkerState.QUARANTINED if verdict.quarantined else WorkerState.BACKOFF
    return replace(remembering, state=state, deadline=around.now + verdict.delay), ()


def _after(limit: float | None, around: Surroundings) -> float | None:
    return None if limit is None else around.now + limit


def settle(worker: Worker, event: m.Buried, around: Surroundings) -> Turn:
    """Its tasks are back in the queue: decide about a successor."""
    if not worker.wanted:
        return (
            replace(worker, state=WorkerState.EMPTY, pid=0),
            (_exit_report(worker, None),),
        )
    verdict = judge(
        around.settings.restart,
        worker.history,
        failed=worker.last_reason in FAILURES,
        proven=worker.proven,
        pool_recent=around.pool_recent,
        now=around.now,
        jitter=event.jitter,
    )
    next_one = replace(worker, restarts=worker.restarts + 1, pid=0)
    waiting, effects = _again_after(next_one, event, verdict, around)
    return waiting, (_exit_report(worker, verdict), *effects)


def _exit_report(worker: Worker, verdict: Verdict | None) -> m.Report:
    return report(
        m.Happening.WORKER_EXITED,
        worker,
        status=worker.last_exit,
        reason=worker.last_reason,
        detail=(worker.boot_error or "") if worker.ready_at is None else "",
        delay=None if verdict is None else verdict.delay,
        quarantined=verdict is not None and verdict.quarantined,
    )
