"""A kernel, a zygote and workers made of dictionaries, for the core to supervise.

It carries out effects as the shell does, and remembers what exists, so that a test can ask whether
the core knows about all of it. What the processes do (boot, crash, answer late, not at all) is up
to the test that plays them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    LISTENER,
    ExitStatus,
    Pool,
    Settings,
    WorkerState,
    new_pool,
)
from taskiq_supervise.supervisor.core.policy import StopLevel
from taskiq_supervise.supervisor.core.step import step
from taskiq_supervise.supervisor.core.transport import Listening, Transport

KILLED = ExitStatus(signal=9)
# Far more turns than a small pool needs from any state.
TURNS = 500
TRANSPORT = Transport("shm", "queue", "/dev/shm/x")
_TAKES = Listening("taskiq.ZeroMQBroker", "taskiq.Z", "it publishes", ("tcp://127.0.0.1:5",))
LISTENING = Transport("listener", "feed", "/dev/shm/x", listener=_TAKES)
JOINING = replace(LISTENING, listener=replace(_TAKES, store="zmq"))


@dataclass
class Process:
    pid: int
    slot: int
    generation: int
    phase: Literal["booting", "ready", "draining"] = "booting"
    exit: ExitStatus | None = None
    """It has ended; nobody has been told."""
    answered: bool = False
    """The zygote has said its pid."""
    abandoned: bool = False
    """The supervisor closed its link: it ends by itself, and nobody will ask for its status."""
    told: list[str] = field(default_factory=list)
    asked: bool = False
    """For a sign of life."""


@dataclass
class ZygoteProcess:
    generation: int
    loaded: bool = False
    opening: bool = False
    """It waits for its queue to be opened."""
    told: list[str] = field(default_factory=list)


@dataclass
class World:
    settings: Settings
    now: float = 1000.0
    jitter: float = 0.5
    pool: Pool = field(init=False)
    zygotes: dict[int, ZygoteProcess] = field(default_factory=dict)
    asked: list[tuple[int, int]] = field(default_factory=list)
    """Forks asked for and not answered: slot, generation."""
    asked_of: dict[tuple[int, int], int] = field(default_factory=dict)
    """Which zygote was."""
    seats: dict[tuple[int, int], int] = field(default_factory=dict)
    processes: dict[int, Process] = field(default_factory=dict)
    broken_code: int | None = None
    """Workers of this reload never get READY."""
    slow_slot: int | None = None
    """Who has this slot goes on booting."""
    listens: bool = False
    """The code that lies there needs a listener."""
    joins: bool = False
    """That listener gives the workers their tasks itself, without shared memory."""
    said: dict[int, bool] = field(default_factory=dict)
    """Of each zygote, whether it said so."""
    exit_code: int | None = None
    history: list[m.Event] = field(default_factory=list)
    reports: list[m.Report] = field(default_factory=list)
    reloads: list[m.ReloadEnded] = field(default_factory=list)
    next_pid: int = 100
    free_pids: list[int] = field(default_factory=list)
    """Of processes that were reaped: the kernel may use them again."""

    def __post_init__(self) -> None:
        self.pool = new_pool(self.settings)

    @property
    def zygote(self) -> int | None:
        """The generation of the one that forks, if its process exists."""
        generation = self.pool.zygote.generation
        return generation if generation in self.zygotes else None

    @property
    def zygote_told(self) -> list[str]:
        return self.zygotes[self.pool.zygote.generation].told

    def post(self, event: m.Event) -> None:
        """As the shell does: effects in order, the events they cause afterwards."""
        pending = [event]
        while pending:
            event = pending.pop(0)
            self.history.append(event)
            before = self.pool
            self.pool, effects = step(before, event, self.now)
            assert step(before, event, self.now) == (self.pool, effects), "not a function"
            for effect in effects:
                need = before.ends_need_listener or self.pool.ends_need_listener
                pending += self._carry_out(effect, ending=before.stopping and not need)

    def _carry_out(self, effect: m.Effect, *, ending: bool) -> list[m.Event]:  # noqa: PLR0912
        """ending: nothing is started any more."""
        match effect:
            case m.StartZygote():
                assert not ending
                assert effect.generation not in self.zygotes
                working = [one for one in self.zygotes.values() if not one.told]
                assert len(working) < 2, "more than two zygotes"
                self.zygotes[effect.generation] = ZygoteProcess(effect.generation)
            case m.EndZygote() if effect.generation in self.zygotes:
                self.zygotes[effect.generation].told.append("end")
            case m.KillZygote() if effect.generation in self.zygotes:
                self.zygotes[effect.generation].told.append("kill")
            case m.OpenQueue():
                self.zygotes[effect.generation].opening = True
            case m.Fork():
                assert not ending, "a fork while stopping"
                assert effect.slot == LISTENER or self.pool.stop is None, "a worker while stopping"
                self._ask(effect)
            case m.SendDrain():
                if effect.slot == LISTENER and self.pool.stop is StopLevel.DRAIN:
                    assert not self.pool.crew, "the listener leaves before the workers"
                self.running(effect.slot, effect.generation).told.append("drain")
            case m.SendStop():
                self.running(effect.slot, effect.generation).told.append("stop")
            case m.KillWorker():
                self.running(effect.slot, effect.generation).told.append("kill")
            case m.Ask():
                self.running(effect.slot, effect.generation).asked = True
            case m.DumpStacks() | m.SetAside() | m.CallBack():
                self.running(effect.slot, effect.generation)
            case m.KillStray():
                process = self.processes.get(effect.pid)
                if process is not None:
                    process.told.append("kill")
            case m.AbandonFork():
                for process in self.processes.values():
                    if (process.slot, process.generation) == (effect.slot, effect.generation):
                        process.abandoned = True
            case m.Bury():
                return [m.Buried(effect.slot, effect.generation, self.jitter)]
            case m.Report():
                self.reports.append(effect)
            case m.ReloadEnded():
                self.reloads.append(effect)
            case m.Finish():
                assert self.exit_code is None, "ended twice"
                self.exit_code = effect.exit_code
        return []

    def _ask(self, effect: m.Fork) -> None:
        assert self.zygotes[effect.zygote].loaded
        key = effect.slot, effect.generation
        assert key not in self.seats, "a generation was used twice"
        taken = {
            self.seats[one.slot, one.generation]
            for one in self.processes.values()
            if not one.abandoned and "kill" not in one.told
        }
        taken |= {self.seats[asked] for asked in self.asked}
        assert effect.seat not in taken, "two workers in one seat"
        self.asked.append(key)
        self.asked_of[key] = effect.zygote
        self.seats[key] = effect.seat

    def running(self, slot: int, generation: int) -> Process:
        """The process that the shell would find in its books for an effect."""
        found = [
            process
            for process in self.processes.values()
            if (process.slot, process.generation) == (slot, generation) and process.answered
        ]
        assert len(found) == 1, f"no process for slot {slot} generation {generation}"
        return found[0]

    # --- what the world does ---------------------------------------------------------------------

    def load(
        self, generation: int | None = None, *, listens: bool | None = None, **said: object
    ) -> None:
        zygote = self.zygotes[generation or self.pool.zygote.generation]
        zygote.loaded = True
        needed = self.said[zygote.generation] = self.listens if listens is None else listens
        transport = (JOINING if self.joins else LISTENING) if needed else TRANSPORT
        self.post(m.ZygoteLoaded(zygote.generation, transport, **said))  # type: ignore[arg-type]

    def open_queue(self, generation: int | None = None) -> None:
        zygote = self.zygotes[generation or self.pool.zygote.generation]
        assert zygote.opening
        zygote.opening = False
        self.post(m.QueueOpened(zygote.generation))

    def zygote_exits(self, status: ExitStatus, generation: int | None = None) -> None:
        """With it, its answers are lost; a worker it forked may exist all the same."""
        zygote = self.zygotes.pop(generation or self.pool.zygote.generation)
        self.asked = [key for key in self.asked if self.asked_of[key] != zygote.generation]
        self.post(m.ZygoteExited(zygote.generation, status, self.jitter))

    def fork(self, slot: int, generation: int, *, reuse_pid: bool = False) -> Process:
        """The process comes to be; that the zygote says so is a step of its own."""
        self.next_pid += 1
        pid = self.free_pids.pop() if reuse_pid and self.free_pids else self.next_pid
        process = Process(pid, slot, generation)
        self.processes[process.pid] = process
        return process

    def answer_fork(self, process: Process) -> None:
        self.asked.remove((process.slot, process.generation))
        process.answered = True
        self.post(m.Forked(process.slot, process.generation, process.pid, self.jitter))

    def fail_fork(self, slot: int, generation: int) -> None:
        self.asked.remove((slot, generation))
        self.post(m.ForkFailed(slot, generation, "EAGAIN", self.jitter))

    def report_exit(self, process: Process, *, worked: bool = False) -> None:
        """The pidfd of a process that has ended becomes readable."""
        assert process.exit is not None
        del self.processes[process.pid]
        self.free_pids.append(process.pid)
        if process.answered and not process.abandoned:
            self.post(m.Exited(process.slot, process.generation, process.pid, process.exit, worked))


# --- playing it -----------------------------------------------------------------------------------


def is_up(world: World) -> bool:
    """As many as there are to be, and nothing beside them."""
    workers = world.pool.workers
    slots = [*([LISTENER] if world.pool.zygote.listens else []), *range(world.pool.target)]
    return (
        [worker.slot for worker in workers] == slots
        and all(worker.state is WorkerState.READY for worker in workers)
        and world.pool.reload is None
        and not world.pool.reload_again
    )


def has_ended(world: World) -> bool:
    return world.exit_code is not None


def is_at_rest(world: World) -> bool:
    return has_ended(world) or is_up(world)


def play(
    world: World, *, stubborn: bool, until: Callable[[World], bool], turns: int = TURNS
) -> None:
    """From here on everything is healthy, except that stubborn workers obey only SIGKILL."""
    for _ in range(turns):
        if until(world):
            return
        if not (_zygotes_move(world) or _forks(world) or _workers_move(world, stubborn=stubborn)):
            deadline = world.pool.next_deadline
            assert deadline is not None, f"nothing will ever happen again: {world.pool}"
            world.now = max(world.now, deadline)
            world.post(m.Tick())


def _zygotes_move(world: World) -> bool:
    for zygote in list(world.zygotes.values()):
        if zygote.told:
            world.zygote_exits(ExitStatus(code=0), zygote.generation)
        elif not zygote.loaded:
            now = world.pool.zygote
            again = now.generation == zygote.generation and now.transport is not None
            # Other code than before would be refused without a reload, again and again.
            world.load(zygote.generation, listens=now.listens if again else None)
        elif zygote.opening:
            world.open_queue(zygote.generation)
        else:
            continue
        return True
    return False


def _forks(world: World) -> bool:
    if world.asked:
        world.answer_fork(world.fork(*world.asked[0]))
        return True
    return False


def _workers_move(world: World, *, stubborn: bool) -> bool:
    for process in list(world.processes.values()):
        obeys = {"kill"} if stubborn else {"kill", "stop", "drain"}
        if process.exit is None and (process.abandoned or obeys & set(process.told)):
            process.exit = KILLED if "kill" in process.told else ExitStatus(code=0)
        if process.exit is not None:
            world.report_exit(process)
            return True
        worker = world.pool.find(process.slot, process.generation)
        slow = worker is not None and worker.state is WorkerState.BOOTING
        if worker is None or stubborn or (slow and worker.slot == world.slow_slot):
            continue
        if process.asked:
            process.asked = False
            world.post(m.Answered(process.slot, process.generation))
            return True
        if worker.state is WorkerState.BOOTING:
            if worker.code != world.broken_code:
                world.post(m.Ready(process.slot, process.generation))
            else:
                error = m.BootFailed(process.slot, process.generation, "broken", "Traceback")
                world.post(error)
                process.exit = ExitStatus(code=3)
            return True
        if worker.state in {WorkerState.DRAINING, WorkerState.STOPPING}:
            process.exit = ExitStatus(code=0)
            return True
    return False


def running_world(**changes: Any) -> World:
    world = World(Settings(**{"workers": 2, **changes}))
    world.post(m.Started())
    play(world, stubborn=False, until=is_up)
    return world


def next_deadline(world: World) -> None:
    """Time passes until something is due."""
    deadline = world.pool.next_deadline
    assert deadline is not None
    world.now = deadline
    world.post(m.Tick())


def crash(world: World, *, worked: bool = False) -> None:
    """The oldest worker is killed, and that is seen."""
    process = next(iter(world.processes.values()))
    process.exit = KILLED
    world.report_exit(process, worked=worked)


def happenings(world: World) -> list[m.Happening]:
    return [report.what for report in world.reports]


def in_quarantine() -> World:
    world = running_world(workers=1)
    while world.pool.workers[0].state is not WorkerState.QUARANTINED:
        crash(world, worked=True)
        if world.asked:
            play(world, stubborn=False, until=is_up)
    return world
