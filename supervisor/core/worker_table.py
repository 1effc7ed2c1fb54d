"""One worker's life as a table: for every state and every event, the transition that answers it.

The table is written out (`TABLE`) rather than spread over if-statements so that a reader can check
it row by row, and a test can prove that no pair was forgotten; `nop` is an answer too. Transitions
are named for what they do, take values and return values. The reaction to a whole pool's events
(who gets which of these, and when) is `core`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from taskiq_supervise.supervisor import messages as m
from taskiq_supervise.supervisor.model import Reason, Settings, Worker, WorkerState
from taskiq_supervise.supervisor.policy import Verdict, judge


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker's transition may know beyond the worker itself."""

    now: float
    settings: Settings
    can_fork: bool
    zygote_generation: int
    pool_recent: int
    """Unplanned restarts of the other slots within the policy's window."""


Turn = tuple[Worker, tuple[m.Effect, ...]]
# The event's type is what the table is keyed by; each transition names the one it expects.
Transition = Callable[[Worker, Any, Surroundings], Turn]


def nop(worker: Worker, _event: m.WorkerEvent, _around: Surroundings) -> Turn:
    """Nothing to do: late, repeated, or already being seen to."""
    return worker, ()


# --- coming up -----------------------------------------------------------------------------------


def fork(worker: Worker, _event: m.WorkerEvent, around: Surroundings) -> Turn:
    """Ask for a process; without a zygote wait EMPTY until there is one."""
    if not (worker.wanted and around.can_fork):
        return replace(worker, state=WorkerState.EMPTY, deadline=None), ()
    forking = replace(
        worker,
        state=WorkerState.FORKING,
        generation=worker.generation + 1,
        deadline=around.now + around.settings.fork_timeout,
        pid=0,
        reason=None,
        confirmed=False,
        ready_at=None,
    )
    return forking, (m.Fork(forking.slot, forking.generation),)


def boot(worker: Worker, event: m.Forked, around: Surroundings) -> Turn:
    booting = replace(
        worker, state=WorkerState.BOOTING, pid=event.pid, started=around.now, deadline=None
    )
    return booting, (report(m.Happening.WORKER_FORKED, booting),)


def stray(worker: Worker, event: m.Forked, _around: Surroundings) -> Turn:
    """A process we do not wait for must not go on taking tasks unseen."""
    if event.generation == worker.generation and event.pid == worker.pid:
        return worker, ()  # the same answer twice
    return worker, (
        m.KillStray(event.slot, event.generation, event.pid),
        m.Report(m.Happening.STRAY_KILLED, event.slot, event.generation, event.pid),
    )


def retry(worker: Worker, event: m.ForkFailed, around: Surroundings) -> Turn:
    verdict = judge(
        around.settings.restart,
        worker.history,
        failed=True,
        proven=False,
        pool_recent=around.pool_recent,
        now=around.now,
        jitter=event.jitter,
    )
    failed = replace(worker, boot_error=f"fork failed: {event.message}")
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
        m.KillZygote(around.zygote_generation),
        m.Report(
            m.Happening.ZYGOTE_STUCK,
            generation=around.zygote_generation,
            detail=f"no answer to a fork within {around.settings.fork_timeout:g} s",
        ),
    )


def ready(worker: Worker, _event: m.Ready, around: Surroundings) -> Turn:
    up = replace(worker, state=WorkerState.READY, ready_at=around.now, boot_error=None)
    return up, (report(m.Happening.WORKER_READY, up),)


def broken(worker: Worker, event: m.BootFailed, around: Surroundings) -> Turn:
    """It says that it could not start; it exits by itself, or is made to."""
    leaving = replace(
        worker,
        state=WorkerState.STOPPING,
        reason=Reason.BOOT,
        boot_error=event.message,
        deadline=around.now + around.settings.stop_timeout,
    )
    return leaving, ()


# --- going down ----------------------------------------------------------------------------------


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
        deadline=around.now + around.settings.graceful_timeout,
    )
    return leaving, (m.SendDrain(worker.slot, worker.generation),)


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
    return _killing(replace(worker, reason=worker.reason or event.reason), around)


def force(worker: Worker, _event: m.Due, around: Surroundings) -> Turn:
    killing, effects = _killing(worker, around)
    detail = f"had not ended {around.settings.stop_timeout:g} s after it was told to stop"
    return killing, (*effects, report(m.Happening.WORKER_KILLED, worker, detail=detail))


def insist(worker: Worker, _event: m.Due, around: Surroundings) -> Turn:
    """Only a process that the kernel holds (uninterruptible sleep) outlives SIGKILL."""
    killing, effects = _killing(worker, around)
    detail = f"was still there {around.settings.kill_timeout:g} s after SIGKILL (state D?)"
    return killing, (*effects, report(m.Happening.WORKER_KILLED, worker, detail=detail))


def vacate(worker: Worker, _event: m.WorkerEvent, _around: Surroundings) -> Turn:
    return replace(worker, state=WorkerState.EMPTY, deadline=None), ()


# --- gone ----------------------------------------------------------------------------------------


