"""What goes into the core and what comes out of it: events and effects, each a type of its own.

Events about a worker or the zygote carry the generation they are about; the core drops what is
about a predecessor. `jitter` is uniform in [0, 1), drawn by the shell, so that the core is a
function. Events without a sender outside (`Begin`, `Due`, ...) are how the core speaks to the table
of a single worker.
"""

import enum
from dataclasses import dataclass

from taskiq_supervise.supervisor.core.model import ExitStatus, Reason
from taskiq_supervise.supervisor.core.transport import Transport

# --- events about one worker ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Forked(WorkerEvent):
    pid: int
    jitter: float


@dataclass(frozen=True, slots=True)
class ForkFailed(WorkerEvent):
    message: str
    jitter: float


@dataclass(frozen=True, slots=True)
class Ready(WorkerEvent):
    """It takes tasks."""


@dataclass(frozen=True, slots=True)
class BootFailed(WorkerEvent):
    """It could not start its broker, and is about to exit."""

    message: str
    traceback: str | None = None
    final: bool = False
    """No other attempt would end otherwise."""


@dataclass(frozen=True, slots=True)
class Draining(WorkerEvent):
    """It takes no more tasks, asked by us or by somebody's signal."""


@dataclass(frozen=True, slots=True)
class Drained(WorkerEvent):
    """Its last task is done; it closes down."""


@dataclass(frozen=True, slots=True)
class Exited(WorkerEvent):
    pid: int
    status: ExitStatus
    worked: bool
    """It completed at least one task."""
    oom: bool = False
    """The kernel killed for want of memory about then."""


@dataclass(frozen=True, slots=True)
class Buried(WorkerEvent):
    """What it held is being given back to the queue."""

    jitter: float


@dataclass(frozen=True, slots=True)
class Worn(WorkerEvent):
    """It reached a limit; `why` says which, in words."""

    why: str


@dataclass(frozen=True, slots=True)
class Hung(WorkerEvent):
    """Its event loop has not turned for so many seconds."""

    seconds: float
    too_long: bool
    """For longer than the settings let it."""


@dataclass(frozen=True, slots=True)
class Recovered(WorkerEvent):
    """Its event loop turns again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stopped(WorkerEvent):
    """By a signal such as SIGSTOP."""


@dataclass(frozen=True, slots=True)
class Continued(WorkerEvent):
    """After that, by SIGCONT."""


@dataclass(frozen=True, slots=True)
class Answered(WorkerEvent):
    """Its event loop turns: it was asked."""


@dataclass(frozen=True, slots=True)
class Overdue(WorkerEvent):
    """Tasks of its ran beyond their hard limits, and are marked so in the queue."""

    tasks: tuple[str, ...]
    """Name, id and time of each."""


# What the core itself says to a worker.


@dataclass(frozen=True, slots=True)
class Begin(WorkerEvent):
    """A worker is wanted here, and there is a zygote to fork it."""


@dataclass(frozen=True, slots=True)
class ForkLost(WorkerEvent):
    """The zygote died; an answer that is outstanding will not come."""


@dataclass(frozen=True, slots=True)
class Due(WorkerEvent):
    """Its deadline has passed."""


@dataclass(frozen=True, slots=True)
class Drain(WorkerEvent):
    reason: Reason


@dataclass(frozen=True, slots=True)
class Stop(WorkerEvent):
    reason: Reason


@dataclass(frozen=True, slots=True)
class Kill(WorkerEvent):
    reason: Reason


# --- events about the zygote ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ZygoteEvent:
    generation: int


@dataclass(frozen=True, slots=True)
class ZygoteLoaded(ZygoteEvent):
    transport: Transport
    threads: tuple[str, ...] = ()
    """Threads that importing the application started: it must not be forked."""
    broadcast: str | None = None
    """Why every worker of this broker would get every task, if so."""


@dataclass(frozen=True, slots=True)
class ZygoteLoadFailed(ZygoteEvent):
    message: str
    traceback: str | None = None
    """Of the application's own code."""


@dataclass(frozen=True, slots=True)
class ZygoteExited(ZygoteEvent):
    status: ExitStatus
    jitter: float


@dataclass(frozen=True, slots=True)
class QueueOpened(ZygoteEvent):
    """We take part in the application's queue (or it has none of ours)."""


@dataclass(frozen=True, slots=True)
class QueueRefused(ZygoteEvent):
    message: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class ZygoteBegin(ZygoteEvent):
    """One is needed."""


@dataclass(frozen=True, slots=True)
class ZygoteDue(ZygoteEvent):
    """Its deadline has passed."""


@dataclass(frozen=True, slots=True)
class ZygoteEnd(ZygoteEvent):
    """No longer needed."""


@dataclass(frozen=True, slots=True)
class ZygoteStuck(ZygoteEvent):
    """It did not answer, or not in a language we know."""

    message: str


@dataclass(frozen=True, slots=True)
class ZygoteProven(ZygoteEvent):
    """A worker of its got READY."""


