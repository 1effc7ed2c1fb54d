"""What the supervisor knows, as values: one worker per slot, the zygote, and the pool they form.

Nothing here changes in place. `core.step` builds the next state from the last one, so a test can
keep every state a run went through, and an invariant can be checked on each of them. Times are
seconds of a monotonic clock that the shell passes in.

A slot is a position in the pool, 0 to N-1, that outlives the workers in it, told apart by their
generation. It has one worker that is wanted; beside it there may be predecessors that leave, and a
successor that is to take its place once it is READY. A seat is a worker's section of the board, a
small number that is free again when the worker is gone.

Where a broker cannot be listened to by several workers, one more process listens for all of them.
It has a slot of its own, LISTENER, and is supervised like a worker, but it is none: it runs no
tasks, so it counts neither for the size of the pool nor for its recycling.
"""

import enum
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from taskiq_supervise.supervisor.core.policy import History, RestartPolicy, StopLevel
from taskiq_supervise.supervisor.core.transport import Transport


class WorkerState(enum.Enum):
    EMPTY = "empty"
    """No process, and none asked for: unwanted, or waiting for a zygote that can fork."""
    FORKING = "forking"
    """The zygote was asked for a process and has not answered."""
    BOOTING = "booting"
    """A process that starts its broker."""
    READY = "ready"
    DRAINING = "draining"
    """Takes no more tasks, finishes those it has."""
    STOPPING = "stopping"
    """Gives back what it has and closes down; no longer asked to finish anything."""
    KILLING = "killing"
    """SIGKILL was sent to its process group."""
    REAPED = "reaped"
    """Gone; what it held is being given back to the queue."""
    BACKOFF = "backoff"
    """Waits before the next start because the last ones failed."""
    QUARANTINED = "quarantined"
    """Was restarted too often lately; waits long."""


ALIVE = frozenset(
    {
        WorkerState.BOOTING,
        WorkerState.READY,
        WorkerState.DRAINING,
        WorkerState.STOPPING,
        WorkerState.KILLING,
    }
)


class ZygoteState(enum.Enum):
    ABSENT = "absent"
    LOADING = "loading"
    """Imports the application."""
    ATTACHING = "attaching"
    """The application is loaded; its queue is being opened on our side."""
    READY = "ready"
    ENDING = "ending"
    """Told to exit: no longer of use, or about to be replaced."""
    BACKOFF = "backoff"


class Reason(enum.Enum):
    """Why a worker leaves or left."""

    CRASH = "crash"
    BOOT = "boot"
    """It did not get READY."""
    OOM = "oom"
    """The kernel killed it for want of memory."""
    HANG = "hang"
    """Its event loop was blocked for longer than `hang_timeout`."""
    TIMEOUT = "timeout"
    """A task of its ran beyond its hard limit."""
    RECYCLE = "recycle"
    """It reached one of its limits, and its successor is READY."""
    RELOAD = "reload"
    SCALE = "scale"
    OPERATOR = "operator"
    """By itself and in good order: somebody sent it a SIGTERM by hand."""
    STOP = "stop"
    """The supervisor stops."""


FAILURES = frozenset({Reason.CRASH, Reason.BOOT, Reason.OOM, Reason.HANG})
"""Count for the backoff; planned exits never do."""


UNHURRIED = frozenset({Reason.RECYCLE, Reason.SCALE})
"""Leave when what they run has ended, however long that takes."""


class Health(enum.Enum):
    """What is said about a worker beside its state."""

    OK = "ok"
    HUNG = "hung"
    """Its event loop is blocked."""
    STOPPED = "stopped"
    """By a signal, as SIGSTOP."""


class ReloadStage(enum.Enum):
    LOADING = "loading"
    """A second zygote imports the new code; the old one goes on forking."""
    CANARY = "canary"
    """The first worker of the new code has to get READY, and to stay up."""
    ROLLING = "rolling"
    """The other workers are replaced, one after another; the old zygote is still there."""
    ROLLING_BACK = "rolling back"
    """Something of the new code failed after the canary: workers of the old code come back."""
    FINISHING = "finishing"
    """What is not needed any more leaves."""


LISTENER = -1
"""The slot of the process that listens for all workers."""

MAX_WORKERS = 500
"""Of a pool: a queue has room for 512 participants, clients among them."""

