"""A storm over a running supervisor: what a seed says happens to it, and the load meanwhile.

The seed decides what is done when; which process it hits, and where that is at the moment, decides
the machine. So a seed that failed once fails often, not always.

An action that lasts, such as a stopped process, is undone after its time, while the storm goes on.
"""

import itertools
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.e2e.conftest import PATIENCE, Supervisor

from taskiq_supervise.supervisor.client import Client

WORKERS = 4
MOST_WORKERS = 6
PAUSE = 0.25
"""Seconds between two actions, at most."""
SPELL = 0.8
"""Seconds that a lasting action lasts, at most."""
MOST_TASKS = 1_000_000
"""Of one client process."""

BROKEN = (
    "def broken(:\n",
    "raise RuntimeError('broken release')\n",
    "import os\nos._exit(7)\n",
    "{startup}    raise RuntimeError('broken release')\n",
    "{startup}    os.kill(os.getpid(), signal.SIGKILL)\n",
)
"""What new code may look like that must not get through."""

_RELEASE = """import os, signal
from app import broker
from taskiq import TaskiqEvents

@broker.task
async def version():
    return {number}

"""
_STARTUP = "@broker.on_event(TaskiqEvents.WORKER_STARTUP)\nasync def start(state):\n"


class Release:
    """The workers' `release.py`, whose task `version` says which one it is."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "release.py"
        self.number = 0
        self.publish()

    def publish(self, broken: str = "") -> None:
        self.number += 1
        text = _RELEASE.format(number=self.number) + broken.format(startup=_STARTUP)
        # Python takes a cached module for the new one if size and second are the same.
        new = self._path.with_suffix(".new")
        new.write_text(f"{text}#{'.' * self.number}\n")
        new.rename(self._path)  # nobody imports half of it


@dataclass(order=True)
class Spell:
    """What is to be undone, and when (monotonic seconds)."""

    until: float
    undo: Callable[[], None] = field(compare=False)


class Storm:
    """`blow` until the time is over; then `calm`, and the pool has to be whole again."""

    loaded = "queue 'chaos'"
    """What a supervisor says once it has loaded the application."""

    def __init__(
        self, start: Callable[[], Supervisor], folder: Path, seed: str, *, kills: bool
    ) -> None:
        """start: another supervisor, for the one that was killed."""
        self.done: list[str] = []
        """What was done, for the message of a failure."""
        self.terminated: set[int] = set()
        """Workers that were sent a SIGTERM."""
        self.killed: set[int] = set()
        """Workers that did not end by themselves, or whose supervisor was killed."""
        self.loads: list[Load] = []
        """Who sends tasks meanwhile."""
        self.release = Release(folder)
        self.supervisor = start().wait_ready()
        self._start = start
        self._chance = random.Random(seed)
        self._no_forks = folder / "no-forks"
        self._client = Client("app-broker")
        self._spells: list[Spell] = []
        self._killed: list[psutil.Process] = []
        self._cold = False
        self._began = time.monotonic()
        self._actions: dict[Callable[[], None], int] = {
            self._stop_worker: 10,
            self._stop_zygote: 4,
            self._stop_supervisor: 2,
            self._terminate_worker: 8,
            self._kill_zygote: 2,
            self._reload: 6,
            self._reload_broken: 4,
            self._scale: 6,
            self._scale_by_signal: 4,
            self._refuse_forks: 3,
            self._starve_zygote: 2,
            self._starve_supervisor: 3,
        }
        self._not_while_cold = {
            self._kill_zygote,
            self._reload_broken,
            self._starve_zygote,
            self._starve_supervisor,
        }
        if kills:
            self._actions |= {self._kill_worker: 16, self._kill_supervisor: 2}

    def blow(self, seconds: float) -> None:
        self._began = time.monotonic()
        until = self._began + seconds
        while time.monotonic() < until:
            self._undo()
            (action,) = self._chance.choices([*self._actions], [*self._actions.values()])
            if not (action in self._not_while_cold and self._is_cold()):
                action()
            assert self.supervisor.process.poll() is None, "the supervisor has ended"
            time.sleep(self._chance.uniform(0, PAUSE))

    def calm(self) -> None:
        self._undo(all_of_them=True)
        self.release.publish()
        self._note("calm")
        self._client.scale(workers=WORKERS)

    # --- workers ---------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        if worker := self._pick("worker"):
            self._note(f"kill worker {worker.pid}")
            self.killed.add(worker.pid)
            self._killed.append(worker)
            self._signal(worker, signal.SIGKILL)

    def _stop_worker(self) -> None:
        if worker := self._pick("worker"):
            self._note(f"stop worker {worker.pid}")
            self._stop_for_a_while(worker)

    def _terminate_worker(self) -> None:
        """Once each: the second time it would not wait for its tasks."""
        worker = self._pick("worker")
        if worker is not None and worker.pid not in self.terminated:
            self._note(f"terminate worker {worker.pid}")
            self.terminated.add(worker.pid)
            self._signal(worker, signal.SIGTERM)

    # --- the zygote and the supervisor -----------------------------------------------------------

    def _kill_zygote(self) -> None:
        if zygote := self._pick("zygote"):
            self._note(f"kill zygote {zygote.pid}")
            self._signal(zygote, signal.SIGKILL)

    def _stop_zygote(self) -> None:
        if zygote := self._pick("zygote"):
            self._note(f"stop zygote {zygote.pid}")
            self._stop_for_a_while(zygote)

    def _stop_supervisor(self) -> None:
        self._note("stop supervisor")
        self.supervisor.process.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(0, SPELL))
        self.supervisor.process.send_signal(signal.SIGCONT)

    def _kill_supervisor(self) -> None:
        # A supervisor that is gone cannot take down what those left behind who died just before it.
        self.release.publish()
        self._undo(all_of_them=True)
        psutil.wait_procs(self._killed, timeout=PATIENCE)
        self._note(f"kill supervisor {self.supervisor.pid}")
        self.supervisor.process.send_signal(signal.SIGSTOP)  # no worker comes any more
        self.killed |= {worker.pid for worker in self._all("worker")}
        self.supervisor.process.kill()
        self.supervisor.wait()
        self._start_again()

    def _start_again(self) -> None:
        self.supervisor = self._start()
        # Before this line a SIGHUP would end it.
        self.supervisor.log.wait_for(r"taskiq-supervise \S+ pid=\d+: ")
        self._cold = True

    def _is_cold(self) -> bool:
        """It has not loaded the application yet: should that fail, it ends, as is right."""
        self._cold = self._cold and self.loaded not in self.supervisor.log.text
        return self._cold

    # --- what operators do -----------------------------------------------------------------------

    def _reload(self) -> None:
        self.release.publish()
        self._note(f"reload release {self.release.number}")
        self.supervisor.process.send_signal(signal.SIGHUP)

    def _reload_broken(self) -> None:
        broken = self._chance.randrange(len(BROKEN))
        self.release.publish(BROKEN[broken])
        self._note(f"reload release {self.release.number}, broken in way {broken}")
        self.supervisor.process.send_signal(signal.SIGHUP)

    def _scale(self) -> None:
        workers = self._chance.randint(1, MOST_WORKERS)
        if any(spell.undo == self._feed for spell in self._spells):
            return  # without a descriptor for us it cannot answer, and we would wait for it
        self._note(f"scale to {workers}")
        self._client.scale(workers=workers)

    def _scale_by_signal(self) -> None:
        number = self._chance.choice([signal.SIGTTIN, signal.SIGTTOU])
        self._note(number.name)
        self.supervisor.process.send_signal(number)

    # --- nothing is to be had any more -----------------------------------------------------------

    def _refuse_forks(self) -> None:
        self._note("refuse forks")
        self._no_forks.touch()
        self._for_a_while(lambda: self._no_forks.unlink(missing_ok=True))

    def _starve_zygote(self) -> None:
        zygote = self._pick("zygote")
        if zygote is not None:
            self._note(f"no descriptors for zygote {zygote.pid}")
            self._starve(zygote)

    def _starve_supervisor(self) -> None:
        self._note("no descriptors for the supervisor")
        self._starve(psutil.Process(self.supervisor.pid))

    def _starve(self, process: psutil.Process) -> None:
        """It gets no descriptor beyond those it has."""
        with suppress(psutil.NoSuchProcess):
            soft, hard = process.rlimit(resource.RLIMIT_NOFILE)
            process.rlimit(resource.RLIMIT_NOFILE, (min(process.num_fds(), soft), hard))
        self._for_a_while(self._feed)

    def _feed(self) -> None:
        """All of them: who was started meanwhile has the limit of its parent."""
        supervisor = psutil.Process(self.supervisor.pid)
        for process in (supervisor, *supervisor.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                _, hard = process.rlimit(resource.RLIMIT_NOFILE)
                process.rlimit(resource.RLIMIT_NOFILE, (hard, hard))

    # --- how -------------------------------------------------------------------------------------

    def _note(self, what: str) -> None:
        self.done.append(f"{time.monotonic() - self._began:7.3f} {what}")

    def _pick(self, role: str) -> psutil.Process | None:
        found = self._all(role)
        return self._chance.choice(found) if found else None

    def _all(self, role: str) -> list[psutil.Process]:
        """Those that say of themselves that they are one."""
        found = []
        for process in psutil.Process(self.supervisor.pid).children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if f"taskiq-supervise: {role}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @staticmethod
    def _signal(process: psutil.Process, number: signal.Signals) -> None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)

    def _stop_for_a_while(self, process: psutil.Process) -> None:
        self._signal(process, signal.SIGSTOP)
        self._for_a_while(lambda: self._signal(process, signal.SIGCONT))

    def _for_a_while(self, undo: Callable[[], None]) -> None:
        until = time.monotonic() + self._chance.uniform(0, SPELL)
        self._spells.append(Spell(until, undo))

    def _undo(self, *, all_of_them: bool = False) -> None:
        """What is over, by now or at once."""
        self._spells.sort()
        now = time.monotonic()
        while self._spells and (all_of_them or self._spells[0].until <= now):
            self._spells.pop(0).undo()


@contextmanager
def starving(pid: int, spare: int) -> Iterator[None]:
    """A process that has so many descriptors left, and no more."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = (number for number in itertools.count() if number not in taken)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = next(itertools.islice(free, spare, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


# --- load -----------------------------------------------------------------------------------------


class Load:
    """A client process that sends tasks until it is told to end."""

    def __init__(
        self, folder: Path, seed: str, patience: float, kinds: list[str], first: int = 0
    ) -> None:
        """patience: its, in seconds, for one result. first: the number of its first task."""
        self.report = folder / f"report-{first}"
        self._arguments = (seed, patience, kinds)
        self._first = first
        script = Path(__file__).with_name("chaos_client.py")
        self.process = subprocess.Popen(
            [sys.executable, script, self.report, seed, str(patience), ",".join(kinds), str(first)],
            stdin=subprocess.PIPE,
        )

    def end(self) -> None:
        """It ends by itself once it has all results."""
        assert self.process.poll() is None, "the client has failed"
        assert self.process.stdin is not None
        self.process.stdin.close()
        _, patience, _ = self._arguments
        assert self.process.wait(patience + PATIENCE) == 0, "the client has failed"

    def successor(self) -> "Load":
        """Kills it. The next one, whose tasks have other numbers."""
        self.kill()
        return Load(self.report.parent, *self._arguments, self._first + MOST_TASKS)

    def kill(self) -> None:
        """For the end of a test, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