@dataclass(frozen=True, slots=True)
class ZygoteStillborn(ZygoteEvent):
    """A worker of its has ended before it was READY; `message` says how."""

    message: str


# --- events about the whole ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The shell is ready to carry out effects."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of `Pool.next_deadline` may have come."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM or SIGINT: drain, and be quicker about it each time."""


@dataclass(frozen=True, slots=True)
class Quit:
    """SIGQUIT: at once."""


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Replace the code; answered by `ReloadEnded`."""


@dataclass(frozen=True, slots=True)
class Scale:
    """To so many workers; `by`: who wants that, in words."""

    workers: int
    by: str


PoolEvent = Started | Tick | Terminate | Quit | ReloadRequested | Scale
Event = WorkerEvent | ZygoteEvent | PoolEvent


# --- effects -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fork:
    slot: int
    generation: int
    seat: int
    zygote: int
    """Generation of the one to ask."""


@dataclass(frozen=True, slots=True)
class SendDrain:
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class SendStop:
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """SIGKILL its process group."""

    slot: int
    generation: int
    blame: bool = False
    """What it ran counts this as a death; else say to the queue first that it is planned."""
    dump: bool = False
    """Its stacks are of interest, and come first."""


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Of all its threads, into the log."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Whether its event loop turns; `Answered` says that it does."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class SetAside:
    """It cannot answer its doorbell: pass on what wakes it."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class CallBack:
    """It can again."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class KillStray:
    """SIGKILL a process that was forked for a generation nobody waits for any more."""

    slot: int
    generation: int
    pid: int


@dataclass(frozen=True, slots=True)
class AbandonFork:
    """Forget the fork: close our end of the link, on which a worker that exists after all ends."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Bury:
    """Give back what it held; answered by `Buried`."""

    slot: int
    generation: int
    pid: int
    status: ExitStatus
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class StartZygote:
    generation: int
    preload: bool


@dataclass(frozen=True, slots=True)
class OpenQueue:
    """Answered by `QueueOpened` or `QueueRefused`."""

    generation: int
    transport: Transport


@dataclass(frozen=True, slots=True)
class EndZygote:
    generation: int


@dataclass(frozen=True, slots=True)
class KillZygote:
    generation: int
    dump: bool = False
    """Its stacks are of interest, and come first."""


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    """All reloads up to this number are over, this one with `error` or well."""

    number: int
    error: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Finish:
    exit_code: int


class Happening(enum.Enum):
    """What is worth a line in the log."""

    ZYGOTE_STARTED = enum.auto()
    ZYGOTE_READY = enum.auto()
    ZYGOTE_EXITED = enum.auto()
    ZYGOTE_STUCK = enum.auto()
    ZYGOTE_KILLED = enum.auto()
    PRELOAD_UNSAFE = enum.auto()
    REFUSED = enum.auto()
    """At the first load: the end."""
    ZYGOTE_FAILED = enum.auto()
    """At a later one: tried again."""
    FORK_FAILED = enum.auto()
    FORK_LOST = enum.auto()
    STRAY_KILLED = enum.auto()
    WORKER_FORKED = enum.auto()
    WORKER_READY = enum.auto()
    WORKER_DRAINING = enum.auto()
    WORKER_STOPPING = enum.auto()
    WORKER_KILLED = enum.auto()
    WORKER_EXITED = enum.auto()
    WORKER_HUNG = enum.auto()
    WORKER_RECOVERED = enum.auto()
    WORKER_STOPPED = enum.auto()
    WORKER_CONTINUED = enum.auto()
    WORKER_OVERDUE = enum.auto()
    WORKER_WORN = enum.auto()
    WORKER_REPLACED = enum.auto()
    """Its successor is READY: it drains."""
    RELOAD_STARTED = enum.auto()
    RELOAD_DONE = enum.auto()
    RELOAD_FAILED = enum.auto()
    RELOAD_ENDED = enum.auto()
    """What was rolled back is gone."""
    SCALED = enum.auto()
    SCALE_REFUSED = enum.auto()
    POOL_READY = enum.auto()
    STOP_REQUESTED = enum.auto()
    POOL_DRAINING = enum.auto()
    STOPPED = enum.auto()


@dataclass(frozen=True, slots=True)
class Report:
    """Something happened; `journal` puts it into words."""

    what: Happening
    slot: int | None = None
    generation: int = 0
    pid: int = 0
    reload: int | None = None
    status: ExitStatus | None = None
    reason: Reason | None = None
    delay: float | None = None
    """Seconds until it is tried again."""
    quarantined: bool = False
    detail: str = ""
    traceback: str | None = None


Effect = (
    Fork
    | SendDrain
    | SendStop
    | KillWorker
    | DumpStacks
    | Ask
    | SetAside
    | CallBack
    | KillStray
    | AbandonFork
    | Bury
    | StartZygote
    | OpenQueue
    | EndZygote
    | KillZygote
    | ReloadEnded
    | Finish
    | Report
)