# The exit status of the supervisor.
EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_LOADED = 3
EXIT_REFUSED = 4


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: with `code`, or by `signal`; neither when somebody else reaped it."""

    code: int | None = None
    signal: int | None = None
    core_dumped: bool = False

    @property
    def clean(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:  # real-time signals have no names of their own
                name = f"signal {self.signal}"
            return f"killed by {name}" + (" (core dumped)" if self.core_dumped else "")
        if self.code is not None:
            return f"exited with status {self.code}"
        return "ended, and somebody else took its exit status"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was asked for, as far as decisions depend on it. Times in seconds."""

    workers: int
    """At the start."""
    min_workers: int | None = None
    max_workers: int | None = None
    """Both: the pool grows and shrinks between them by itself. None: it does not."""
    preload: bool = True
    boot_timeout: float | None = 60.0
    """For importing the application, and for a worker to get READY. None: no limit."""
    canary_time: float = 1.0
    """For which the first worker of new code has to stay up before an old one leaves."""
    canary_timeout: float = 10.0
    """For its answer then: one whose event loop is blocked stays up as well."""
    graceful_timeout: float = 30.0
    """For a drain, before the rest is given back."""
    stop_timeout: float = 8.0
    """For giving back and closing down, before SIGKILL."""
    kill_timeout: float = 5.0
    """Until a SIGKILL that showed no effect is sent, and said, again."""
    fork_timeout: float = 30.0
    """For the zygote's answer to a fork, before it is replaced; a fork takes milliseconds."""
    zygote_timeout: float = 5.0
    """For the zygote's exit, before SIGKILL."""
    hang_warn: float | None = 10.0
    """An event loop that was blocked for so long is reported. None: it is not."""
    hang_timeout: float | None = None
    """A worker whose event loop was blocked for so long is killed. None: it is not."""
    max_tasks: int | None = None
    max_memory: int | None = None
    """Bytes of RSS, without shared memory, of the worker and its children."""
    max_lifetime: float | None = None
    recycle_jitter: float = 0.1
    """Each worker's limits are lower by a random part of this, drawn at its start."""
    hardkill_count: int = 3
    restart: RestartPolicy = field(default_factory=RestartPolicy)


@dataclass(frozen=True, slots=True)
class Worker:
    slot: int
    state: WorkerState = WorkerState.EMPTY
    wanted: bool = True
    """False: it leaves, and nobody takes its place."""
    successor: bool = False
    """It is to take its slot from the one that has it, once it is READY."""
    canary: bool = False
    """The first one of new code, which the candidate zygote forks."""
    generation: int = 0
    """Of this slot; 0 before its first process."""
    seat: int = 0
    zygote: int = 0
    """Generation of the one that was asked for it."""
    code: int = 0
    """The number of the reload that brought the code it runs; 0: that of the start."""
    pid: int = 0
    started: float = 0.0
    """When this generation's process came to be."""
    ready_at: float | None = None
    deadline: float | None = None
    reason: Reason | None = None
    """Why it is leaving, once it is."""
    confirmed: bool = False
    """It said itself that it takes no more tasks."""
    boot_error: str | None = None
    """Why its last start failed, until one succeeds."""
    boot_traceback: str | None = None
    jitter: float = 0.0
    """Drawn at its start, in [0, 1)."""
    retire_at: float | None = None
    """When its lifetime ends."""
    worn: str | None = None
    """Which limit it has reached, in words: it is to be recycled."""
    health: Health = Health.OK
    last_exit: ExitStatus | None = None
    last_reason: Reason | None = None
    proven: bool = False
    """The one that has just ended completed a task, or was up for long enough."""
    restarts: int = 0
    """Replacements in this slot since the supervisor started."""
    history: History = field(default_factory=History)

    @property
    def alive(self) -> bool:
        return self.state in ALIVE

    @property
    def seated(self) -> bool:
        """Its section of the board is its own."""
        return self.alive or self.state in {WorkerState.FORKING, WorkerState.REAPED}


@dataclass(frozen=True, slots=True)
class Zygote:
    state: ZygoteState = ZygoteState.ABSENT
    generation: int = 0
    code: int = 0
    """The number of the reload it belongs to."""
    preload: bool = True
    broadcast: str | None = None
    """Why each of several workers of its application would get each task, if so."""
    transport: Transport | None = None
    """How tasks reach its workers; None before it was loaded once."""
    deadline: float | None = None
    error: str | None = None
    """Why the application could not be loaded the last time it was tried."""
    traceback: str | None = None
    """Of that error, until it was told."""
    failed: bool = False
    """It is ENDING, or has ended, because of that error."""
    retired: bool = False
    """It is not needed any more: it ends, and nothing takes its place."""
    untried: bool = False
    """It took the place of one that failed or died, so it has imported what lay there by then, and
    none of its workers has been READY yet."""
    stillborn: int = 0
    """How many of its workers have failed to get READY while it is untried."""
    ready_at: float | None = None
    history: History = field(default_factory=History)

    @property
    def listens(self) -> bool:
        """Its application needs a listener."""
        return self.transport is not None and self.transport.kind == "listener"


