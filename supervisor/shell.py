"""The shell around the core: turns what happens into events, and carries out what the core answers.

One asyncio loop, one thread, no application code. Everything that happens (a pidfd, a link, a
signal, a timer, the zygote) becomes `post(event)`; events that effects give rise to wait their
turn, so that the core always sees one after the other. Exactly one timer exists, for the core's
next deadline, and none when there is no deadline: an idle supervisor sleeps in epoll.
"""

import asyncio
import os
import random
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from setproctitle import setproctitle

import taskiq_supervise
from taskiq_supervise.ipc import Board
from taskiq_supervise.supervisor import journal, processes, signals, status
from taskiq_supervise.supervisor import messages as m
from taskiq_supervise.supervisor.control import ControlServer
from taskiq_supervise.supervisor.core import step
from taskiq_supervise.supervisor.custody import Custody, CustodyRefused
from taskiq_supervise.supervisor.links import Channel
from taskiq_supervise.supervisor.model import ExitStatus, Settings, new_pool
from taskiq_supervise.supervisor.runtime import Instance
from taskiq_supervise.supervisor.usage import UsageMeter
from taskiq_supervise.supervisor.zygote import ZygoteProcess
from taskiq_supervise.worker.config import WorkerConfig

# In-flight entries per worker on the board when the number of tasks is not limited.
_UNLIMITED_TASKS = 1024


@dataclass(frozen=True)
class Run:
    """What `taskiq-supervise run` was asked for."""

    config: WorkerConfig
    settings: Settings
    max_deliveries: int


@dataclass
class _WorkerProcess:
    """The handles of one worker: its process, and our end of its link."""

    generation: int
    link: Channel
    child: processes.Child | None = None


