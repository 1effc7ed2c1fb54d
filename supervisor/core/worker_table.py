"""One worker's life as a table: for every state and every event, the transition that answers it.

The table is written out (`TABLE`) rather than spread over if-statements so that a reader can check
it row by row, and a test can prove that no pair was forgotten; `nop` is an answer too. Transitions
are named for what they do, take values and return values. The reaction to a whole pool's events
(who gets which of these, and when) is `core`'s.
"""

from collections.abc import Callable
from typing import Any

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import Worker, WorkerState
from taskiq_supervise.supervisor.core.worker_end import (
    agreed,
    close,
    defer,
    drain,
    force,
    hurry,
    insist,
    kill,
    leave,
    press,
    reap,
    stop,
    vacate,
)
from taskiq_supervise.supervisor.core.worker_start import (
    boot,
    broken,
    fork,
    lost,
    ready,
    retry,
    settle,
    slow,
    stray,
    stuck,
)
from taskiq_supervise.supervisor.core.worker_turn import Surroundings, Turn
from taskiq_supervise.supervisor.core.worker_watch import (
    freeze,
    hang,
    overrun,
    recover,
    retire,
    thaw,
    wear,
)

# The event's type is what the table is keyed by; each transition names the one it expects.
Transition = Callable[[Worker, Any, Surroundings], Turn]


def nop(worker: Worker, _event: m.WorkerEvent, _around: Surroundings) -> Turn:
    """Nothing to do: late, repeated, or already being seen to."""
    return worker, ()


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
    #              EMPTY  FORK'G BOOT'G  READY    DRAIN'G  STOP'G   KILL'G  REAPED  BACKOFF QUAR.
    m.Begin:      (fork,  nop,   nop,    nop,     nop,     nop,     nop,    nop,    nop,    nop),
    m.Forked:     (stray, boot,  stray,  stray,   stray,   stray,   stray,  stray,  stray,  stray),
    m.ForkFailed: (nop,   retry, nop,    nop,     nop,     nop,     nop,    nop,    nop,    nop),
    m.ForkLost:   (nop,   lost,  nop,    nop,     nop,     nop,     nop,    nop,    nop,    nop),
    m.Ready:      (nop,   nop,   ready,  nop,     nop,     nop,     nop,    nop,    nop,    nop),
    m.BootFailed: (nop,   nop,   broken, nop,     nop,     nop,     nop,    nop,    nop,    nop),
    m.Draining:   (nop,   nop,   leave,  leave,   agreed,  nop,     nop,    nop,    nop,    nop),
    m.Drained:    (nop,   nop,   close,  close,   close,   nop,     nop,    nop,    nop,    nop),
    m.Worn:       (nop,   nop,   nop,    wear,    nop,     nop,     nop,    nop,    nop,    nop),
    m.Hung:       (nop,   nop,   nop,    hang,    hang,    nop,     nop,    nop,    nop,    nop),
    m.Recovered:  (nop,   nop,   nop,    recover, recover, recover, nop,    nop,    nop,    nop),
    m.Stopped:    (nop,   nop,   freeze, freeze,  freeze,  freeze,  nop,    nop,    nop,    nop),
    m.Continued:  (nop,   nop,   thaw,   thaw,    thaw,    thaw,    nop,    nop,    nop,    nop),
    m.Answered:   (nop,   nop,    nop,    nop,     nop,     nop,     nop,    nop,    nop,    nop),
    m.Overdue:    (nop,   nop,   nop,    overrun, overrun, overrun, nop,    nop,    nop,    nop),
    m.Exited:     (nop,   reap,  reap,   reap,    reap,    reap,    reap,   nop,    nop,    nop),
    m.Buried:     (nop,   nop,   nop,    nop,     nop,     nop,     nop,    settle, nop,    nop),
    m.Due:        (nop,   stuck, slow,   retire,  hurry,   force,   insist, nop,    fork,   fork),
    m.Drain:      (nop,   defer, drain,  drain,   press,   nop,     nop,    nop,    vacate, vacate),
    m.Stop:       (nop,   defer, stop,   stop,    stop,    nop,     nop,    nop,    vacate, vacate),
    m.Kill:       (nop,   defer, kill,   kill,    kill,    kill,    nop,    nop,    vacate, vacate),
}
# fmt: on

_COLUMN = {state: index for index, state in enumerate(STATES)}


def answer(worker: Worker, event: m.WorkerEvent, around: Surroundings) -> Turn:
    """The worker after the event, and what to do about it."""
    return TABLE[type(event)][_COLUMN[worker.state]](worker, event, around)
