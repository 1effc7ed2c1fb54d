"""The shell around the core of one pool: what happens becomes events, effects become deeds.

Everything that happens (a pidfd, a link, a timer, a zygote) becomes `post(event)`; events that
effects give rise to wait their turn, so that the core always sees one after the other. Exactly one
timer exists for the core's next deadline, and none when there is no deadline: an idle supervisor
sleeps in epoll.
"""

import asyncio
import os
import random
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from taskiq_supervise.ipc import Board, DeathCause, RunningTask
from taskiq_supervise.supervisor import processes
from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import (
    LISTENER,
    ExitStatus,
    Pool,
    Reason,
    Worker,
    new_pool,
)
from taskiq_supervise.supervisor.core.policy import lower
from taskiq_supervise.supervisor.core.step import step
from taskiq_supervise.supervisor.core.transport import Transport
from taskiq_supervise.supervisor.custody import Custody, CustodyRefused
from taskiq_supervise.supervisor.journal import Journal
from taskiq_supervise.supervisor.oom import OomMeter
from taskiq_supervise.supervisor.plan import PoolPlan
from taskiq_supervise.supervisor.runtime import Instance
from taskiq_supervise.supervisor.status import Tallies
from taskiq_supervise.supervisor.worker_process import WorkerProcess
from taskiq_supervise.supervisor.zygote import ZygoteProcess
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.journald import is_stderr_the_journal
from taskiq_supervise.worker.log_handler import say_error

# In-flight entries per worker on the board when the number of tasks is not limited.
_UNLIMITED_TASKS = 1024
# The board grows by so many seats at a time; a reload needs one beyond the pool's size at first.
_SPARE_SEATS = 2
_LOOK_AGAIN = 0.1
# A worker of somebody else's broker has so many seconds to say itself that a task ran out of time.
_OVERDUE_GRACE = 0.25