class Supervisor:
    """One run, from the first event to the exit status. Lives on the loop that runs it."""

    def __init__(self, run: Run, instance: Instance) -> None:
        self._run = run
        self._instance = instance
        self._loop = asyncio.get_running_loop()
        self._pool = new_pool(run.settings)
        self._events: deque[m.Event] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._finished: asyncio.Future[int] = self._loop.create_future()
        self._children = processes.Children(self._loop, self._fork_outstanding)
        self._workers: dict[int, _WorkerProcess] = {}
        self._zygote: ZygoteProcess | None = None
        self._custody = Custody()
        self._opening: asyncio.Task[None] | None = None
        self._usage = UsageMeter()
        self._board = Board.create(instance.board, run.settings.workers, _board_entries(run.config))
        self._tallies = status.Tallies(self._board)
        self._identity = status.Identity(
            name=instance.name,
            pid=os.getpid(),
            app=run.config.app,
            version=taskiq_supervise.__version__,
            started=self._loop.time(),
        )
        self._control = ControlServer({"status": self._status})

    async def supervise(self) -> int:
        """Everything; returns the exit status."""
        processes.become_subreaper()
        setproctitle(f"taskiq-supervise: supervisor [{self._run.config.app}]")
        signals.install(self._loop, self.post, self._children.sweep)
        try:
            await self._control.start(self._instance.listen())
            journal.logger.info(
                "taskiq-supervise %s pid=%d: %s as %r, %d worker%s",
                taskiq_supervise.__version__,
                os.getpid(),
                self._run.config.app,
                self._instance.name,
                self._run.settings.workers,
                "" if self._run.settings.workers == 1 else "s",
            )
            self.post(m.Started())
            return await self._finished
        finally:
            await self._close()

    def post(self, event: m.Event) -> None:
        """Let the core answer an event, and carry out its answer."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._events:
                self._pool, effects = step(self._pool, self._events.popleft(), self._loop.time())
                for effect in effects:
                    self._carry_out(effect)
        except Exception as error:
            self._fail(error)
        finally:
            self._stepping = False
        self._set_timer()

    def _fail(self, error: BaseException) -> None:
        """A supervisor that has lost its thread must not go on half-right: it ends.

        Its workers notice, give back what they have and end too.
        """
        if not self._finished.done():
            self._finished.set_exception(error)

    def _set_timer(self) -> None:
        deadline = self._pool.next_deadline
        if self._timer is not None:
            if self._timer.when() == deadline and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None and not self._finished.done():
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.post(m.Tick())

    def _carry_out(self, effect: m.Effect) -> None:  # noqa: PLR0912 - one branch per effect
        match effect:
            case m.Report(what=m.Happening.REFUSED):
                _refuse(effect, self._run.config.app)
            case m.Report():
                journal.write(effect)
            case m.Fork():
                self._fork(effect)
            case m.SendDrain():
                self._send(effect.slot, effect.generation, "drain")
            case m.SendStop():
                self._send(effect.slot, effect.generation, "stop")
            case m.KillWorker():
                worker = self._worker(effect.slot, effect.generation)
                if worker is not None and worker.child is not None:
                    self._custody.explain(worker.child.pid)
                    worker.child.kill_group()
            case m.KillStray():
                self._children.kill_stray(effect.pid)
            case m.AbandonFork():
                self._forget(effect.slot, effect.generation)
            case m.Bury():
                buried = self._custody.bury(effect.slot, effect.pid, effect.status)
                self.post(m.Buried(effect.slot, effect.generation, jitter=random.random()))
                # After the line that says how it died.
                self._loop.call_soon(
                    journal.burial, effect.slot, effect.generation, effect.pid, buried
                )
            case m.StartZygote():
                self._start_zygote(effect)
            case m.OpenQueue():
                self._opening = self._loop.create_task(self._open_queue(effect))
                self._opening.add_done_callback(self._opening_done)
            case m.EndZygote() if self._zygote is not None:
                self._zygote.end()
            case m.KillZygote() if self._zygote is not None:
                self._zygote.kill()
            case m.Finish() if not self._finished.done():
                self._finished.set_result(effect.exit_code)

    # --- zygote ----------------------------------------------------------------------------------

    def _start_zygote(self, effect: m.StartZygote) -> None:
        config = {**self._run.config.to_dict(), "preload": effect.preload}
        try:
            self._zygote = ZygoteProcess(
                self._loop, self._children, effect.generation, config, self._zygote_said
            )
        except OSError as error:
            self._zygote = None
            self.post(m.ZygoteStuck(effect.generation, f"no process can be started: {error}"))
            self.post(m.ZygoteExited(effect.generation, ExitStatus(), jitter=random.random()))

    def _zygote_said(self, event: m.Event) -> None:
        """Answers to forks concern the books here before they concern the core."""
        match event:
            case m.Forked():
                self._adopt(event)
            case m.ForkFailed():
                self._forget(event.slot, event.generation)
        self.post(event)
        if isinstance(event, (m.Forked, m.ForkFailed, m.ZygoteExited)):
            self._children.sweep()  # an unknown zombie may have been waiting for this answer

    async def _open_queue(self, effect: m.OpenQueue) -> None:
        try:
            await self._custody.open(
                effect.transport, self._instance.name, self._run.max_deliveries
            )
        except CustodyRefused as error:
            self.post(m.QueueRefused(effect.generation, str(error), error.exit_code))
        else:
            counts = self._custody.stats()
            if counts is not None and not self._pool.loaded:
                journal.logger.info(
                    "queue %r in %s: %d waiting, %d delayed, %d dead, room for %d",
                    effect.transport.name,
                    effect.transport.directory,
                    *(counts[key] for key in ("ready", "delayed", "dead", "capacity")),
                )
            self.post(m.QueueOpened(effect.generation))

    def _opening_done(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    def _fork_outstanding(self) -> bool:
        return any(worker.child is None for worker in self._workers.values())

    def _fork(self, effect: m.Fork) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:  # out of descriptors
            jitter = random.random()
            self.post(m.ForkFailed(effect.slot, effect.generation, str(error), jitter))
            return
        link = Channel(
            self._loop,
            ours,
            partial(self._hear, effect.slot, effect.generation),
            partial(self._link_ended, effect.slot, effect.generation),
        )
        self._workers[effect.slot] = _WorkerProcess(effect.generation, link)
        assert self._zygote is not None
        self._zygote.fork(
            {
                "slot": effect.slot,
                "generation": effect.generation,
                "board": str(self._instance.board),
                "instance": self._instance.name,
                "guardian": self._custody.participant,
                "supervisor_pid": os.getpid(),
            },
            theirs.detach(),
        )

    # --- workers ---------------------------------------------------------------------------------

    def _worker(self, slot: int, generation: int) -> _WorkerProcess | None:
        worker = self._workers.get(slot)
        return worker if worker is not None and worker.generation == generation else None

    def _adopt(self, event: m.Forked) -> None:
        """The zygote's answer to a fork: from here on its process is ours."""
        worker = self._worker(event.slot, event.generation)
        if worker is not None and worker.child is None:
            on_exit = partial(self._worker_exited, event.slot, event.generation, event.pid)
            worker.child = self._children.adopt(event.pid, on_exit)
            worker.link.start()

    def _send(self, slot: int, generation: int, operation: str) -> None:
        worker = self._worker(slot, generation)
        if worker is None or worker.child is None:
            return
        # One that closed its link still hears signals: the first SIGTERM drains, the second stops.
        if not worker.link.send({"op": operation}):
            worker.child.signal(signal.SIGTERM)

    def _hear(self, slot: int, generation: int, message: Mapping[str, Any]) -> None:
        match message:
            case {"event": "ready"}:
                self.post(m.Ready(slot, generation))
            case {"event": "boot_failed", "message": str(text)}:
                self.post(m.BootFailed(slot, generation, text))
            case {"event": "draining"}:
                self.post(m.Draining(slot, generation))
            case {"event": "drained"}:
                self.post(m.Drained(slot, generation))
            case _:
                journal.logger.warning("worker=%d gen=%d said %r", slot, generation, message)

    def _link_ended(self, slot: int, generation: int, reason: str | None) -> None:
        if reason is not None:
            journal.logger.warning("worker=%d gen=%d said %s", slot, generation, reason)

    def _worker_exited(self, slot: int, generation: int, pid: int, exit_: ExitStatus) -> None:
        worker = self._worker(slot, generation)
        if worker is not None:
            worker.link.read_rest()
        worked = self._tallies.close_generation(self._pool.workers[slot])
        self._forget(slot, generation)
        self.post(m.Exited(slot, generation, pid, exit_, worked))

    def _forget(self, slot: int, generation: int) -> None:
        worker = self._worker(slot, generation)
        if worker is not None:
            del self._workers[slot]
            worker.link.close()

    # --- the whole -------------------------------------------------------------------------------

    def _status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        now = self._loop.time()
        return status.snapshot(
            self._identity,
            self._pool,
            self._tallies,
            self._custody.transport,
            self._custody.stats(),
            lambda processes: self._usage.measure(processes, now),
            now,
        )

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._control.close()
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)
        for slot, worker in list(self._workers.items()):
            self._forget(slot, worker.generation)
        self._children.close()
        await self._custody.close()
        self._board.close()
        signals.remove(self._loop)


def supervise(run: Run, instance: Instance) -> int:
    """Run a supervisor until it is done; returns its exit status."""

    async def main() -> int:
        return await Supervisor(run, instance).supervise()

    return asyncio.run(main())


def _board_entries(config: WorkerConfig) -> int:
    limit = config.max_async_tasks
    return (limit if limit > 0 else _UNLIMITED_TASKS) + config.max_async_tasks_jitter


def _refuse(report: m.Report, app: str) -> None:
    """The last word of a start that failed: for whoever typed it, whatever the log's level."""
    if report.traceback is None:
        sys.stderr.write(f"taskiq-supervise: {report.detail}\n")
    else:
        sys.stderr.write(f"taskiq-supervise: {app} cannot be loaded, it raised an exception\n")
        sys.stderr.write(report.traceback.rstrip("\n") + "\n")