@dataclass(frozen=True, slots=True)
class Reload:
    """One replacement of the code, from the request until the last old worker is gone."""

    number: int
    stage: ReloadStage
    other: int = 0
    """Generation of the second zygote: the candidate, or after the canary the one before."""
    deadline: float | None = None
    """For the canary to stay up, and then to answer."""
    asked: bool = False
    """The canary was asked for a sign of life."""
    error: str | None = None
    """What broke: it is, or was, rolled back."""
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """The whole state of a pool."""

    settings: Settings
    target: int
    """How many workers there are to be."""
    zygote: Zygote
    """The one that forks."""
    others: tuple[Zygote, ...] = ()
    """A reload's second one, and such as have not ended yet."""
    zygotes: int = 0
    """How many there have been."""
    workers: tuple[Worker, ...] = ()
    """By slot; in a slot, by their time. A listener is the first."""
    generations: Mapping[int, int] = field(default_factory=dict)
    """The last one of each slot that ever had one."""
    reload: Reload | None = None
    reloads: int = 0
    reload_again: bool = False
    """Asked for while one was under way."""
    loaded: bool = False
    """The application was loaded and its queue opened once: from now on failures are retried."""
    announced: bool = False
    """All workers were READY at the same time once."""
    drain_announced: bool = False
    """All workers have confirmed that they take no more tasks."""
    stop_requests: int = 0
    stop: StopLevel | None = None
    exit_code: int | None = None
    """Set as soon as the supervisor is on its way out."""
    finished: bool = False

    @property
    def stopping(self) -> bool:
        return self.exit_code is not None

    @property
    def ends_need_listener(self) -> bool:
        """It stops, and its workers cannot end their tasks without a listener."""
        transport = self.zygote.transport
        joins_them = transport is not None and transport.joined_by_listener
        return self.stop is StopLevel.DRAIN and joins_them and bool(self.crew)

    @property
    def crew(self) -> tuple[Worker, ...]:
        """Those that run tasks: all but the listener."""
        return tuple(worker for worker in self.workers if worker.slot != LISTENER)

    @property
    def next_deadline(self) -> float | None:
        """When a `Tick` is due at the latest, if nothing else happens."""
        times = [w.deadline for w in self.workers]
        times += [w.retire_at for w in self.workers if w.state is WorkerState.READY and not w.worn]
        times += [zygote.deadline for zygote in (self.zygote, *self.others)]
        if self.reload is not None:
            times.append(self.reload.deadline)
        return min((time for time in times if time is not None), default=None)

    @property
    def broadcast(self) -> str | None:
        """Why no two workers may take tasks at once, if so; be it of the old code or the new."""
        zygotes = (self.zygote, *self.others)
        return next((one.broadcast for one in zygotes if one.broadcast is not None), None)

    @property
    def phase(self) -> str:
        """One word for people: starting, running, stopping or stopped."""
        if self.finished:
            return "stopped"
        if self.stopping:
            return "stopping"
        return "running" if self.announced else "starting"

    def find(self, slot: int, generation: int) -> Worker | None:
        for worker in self.workers:
            if (worker.slot, worker.generation) == (slot, generation):
                return worker
        return None

    def holder(self, slot: int) -> Worker | None:
        """The worker that has this slot, or had it when there was one."""
        for worker in self.workers:
            if worker.slot == slot and worker.wanted and not worker.successor:
                return worker
        return None

    def successor(self, slot: int) -> Worker | None:
        for worker in self.workers:
            if worker.slot == slot and worker.wanted and worker.successor:
                return worker
        return None

    def free_seat(self, worker: Worker) -> int:
        """The lowest that nobody else sits in."""
        taken = {one.seat for one in self.workers if one.seated and one is not worker}
        return next(seat for seat in range(len(taken) + 1) if seat not in taken)


def new_pool(settings: Settings) -> Pool:
    """A pool for which nothing has been done yet."""
    return Pool(
        settings=settings,
        target=settings.workers,
        zygote=Zygote(preload=settings.preload),
        workers=tuple(Worker(slot=slot) for slot in range(settings.workers)),
    )