class PoolShell:
    """One pool, from the first event to its exit status. Lives on the supervisor's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        plan: PoolPlan,
        instance: Instance,
        children: processes.Children,
        oom: OomMeter,
        on_failure: Callable[[BaseException], None],
        descriptors: int,
        admit: Callable[[int], None] | None = None,
    ) -> None:
        """descriptors: the soft limit that workers get; 0: that of this process. admit: puts a
        process, with all that it will fork, where workers belong."""
        self.plan = plan
        self.pool: Pool = new_pool(plan.settings)
        self.custody = Custody()
        self.journal = Journal(plan.name)
        self.finished: asyncio.Future[int] = loop.create_future()
        self.on_ready: Callable[[], None] | None = None
        """Called when a worker has become READY."""
        self.on_change: Callable[[], None] | None = None
        """Called after each event."""
        self.on_reload_end: Callable[[str | None], None] | None = None
        """Called with why it was rolled back, if it was."""
        self.refusal: str | None = None
        """Why it did not begin, in one line."""
        self._loop = loop
        self._instance = instance
        self._children = children
        self._oom = oom
        self._on_failure = on_failure
        self._descriptors = descriptors
        self._admit = admit
        self._events: deque[m.Event] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._workers: dict[tuple[int, int], WorkerProcess] = {}
        self._zygotes: dict[int, ZygoteProcess] = {}
        self._opening: set[asyncio.Task[None]] = set()
        """Queues and endpoints that are taken, or let go."""
        self._last_reload = m.ReloadEnded(0, None, None)
        self._reloads: list[tuple[int, asyncio.Future[m.ReloadEnded]]] = []
        self.board = Board.create(
            instance.board(plan.name),
            plan.settings.workers + _SPARE_SEATS,
            _board_entries(plan.config),
        )
        self.tallies = Tallies(self.board)

    def post(self, event: m.Event) -> None:
        """Let the core answer an event, and carry out its answer."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._events:
                self.pool, effects = step(self.pool, self._events.popleft(), self._loop.time())
                for effect in effects:
                    self._carry_out(effect)
        except Exception as error:
            self._on_failure(error)
        finally:
            self._stepping = False
        self._set_timer()
        if self.on_change is not None:
            self.on_change()

    @property
    def fork_outstanding(self) -> bool:
        return any(worker.child is None for worker in self._workers.values())

    def reload(self) -> Awaitable[m.ReloadEnded]:
        """Ask for one; the end of it, or of the one that follows the present one."""
        ended: asyncio.Future[m.ReloadEnded] = self._loop.create_future()
        self.post(m.ReloadRequested())
        number = self.pool.reloads + self.pool.reload_again
        if self.finished.done() or self.pool.stopping:
            ended.set_result(m.ReloadEnded(number, "the supervisor stops", None))
        elif self.pool.reload is None and not self.pool.reload_again:
            ended.set_result(self._last_reload)
        else:
            self._reloads.append((number, ended))
        return ended

    def dump_stacks(self) -> None:
        """Those of all workers, into the log."""
        for worker in self.pool.workers:
            self._dump_stacks(worker.slot, worker.generation)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for key in list(self._workers):
            self._forget(*key)
        await self.custody.close()
        self.board.close()

    def _set_timer(self) -> None:
        deadline = self.pool.next_deadline
        if self._timer is not None:
            if self._timer.when() == deadline and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None and not self.finished.done():
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.post(m.Tick())

    def _carry_out(self, effect: m.Effect) -> None:  # noqa: PLR0912 - one branch per effect
        match effect:
            case m.Report(what=m.Happening.REFUSED):
                self._refuse(effect)
            case m.Report():
                self.journal.write(effect)
            case m.Fork():
                self._fork(effect)
            case m.SendDrain():
                self._send(effect.slot, effect.generation, "drain")
            case m.SendStop():
                self._send(effect.slot, effect.generation, "stop")
            case m.KillWorker():
                self._kill(effect)
            case m.DumpStacks():
                self._dump_stacks(effect.slot, effect.generation)
            case m.Ask():
                self._send(effect.slot, effect.generation, "answer")
            case m.SetAside() | m.CallBack():
                self._look_after_wakes(effect)
            case m.KillStray():
                self._children.kill_stray(effect.pid)
            case m.AbandonFork():
                self._forget(effect.slot, effect.generation)
            case m.Bury():
                # A look at the whole queue: meanwhile the zygote may be forking the successor,
                # which this answer asks for.
                self._loop.call_soon(self._bury, effect)
                self.post(m.Buried(effect.slot, effect.generation, jitter=random.random()))
            case m.StartZygote():
                self._start_zygote(effect)
            case m.OpenQueue():
                self._see_to(self._open_queue(effect))
            case m.EndZygote() if effect.generation in self._zygotes:
                self._zygotes[effect.generation].end()
            case m.KillZygote() if effect.generation in self._zygotes:
                self._zygotes[effect.generation].kill(dump=effect.dump)
            case m.ReloadEnded():
                self._end_reloads(effect)
                if self.on_reload_end is not None:
                    self.on_reload_end(effect.error)
            case m.Finish() if not self.finished.done():
                self._end_reloads(
                    m.ReloadEnded(self.pool.reloads + 1, "the supervisor stops", None)
                )
                self.finished.set_result(effect.exit_code)

    def _refuse(self, report: m.Report) -> None:
        """The last word of a start that failed: for whoever typed it, whatever the log's level."""
        self.refusal = self.journal.refusal(report)
        if report.traceback is None:
            say_error(f"taskiq-supervise: {self.refusal}")
            return
        app = self.plan.config.app
        self.refusal = f"{app} cannot be loaded: {report.detail}"
        say_error(
            f"taskiq-supervise: {app} cannot be loaded, it raised an exception\n"
            + report.traceback.rstrip("\n")
        )
        if is_stderr_the_journal(os.environ):
            # `systemctl status` shows the last lines, and those of a traceback may be many.
            say_error(f"taskiq-supervise: {self.refusal}")

    def _end_reloads(self, ended: m.ReloadEnded) -> None:
        self._last_reload = ended
        self._see_to(self._keep_what_is_used())
        waiting, self._reloads = self._reloads, []
        for number, future in waiting:
            if number > ended.number:
                self._reloads.append((number, future))
            elif not future.done():
                future.set_result(ended)

    # --- zygotes ---------------------------------------------------------------------------------

    def _start_zygote(self, effect: m.StartZygote) -> None:
        config = {**self.plan.config.to_dict(), "preload": effect.preload}
        try:
            self._zygotes[effect.generation] = ZygoteProcess(
                self._loop,
                self._children,
                effect.generation,
                config,
                self._zygote_said,
                self._descriptors,
                self._admit,
            )
        except OSError as error:
            self.post(m.ZygoteStuck(effect.generation, f"no process can be started: {error}"))
            self.post(m.ZygoteExited(effect.generation, ExitStatus(), jitter=random.random()))

    def _zygote_said(self, event: m.Event) -> None:
        """Answers to forks concern the books here before they concern the core."""
        match event:
            case m.Forked():
                self._adopt(event)
            case m.ForkFailed():
                self._forget(event.slot, event.generation)
            case m.ZygoteExited():
                self._zygotes.pop(event.generation, None)
        self.post(event)
        if isinstance(event, (m.Forked, m.ForkFailed, m.ZygoteExited)):
            self._children.sweep()  # an unknown zombie may have been waiting for this answer

    async def _open_queue(self, effect: m.OpenQueue) -> None:
        before = self.custody.transport
        try:
            await self.custody.open(effect.transport, self._instance.name, self.plan.max_deliveries)
        except CustodyRefused as error:
            self.post(m.QueueRefused(effect.generation, str(error), error.exit_code))
            return
        self._tell_what_was_opened(effect.transport, before)
        self.post(m.QueueOpened(effect.generation))
        zygotes = (self.pool.zygote, *self.pool.others)
        if effect.generation not in {zygote.generation for zygote in zygotes}:
            await self._keep_what_is_used()  # it was given up meanwhile

    def _tell_what_was_opened(self, now: Transport, before: Transport | None) -> None:
        counts = self.custody.stats()
        if counts is not None and before is None:
            self.journal.queue(now, counts)
        if now.listener is not None and (before is None or now.listener != before.listener):
            self.journal.listening(now.listener, self.pool.target)

    async def _keep_what_is_used(self) -> None:
        """Let go of a queue and of endpoints that only other code had a use for."""
        pool = self.pool
        if pool.reload is None and not pool.stopping and pool.zygote.transport is not None:
            await self.custody.keep(pool.zygote.transport)

    def _see_to(self, what: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(what)
        self._opening.add(task)
        task.add_done_callback(self._opening_done)

    def _opening_done(self, task: "asyncio.Task[None]") -> None:
        self._opening.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_failure(error)

    # --- workers ---------------------------------------------------------------------------------

    def _fork(self, effect: m.Fork) -> None:
        slot, generation = effect.slot, effect.generation
        worker = None
        try:
            if effect.seat >= self.board.seats:
                self.board.grow(effect.seat + _SPARE_SEATS)
            worker = WorkerProcess(
                self._loop,
                on_message=partial(self._hear, slot, generation),
                on_link_end=partial(self.journal.link_ended, slot, generation),
                on_due=partial(self._look_for_overdue, slot, generation),
                on_stacks=partial(self._hear_stacks, slot, generation),
            )
            descriptors = worker.hand_over()
        except OSError as error:  # out of descriptors, or of room for the board
            if worker is not None:
                worker.close()
            self.post(m.ForkFailed(slot, generation, str(error), random.random()))
            return
        self._workers[slot, generation] = worker
        settings = self.plan.settings
        max_tasks = settings.max_tasks
        if max_tasks is not None:
            drawn = random.random()
            max_tasks = max(1, round(lower(max_tasks, settings.recycle_jitter, drawn)))
        order = {
            "slot": slot,
            "generation": generation,
            "seat": effect.seat,
            "max_tasks": max_tasks,
            "board": str(self._instance.board(self.plan.name)),
            "instance": self._instance.name,
            "pool": self.plan.name,
            "guardian": self.custody.participant,
            "supervisor_pid": os.getpid(),
        }
        self._zygotes[effect.zygote].fork(order, descriptors)

    def _adopt(self, event: m.Forked) -> None:
        """The zygote's answer to a fork: from here on its process is ours."""
        worker = self._workers.get((event.slot, event.generation))
        if worker is not None and worker.child is None:
            worker.make_room()
            worker.adopted(
                self._children.adopt(
                    event.pid,
                    partial(self._exited, event.slot, event.generation, event.pid),
                    partial(self._stopped, event.slot, event.generation),
                )
            )

    def _send(self, slot: int, generation: int, operation: str) -> None:
        worker = self._workers.get((slot, generation))
        if worker is None or worker.child is None:
            return
        # One that closed its link still hears signals: the first SIGTERM drains, the second stops.
        if not worker.link.send({"op": operation}):
            worker.child.signal(signal.SIGTERM)

    def _hear(self, slot: int, generation: int, message: Mapping[str, Any]) -> None:
        match message:
            case {"event": "ready"}:
                self.post(m.Ready(slot, generation))
                if slot == LISTENER:
                    # Who was there before may have died before it had told all.
                    self._tell_listeners({"op": "settle"})
                if self.on_ready is not None:
                    self.on_ready()
            case {"event": "boot_failed", "message": str(text), **rest}:
                trace = rest.get("traceback")
                shown = trace if isinstance(trace, str) else None
                final = rest.get("kind") == "final"
                self.post(m.BootFailed(slot, generation, text, shown, final))
            case {"event": "answer"}:
                self.post(m.Answered(slot, generation))
            case {"event": "draining"}:
                self.post(m.Draining(slot, generation))
            case {"event": "drained"}:
                self.post(m.Drained(slot, generation))
            case {"event": "worn", "why": "tasks"}:
                self.post(m.Worn(slot, generation, "has run as many tasks as it may"))
            case _:
                self.journal.nonsense(slot, generation, message)

    def _exited(self, slot: int, generation: int, pid: int, status: ExitStatus) -> None:
        process = self._workers.get((slot, generation))
        if process is not None:
            process.link.read_rest()
        worker = self.pool.find(slot, generation)
        worked = worker is not None and self.tallies.close_generation(worker)
        self._forget(slot, generation)
        killed = status.signal == signal.SIGKILL
        oom = killed and self._oom.killed_since_last(self._loop.time())
        self.post(m.Exited(slot, generation, pid, status, worked, oom))

    def _stopped(self, slot: int, generation: int, stopped: bool) -> None:
        self.post(m.Stopped(slot, generation) if stopped else m.Continued(slot, generation))

    def _forget(self, slot: int, generation: int) -> None:
        worker = self._workers.get((slot, generation))
        if worker is not None:
            worker.close()  # which may deliver stacks, and they need a name
            del self._workers[slot, generation]

    def _bury(self, effect: m.Bury) -> None:
        cause = DeathCause(
            pid=effect.pid,
            worker=None if effect.slot == LISTENER else effect.slot,
            signal=effect.status.signal,
            exit_code=effect.status.code,
            oom=effect.reason is Reason.OOM,
            hung=effect.reason is Reason.HANG,
        )
        buried = self.custody.bury(effect.pid, cause)
        self.journal.burial(effect.slot, effect.generation, effect.pid, buried)
        self._tell_listeners(self.custody.obituary(effect.pid, cause))
        if buried.dead or buried.lost or buried.timed_out:
            self._tell_listeners({"op": "settle"})

    def _tell_listeners(self, message: Mapping[str, Any]) -> None:
        """One that leaves may still be the one who has the queue."""
        for (slot, _), process in self._workers.items():
            if slot == LISTENER and process.child is not None:
                process.link.send(message)

    # --- worker health ---------------------------------------------------------------------------

    def _kill(self, effect: m.KillWorker) -> None:
        process = self._workers.get((effect.slot, effect.generation))
        if process is None or process.child is None:
            return
        if not effect.blame:
            self.custody.explain(process.child.pid)
        process.kill(dump=effect.dump)

    def _dump_stacks(self, slot: int, generation: int) -> None:
        process = self._workers.get((slot, generation))
        if process is not None:
            process.ask_for_stacks()

    def _hear_stacks(self, slot: int, generation: int, text: str) -> None:
        process = self._workers.get((slot, generation))
        if process is not None and process.child is not None:
            self.journal.stacks(slot, generation, process.child.pid, text)

    def _look_after_wakes(self, effect: m.SetAside | m.CallBack) -> None:
        process = self._workers.get((effect.slot, effect.generation))
        if process is not None and process.child is not None:
            pid = process.child.pid
            if isinstance(effect, m.SetAside):
                self.custody.set_aside(pid)
            else:
                self.custody.call_back(pid)

    def _look_for_overdue(self, slot: int, generation: int, rang: bool) -> None:
        """Its timer rang, or we look again: some task of it may have run for too long."""
        worker = self.pool.find(slot, generation)
        process = self._workers.get((slot, generation))
        if worker is None or process is None or process.child is None:
            return
        grace = 0.0 if self.custody.has_queue else _OVERDUE_GRACE
        now = self._loop.time()
        deadlines = self._deadlines(worker, grace)
        pid = process.child.pid
        overdue = tuple(
            f"{task.task_name} {task.task_id} ({now - task.started:.1f} s)"
            for at, task in deadlines
            if at <= now and self.custody.time_out(pid, task.task_id)
        )
        if overdue:
            self.post(m.Overdue(slot, generation, overdue))
        elif deadlines:
            # One that had just ended may still be on the board.
            soonest = min(at for at, _ in deadlines)
            process.look_again_at(max(soonest, now + _LOOK_AGAIN))
        elif rang:
            # It may have been written anew just when it was read.
            process.look_again_at(now + _LOOK_AGAIN)

    def _deadlines(self, worker: Worker, grace: float) -> list[tuple[float, RunningTask]]:
        view = self.tallies.view(worker)
        running = view.running if view is not None else ()
        return [(task.deadline + grace, task) for task in running if task.deadline is not None]


def _board_entries(config: WorkerConfig) -> int:
    limit = config.max_async_tasks
    return (limit if limit > 0 else _UNLIMITED_TASKS) + config.max_async_tasks_jitter
