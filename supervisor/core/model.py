"""What the supervisor knows, as values: one worker per slot, the zygote, and the pool they form.

Nothing here changes in place. `core.step` builds the next state from the last one, so a test can
keep every state a run went through, and an invariant can be checked on each of them. Times are
seconds of a monotonic clock that the shell passes in.

A worker slot is a seat, not a process: it outlives the workers that sit in it, one after the other,
told apart by their generation. Slots without a worker that is wanted stay EMPTY, so that a pool can
grow, shrink, or start a successor in a spare seat before its predecessor leaves.
"""

import enum
import signal
from dataclasses import dataclass, field, replace

from taskiq_supervise.supervisor.policy import History, RestartPolicy, StopLevel


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
    OPERATOR = "operator"
    """By itself and in good order: somebody sent it a SIGTERM by hand."""
    STOP = "stop"
    """The supervisor stops."""


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
    preload: bool = True
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
    hardkill_count: int = 3
    restart: RestartPolicy = field(default_factory=RestartPolicy)


@dataclass(frozen=True, slots=True)
class Worker:
    slot: int
    state: WorkerState = WorkerState.EMPTY
    wanted: bool = True
    generation: int = 0
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


@dataclass(frozen=True, slots=True)
class Zygote:
    state: ZygoteState = ZygoteState.ABSENT
    generation: int = 0
    preload: bool = True
    deadline: float | None = None
    error: str | None = None
    """Why the application could not be loaded the last time it was tried."""
    traceback: str | None = None
    """Of that error, until it was told."""
    failed: bool = False
    """It is ENDING because of that error."""
    ready_at: float | None = None
    history: History = field(default_factory=History)


@dataclass(frozen=True, slots=True)
class Pool:
    """The whole state of a supervisor."""

    settings: Settings
    workers: tuple[Worker, ...]
    zygote: Zygote
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
    def next_deadline(self) -> float | None:
        """When a `Tick` is due at the latest, if nothing else happens."""
        times = [w.deadline for w in self.workers if w.deadline is not None]
        if self.zygote.deadline is not None:
            times.append(self.zygote.deadline)
        return min(times, default=None)

    @property
    def phase(self) -> str:
        """One word for people: starting, running, stopping or stopped."""
        if self.finished:
            return "stopped"
        if self.stopping:
            return "stopping"
        return "running" if self.announced else "starting"

    def with_worker(self, worker: Worker) -> "Pool":
        workers = (*self.workers[: worker.slot], worker, *self.workers[worker.slot + 1 :])
        return replace(self, workers=workers)


def new_pool(settings: Settings) -> Pool:
    """A supervisor that has done nothing yet."""
    return Pool(
        settings=settings,
        workers=tuple(Worker(slot=slot) for slot in range(settings.workers)),
        zygote=Zygote(preload=settings.preload),
    )