def reap(worker: Worker, event: m.Exited, around: Surroundings) -> Turn:
    reason = _why(worker, event)
    steady = around.settings.restart.steady
    boot_error = worker.boot_error
    if worker.ready_at is None and reason in {Reason.BOOT, Reason.CRASH}:
        boot_error = boot_error or f"{event.status} before it was ready"
    reaped = replace(
        worker,
        state=WorkerState.REAPED,
        pid=event.pid,
        deadline=None,
        last_exit=event.status,
        last_reason=reason,
        boot_error=boot_error,
        proven=event.worked
        or (worker.ready_at is not None and around.now - worker.ready_at >= steady),
    )
    return reaped, (m.Bury(worker.slot, worker.generation, event.pid, event.status),)


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
        failed=worker.last_reason in {Reason.CRASH, Reason.BOOT},
        proven=worker.proven,
        pool_recent=around.pool_recent,
        now=around.now,
        jitter=event.jitter,
    )
    next_one = replace(worker, restarts=worker.restarts + 1, pid=0)
    waiting, effects = _again_after(next_one, event, verdict, around)
    return waiting, (_exit_report(worker, verdict), *effects)


def _stopping(worker: Worker, around: Surroundings) -> Turn:
    deadline = around.now + around.settings.stop_timeout
    return (
        replace(worker, state=WorkerState.STOPPING, deadline=deadline),
        (m.SendStop(worker.slot, worker.generation),),
    )


def _killing(worker: Worker, around: Surroundings) -> Turn:
    deadline = around.now + around.settings.kill_timeout
    return (
        replace(worker, state=WorkerState.KILLING, deadline=deadline),
        (m.KillWorker(worker.slot, worker.generation),),
    )


def _again_after(
    worker: Worker, event: m.WorkerEvent, verdict: Verdict, around: Surroundings
) -> Turn:
    remembering = replace(worker, history=verdict.history)
    if verdict.delay <= 0:
        return fork(remembering, event, around)
    state = WorkerState.QUARANTINED if verdict.quarantined else WorkerState.BACKOFF
    return replace(remembering, state=state, deadline=around.now + verdict.delay), ()


def _why(worker: Worker, event: m.Exited) -> Reason:
    if worker.reason is None:
        if worker.state is not WorkerState.READY:
            return Reason.BOOT if event.status.code is not None else Reason.CRASH
        return Reason.OPERATOR if event.status.clean else Reason.CRASH
    # It was told to leave and died of something else. Not news: what we killed ourselves, and a
    # start that fails while it is being called off.
    expected = (
        event.status.clean
        or worker.state is WorkerState.KILLING
        or (worker.ready_at is None and event.status.code is not None)
    )
    return worker.reason if expected else Reason.CRASH


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


def report(what: m.Happening, worker: Worker, **rest: Any) -> m.Report:
    return m.Report(what, worker.slot, worker.generation, worker.pid, **rest)


STATES = (
    WorkerState.EMPTY,
    WorkerState.FORKING,
    WorkerState.BOOTING,
    WorkerState.READY,
    WorkerState.DRAINING,
    WorkerState.STOPPING,
    WorkerState.KILLING,
    WorkerState.REAPED,
    WorkerState.BACKOFF,
    WorkerState.QUARANTINED,
)

# fmt: off
TABLE: dict[type[m.WorkerEvent], tuple[Transition, ...]] = {
    #              EMPTY   FORKING BOOTING READY   DRAIN'G STOP'G  KILLING REAPED  BACKOFF QUARANT.
    m.Begin:      (fork,   nop,    nop,    nop,    nop,    nop,    nop,    nop,    nop,    nop),
    m.Forked:     (stray,  boot,   stray,  stray,  stray,  stray,  stray,  stray,  stray,  stray),
    m.ForkFailed: (nop,    retry,  nop,    nop,    nop,    nop,    nop,    nop,    nop,    nop),
    m.ForkLost:   (nop,    lost,   nop,    nop,    nop,    nop,    nop,    nop,    nop,    nop),
    m.Ready:      (nop,    nop,    ready,  nop,    nop,    nop,    nop,    nop,    nop,    nop),
    m.BootFailed: (nop,    nop,    broken, nop,    nop,    nop,    nop,    nop,    nop,    nop),
    m.Draining:   (nop,    nop,    leave,  leave,  agreed, nop,    nop,    nop,    nop,    nop),
    m.Drained:    (nop,    nop,    close,  close,  close,  nop,    nop,    nop,    nop,    nop),
    m.Exited:     (nop,    reap,   reap,   reap,   reap,   reap,   reap,   nop,    nop,    nop),
    m.Buried:     (nop,    nop,    nop,    nop,    nop,    nop,    nop,    settle, nop,    nop),
    m.Due:        (nop,    stuck,  nop,    nop,    hurry,  force,  insist, nop,    fork,   fork),
    m.Drain:      (nop,    nop,    drain,  drain,  nop,    nop,    nop,    nop,    vacate, vacate),
    m.Stop:       (nop,    nop,    stop,   stop,   stop,   nop,    nop,    nop,    vacate, vacate),
    m.Kill:       (nop,    nop,    kill,   kill,   kill,   kill,   nop,    nop,    vacate, vacate),
}
# fmt: on

_COLUMN = {state: index for index, state in enumerate(STATES)}


def answer(worker: Worker, event: m.WorkerEvent, around: Surroundings) -> Turn:
    """The worker after the event, and what to do about it."""
    return TABLE[type(event)][_COLUMN[worker.state]](worker, event, around)
