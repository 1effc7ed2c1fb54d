"""A kernel, a zygote and workers made of dictionaries, for the core to supervise.

It carries out effects as the shell does, and remembers what exists, so that a test can ask whether
the core knows about all of it. What the processes do (boot, crash, answer late, not at all) is up
to the test that plays them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from taskiq_supervise.supervisor import messages as m
from taskiq_supervise.supervisor.core import step
from taskiq_supervise.supervisor.model import ExitStatus, Pool, Settings, WorkerState, new_pool

KILLED = ExitStatus(signal=9)
# Far more turns than a small pool needs from any state.
TURNS = 500
TRANSPORT = m.Transport("shm", "queue", "/dev/shm/x")


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


@dataclass
class World:
    settings: Settings
    now: float = 1000.0
    jitter: float = 0.5
    pool: Pool = field(init=False)
    zygote: int | None = None
    """Generation of the zygote process that exists."""
    zygote_loaded: bool = False
    zygote_told: list[str] = field(default_factory=list)
    opening: int | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)
    """Forks asked for and not answered: slot, generation."""
    processes: dict[int, Process] = field(default_factory=dict)
    exit_code: int | None = None
    history: list[m.Event] = field(default_factory=list)
    reports: list[m.Report] = field(default_factory=list)
    next_pid: int = 100

    def __post_init__(self) -> None:
        self.pool = new_pool(self.settings)

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
                pending += self._carry_out(effect, stopping=before.stopping)

    def _carry_out(self, effect: m.Effect, *, stopping: bool) -> list[m.Event]:  # noqa: PLR0912
        match effect:
            case m.StartZygote():
                assert not stopping
                assert self.zygote is None, "two zygotes"
                self.zygote, self.zygote_loaded = effect.generation, False
                self.zygote_told = []
            case m.EndZygote() if effect.generation == self.zygote:
                self.zygote_told.append("end")
            case m.KillZygote() if effect.generation == self.zygote:
                self.zygote_told.append("kill")
            case m.OpenQueue():
                assert effect.generation == self.zygote
                self.opening = effect.generation
            case m.Fork():
                assert not stopping, "a fork while stopping"
                assert self.zygote is not None
                assert self.zygote_loaded
                assert effect.slot not in self.slots_taken(), "two workers in one slot"
                self.asked.append((effect.slot, effect.generation))
            case m.SendDrain():
                self.running(effect.slot, effect.generation).told.append("drain")
            case m.SendStop():
                self.running(effect.slot, effect.generation).told.append("stop")
            case m.KillWorker():
                self.running(effect.slot, effect.generation).told.append("kill")
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
            case m.Finish():
                assert self.exit_code is None, "ended twice"
                self.exit_code = effect.exit_code
        return []

    def running(self, slot: int, generation: int) -> Process:
        """The process that the shell would find in its books for an effect."""
        found = [
            process
            for process in self.processes.values()
            if (process.slot, process.generation) == (slot, generation) and process.answered
        ]
        assert len(found) == 1, f"no process for slot {slot} generation {generation}"
        return found[0]

    def slots_taken(self) -> set[int]:
        alive = {one.slot for one in self.processes.values() if not one.abandoned}
        return alive | {slot for slot, _ in self.asked}

    # --- what the world does ---------------------------------------------------------------------

    def load(self, **said: object) -> None:
        assert self.zygote is not None
        self.zygote_loaded = True
        self.post(m.ZygoteLoaded(self.zygote, TRANSPORT, **said))  # type: ignore[arg-type]

    def open_queue(self) -> None:
        generation, self.opening = self.opening, None
        assert generation is not None
        self.post(m.QueueOpened(generation))

    def zygote_exits(self, status: ExitStatus) -> None:
        """With it, its answers are lost; a worker it forked may exist all the same."""
        generation, self.zygote, self.opening = self.zygote, None, None
        assert generation is not None
        self.asked.clear()
        self.post(m.ZygoteExited(generation, status, self.jitter))

    def fork(self, slot: int, generation: int) -> Process:
        """The process comes to be; that the zygote says so is a step of its own."""
        self.next_pid += 1
        process = Process(self.next_pid, slot, generation)
        self.processes[process.pid] = process
        return process

    def answer_fork(self, process: Process) -> None:
        self.asked.remove((process.slot, process.generation))
        process.answered = True
        self.post(m.Forked(process.slot, process.generation, process.pid))

    def fail_fork(self, slot: int, generation: int) -> None:
        self.asked.remove((slot, generation))
        self.post(m.ForkFailed(slot, generation, "EAGAIN", self.jitter))

    def report_exit(self, process: Process, *, worked: bool = False) -> None:
        """The pidfd of a process that has ended becomes readable."""
        assert process.exit is not None
        del self.processes[process.pid]
        if process.answered and not process.abandoned:
            self.post(m.Exited(process.slot, process.generation, process.pid, process.exit, worked))


# --- playing it -----------------------------------------------------------------------------------


def is_up(world: World) -> bool:
    return all(worker.state is WorkerState.READY for worker in world.pool.workers)


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
        if world.zygote is not None and world.zygote_told:
            world.zygote_exits(ExitStatus(code=0))
        elif world.zygote is not None and not world.zygote_loaded:
            world.load()
        elif world.opening is not None:
            world.open_queue()
        elif world.asked:
            world.answer_fork(world.fork(*world.asked[0]))
        elif not _workers_move(world, stubborn=stubborn):
            deadline = world.pool.next_deadline
            assert deadline is not None, f"nothing will ever happen again: {world.pool}"
            world.now = max(world.now, deadline)
            world.post(m.Tick())


def _workers_move(world: World, *, stubborn: bool) -> bool:
    for process in list(world.processes.values()):
        obeys = {"kill"} if stubborn else {"kill", "stop", "drain"}
        if process.exit is None and (process.abandoned or obeys & set(process.told)):
            process.exit = KILLED if "kill" in process.told else ExitStatus(code=0)
        worker = world.pool.workers[process.slot]
        if process.exit is not None:
            world.report_exit(process)
            return True
        if worker.state is WorkerState.BOOTING and not stubborn:
            world.post(m.Ready(process.slot, process.generation))
            return True
        if worker.state in {WorkerState.DRAINING, WorkerState.STOPPING} and not stubborn:
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
