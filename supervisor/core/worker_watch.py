"""What is noticed about a worker that is up: it is worn, hangs, is stopped, or overruns a limit."""

from dataclasses import replace

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import LISTENER, Health, Reason, Worker
from taskiq_supervise.supervisor.core.worker_end import killing
from taskiq_supervise.supervisor.core.worker_turn import Surroundings, Turn, report


def wear(worker: Worker, event: m.Worn, _around: Surroundings) -> Turn:
    """The pool decides when it is replaced. A listener has no limits."""
    if worker.worn is not None or worker.slot == LISTENER:
        return worker, ()
    worn = replace(worker, worn=event.why, retire_at=None)
    return worn, (report(m.Happening.WORKER_WORN, worn, detail=event.why),)


def retire(worker: Worker, event: m.Due, around: Surroundings) -> Turn:
    assert worker.ready_at is not None
    age = around.now - worker.ready_at
    return wear(worker, m.Worn(event.slot, event.generation, f"has lived for {age:.0f} s"), around)


def hang(worker: Worker, event: m.Hung, around: Surroundings) -> Turn:
    if worker.health is Health.STOPPED:
        return worker, ()  # stopped since the last look
    told = report(m.Happening.WORKER_HUNG, worker, detail=f"{event.seconds:.0f}")
    if event.too_long:
        leaving = replace(worker, reason=Reason.HANG)
        gone, effects = killing(leaving, around, blame=True, dump=True)
        error = f"its event loop was blocked for {event.seconds:.0f} s"
        return gone, (*effects, report(m.Happening.WORKER_KILLED, worker, detail=error))
    aside = m.SetAside(worker.slot, worker.generation)
    dump = m.DumpStacks(worker.slot, worker.generation)
    return replace(worker, health=Health.HUNG), (told, dump, aside)


def recover(worker: Worker, event: m.Recovered, _around: Surroundings) -> Turn:
    if worker.health is not Health.HUNG:
        return worker, ()
    told = report(m.Happening.WORKER_RECOVERED, worker, detail=f"{event.seconds:.0f}")
    back = m.CallBack(worker.slot, worker.generation)
    return replace(worker, health=Health.OK), (told, back)


def freeze(worker: Worker, _event: m.Stopped, _around: Surroundings) -> Turn:
    if worker.health is Health.STOPPED:
        return worker, ()
    stopped = replace(worker, health=Health.STOPPED)
    aside = m.SetAside(worker.slot, worker.generation)
    return stopped, (report(m.Happening.WORKER_STOPPED, worker), aside)


def thaw(worker: Worker, _event: m.Continued, _around: Surroundings) -> Turn:
    if worker.health is not Health.STOPPED:
        return worker, ()
    back = m.CallBack(worker.slot, worker.generation)
    running = replace(worker, health=Health.OK)
    return running, (report(m.Happening.WORKER_CONTINUED, worker), back)


def overrun(worker: Worker, event: m.Overdue, around: Surroundings) -> Turn:
    leaving = replace(worker, reason=Reason.TIMEOUT)
    gone, effects = killing(leaving, around, dump=True)
    told = report(m.Happening.WORKER_OVERDUE, worker, detail=", ".join(event.tasks))
    return gone, (told, *effects)
