"""The zygote's life as a table, in the manner of `worker_table`.

One zygote forks; a reload has a second one, the candidate. The first time the one that forks fails
to load the application the supervisor ends, because somebody stands before it and waits for an
answer; later it is tried again with backoff: workers that do their work don't need it, only a dead
one can't be replaced until it is back. A candidate that fails is not tried again: the reload is.

One that took the place of another has imported what lay there by then, which may be code that a
reload has refused. It can be loaded, and its workers still never get READY. Then it is of no use
either, and is replaced like one that cannot load it: once the code is mended, so is the pool.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    EXIT_NOT_LOADED,
    Settings,
    Zygote,
    ZygoteState,
)
from taskiq_supervise.supervisor.core.policy import StopLevel, judge


@dataclass(frozen=True, slots=True)
class Surroundings:
    now: float
    settings: Settings
    generation: int
    """For the next process."""
    target: int
    """How many workers there are to be."""
    candidate: bool
    """It belongs to a reload that has not got as far as to need it."""
    loaded: bool
    """It was loaded once: a failure now is tried again."""
    stopping: bool
    stop: StopLevel | None


class Turn(NamedTuple):
    zygote: Zygote
    effects: tuple[m.Effect, ...] = ()
    exit_code: int | None = None
    """The supervisor cannot go on."""


Transition = Callable[[Zygote, Any, Surroundings], Turn]

_WAYS = {"shm": "a queue of ours", "broker": "its own broker", "listener": "a listener"}

# So many of its workers have to fail; a single one may have been killed by anybody.
_STILLBORN = 2


def nop(zygote: Zygote, _event: m.ZygoteEvent, _around: Surroundings) -> Turn:
    return Turn(zygote)


def begin(zygote: Zygote, _event: m.ZygoteEvent, around: Surroundings) -> Turn:
    if around.stopping:
        return Turn(replace(zygote, state=ZygoteState.ABSENT, deadline=None, retired=True))
    replaces = zygote.failed or zygote.ready_at is not None
    loading = replace(
        zygote,
        state=ZygoteState.LOADING,
        generation=around.generation,
        deadline=_boot_limit(around),
        failed=False,
        ready_at=None,
        untried=zygote.untried or replaces,
        stillborn=0,
    )
    return Turn(
        loading,
        (
            m.StartZygote(loading.generation, loading.preload),
            m.Report(m.Happening.ZYGOTE_STARTED, generation=loading.generation),
        ),
    )


def loaded(zygote: Zygote, event: m.ZygoteLoaded, around: Surroundings) -> Turn:
    if event.threads and zygote.preload:
        told = m.Report(
            m.Happening.PRELOAD_UNSAFE,
            generation=zygote.generation,
            detail=", ".join(event.threads),
        )
        return _end(replace(zygote, preload=False), around, told)
    if event.broadcast is not None and around.target > 1:
        message = (
            f"this broker cannot serve {around.target} workers without a listener: "
            f"{event.broadcast}; leave --no-single-listener out, or use --workers 1"
        )
        return _fail(zygote, around, message, EXIT_NOT_LOADED)
    if around.loaded and not around.candidate and zygote.transport is not None:
        known, new = zygote.transport.kind, event.transport.kind
        if known != new:
            message = (
                f"what it imported now takes tasks by way of {_WAYS[new]}, and no more of "
                f"{_WAYS[known]}; a reload follows it"
            )
            return _fail(zygote, around, message, EXIT_NOT_LOADED)
    return Turn(
        replace(
            zygote,
            state=ZygoteState.ATTACHING,
            broadcast=event.broadcast,
            transport=event.transport,
        ),
        (m.OpenQueue(zygote.generation, event.transport),),
    )


def load_failed(zygote: Zygote, event: m.ZygoteLoadFailed, around: Surroundings) -> Turn:
    return _fail(zygote, around, event.message, EXIT_NOT_LOADED, event.traceback)


def opened(zygote: Zygote, _event: m.QueueOpened, around: Surroundings) -> Turn:
    up = replace(
        zygote,
        state=ZygoteState.READY,
        deadline=None,
        error=None,
        traceback=None,
        ready_at=around.now,
    )
    return Turn(up, (m.Report(m.Happening.ZYGOTE_READY, generation=zygote.generation),))


def refused(zygote: Zygote, event: m.QueueRefused, around: Surroundings) -> Turn:
    return _fail(zygote, around, event.message, event.exit_code)


def stuck(zygote: Zygote, event: m.ZygoteStuck, around: Surroundings) -> Turn:
    turn = _fail(zygote, around, event.message, EXIT_NOT_LOADED)
    return turn._replace(effects=(m.KillZygote(zygote.generation), *turn.effects))


def proven(zygote: Zygote, _event: m.ZygoteProven, _around: Surroundings) -> Turn:
    return Turn(replace(zygote, untried=False, stillborn=0))


def useless(zygote: Zygote, event: m.ZygoteStillborn, around: Surroundings) -> Turn:
    """Code that was tried before is not to blame; nor is what a worker imports for itself."""
    if around.stopping or around.candidate or not (zygote.untried and zygote.preload):
        return Turn(zygote)
    counted = replace(zygote, stillborn=zygote.stillborn + 1)
    if counted.stillborn < _STILLBORN:
        return Turn(counted)
    message = f"its workers do not get ready ({event.message})"
    return _fail(counted, around, message, EXIT_NOT_LOADED)


def overtime(zygote: Zygote, _event: m.ZygoteDue, around: Surroundings) -> Turn:
    """Importing the application takes longer than it may."""
    message = (
        f"importing the application has not ended within {around.settings.boot_timeout:g} s "
        "(--boot-timeout); where it stood is in the log"
    )
    turn = _fail(zygote, around, message, EXIT_NOT_LOADED)
    return turn._replace(effects=(m.KillZygote(zygote.generation, dump=True), *turn.effects))


def died(zygote: Zygote, event: m.ZygoteExited, around: Surroundings) -> Turn:
    """It ended, and we did not tell it to."""
    error = f"importing the application ended its process ({event.status})"
    if zygote.state is ZygoteState.READY:
        error = f"the process that forks its workers ended ({event.status})"
    gone = replace(zygote, state=ZygoteState.ABSENT, deadline=None, failed=True, error=error)
    if around.candidate:
        return Turn(gone)
    if not around.loaded:
        told = m.Report(m.Happening.REFUSED, generation=zygote.generation, detail=error)
        return Turn(gone, (told,), EXIT_NOT_LOADED)
    return _again(zygote, event, around)


def ended(zygote: Zygote, event: m.ZygoteExited, around: Surroundings) -> Turn:
    """It ended because we told it to: for a stop, for a failure, or to load differently."""
    if zygote.retired or (around.candidate and zygote.failed):
        return Turn(replace(zygote, state=ZygoteState.ABSENT, deadline=None))
    if around.stopping or not zygote.failed:
        return begin(zygote, event, around)
    return _again(zygote, event, around)


def end(zygote: Zygote, _event: m.ZygoteEnd, around: Surroundings) -> Turn:
    return _end(replace(zygote, retired=True), around)


def end_now(zygote: Zygote, _event: m.ZygoteEnd, around: Surroundings) -> Turn:
    """It ends already; from now on for good."""
    retired = replace(zygote, retired=True)
    if around.stop is not StopLevel.KILL:
        return Turn(retired)
    return Turn(retired, (m.KillZygote(zygote.generation),))


def forget(zygote: Zygote, _event: m.ZygoteEnd, _around: Surroundings) -> Turn:
    return Turn(replace(zygote, state=ZygoteState.ABSENT, deadline=None, retired=True))


def overdue(zygote: Zygote, _event: m.ZygoteDue, around: Surroundings) -> Turn:
    again = replace(zygote, deadline=around.now + around.settings.kill_timeout)
    told = m.Report(
        m.Happening.ZYGOTE_KILLED,
        generation=zygote.generation,
        detail="had not ended when told to",
    )
    return Turn(again, (m.KillZygote(zygote.generation), told))


def _fail(
    zygote: Zygote,
    around: Surroundings,
    message: str,
    exit_code: int,
    traceback: str | None = None,
) -> Turn:
    """It is of no use. Cold, that is the end; warm, it is replaced once it has exited."""
    # The same traceback every 30 seconds would bury the rest of the log.
    news = traceback if message != zygote.error else None
    failed = replace(zygote, error=message, traceback=news, failed=True)
    if around.loaded:
        return _end(failed, around)  # `_again` tells, with the time of the next attempt
    told = m.Report(
        m.Happening.REFUSED, generation=zygote.generation, detail=message, traceback=traceback
    )
    return _end(failed, around, told)._replace(exit_code=exit_code)


def _end(zygote: Zygote, around: Surroundings, *reports: m.Report) -> Turn:
    ending = replace(
        zygote,
        state=ZygoteState.ENDING,
        deadline=around.now + around.settings.zygote_timeout,
    )
    how: m.Effect = m.EndZygote(zygote.generation)
    if around.stop is StopLevel.KILL:
        how = m.KillZygote(zygote.generation)
    return Turn(ending, (how, *reports))


def _boot_limit(around: Surroundings) -> float | None:
    limit = around.settings.boot_timeout
    return None if limit is None else around.now + limit


def _again(zygote: Zygote, event: m.ZygoteExited, around: Surroundings) -> Turn:
    if around.stopping:
        return begin(zygote, event, around)
    steady = around.settings.restart.steady
    verdict = judge(
        around.settings.restart,
        zygote.history,
        failed=True,
        proven=zygote.ready_at is not None and around.now - zygote.ready_at >= steady,
        pool_recent=0,
        now=around.now,
        jitter=event.jitter,
    )
    told = m.Report(
        m.Happening.ZYGOTE_FAILED if zygote.failed else m.Happening.ZYGOTE_EXITED,
        generation=zygote.generation,
        status=event.status,
        detail=zygote.error or "",
        delay=verdict.delay,
        quarantined=verdict.quarantined,
        traceback=zygote.traceback,
    )
    remembering = replace(zygote, history=verdict.history, traceback=None)
    if verdict.delay <= 0:
        turn = begin(remembering, event, around)
        return turn._replace(effects=(told, *turn.effects))
    deadline = around.now + verdict.delay
    waiting = replace(remembering, state=ZygoteState.BACKOFF, deadline=deadline)
    return Turn(waiting, (told,))


STATES = (
    ZygoteState.ABSENT,
    ZygoteState.LOADING,
    ZygoteState.ATTACHING,
    ZygoteState.READY,
    ZygoteState.ENDING,
    ZygoteState.BACKOFF,
)

# fmt: off
TABLE: dict[type[m.ZygoteEvent], tuple[Transition, ...]] = {
    #                    ABSENT   LOADING      ATTACHING  READY    ENDING    BACKOFF
    m.ZygoteBegin:      (begin,   nop,         nop,       nop,     nop,      nop),
    m.ZygoteLoaded:     (nop,     loaded,      nop,       nop,     nop,      nop),
    m.ZygoteLoadFailed: (nop,     load_failed, nop,       nop,     nop,      nop),
    m.QueueOpened:      (nop,     nop,         opened,    nop,     nop,      nop),
    m.QueueRefused:     (nop,     nop,         refused,   nop,     nop,      nop),
    m.ZygoteExited:     (nop,     died,        died,      died,    ended,    nop),
    m.ZygoteStuck:      (nop,     stuck,       stuck,     stuck,   nop,      nop),
    m.ZygoteProven:     (nop,     nop,         nop,       proven,  nop,      nop),
    m.ZygoteStillborn:  (nop,     nop,         nop,       useless, nop,      nop),
    m.ZygoteDue:        (nop,     overtime,    overtime,  nop,     overdue,  begin),
    m.ZygoteEnd:        (forget,  end,         end,       end,     end_now,  forget),
}
# fmt: on

_COLUMN = {state: index for index, state in enumerate(STATES)}


def answer(zygote: Zygote, event: m.ZygoteEvent, around: Surroundings) -> Turn:
    return TABLE[type(event)][_COLUMN[zygote.state]](zygote, event, around)
