"""A supervisor: its pools, and what concerns all of them.

One asyncio loop, one thread, no application code. The pools decide and act for themselves
(`pool_shell`); here are the signals, the control socket, the book of children, and the end: when
all pools have ended, or when one of them could not begin.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from setproctitle import setproctitle

import taskiq_supervise
from taskiq_supervise.supervisor import cgroup, journal, processes, signals
from taskiq_supervise.supervisor.control import CommandError, ControlServer
from taskiq_supervise.supervisor.core import messages as m
from taskiq_supervise.supervisor.core.model import EXIT_STOPPED, MAX_WORKERS, Settings
from taskiq_supervise.supervisor.http import HealthServer
from taskiq_supervise.supervisor.notify import Notifier
from taskiq_supervise.supervisor.oom import OomMeter, find_counter
from taskiq_supervise.supervisor.plan import Plan
from taskiq_supervise.supervisor.pool_shell import PoolShell
from taskiq_supervise.supervisor.rounds import Rounds
from taskiq_supervise.supervisor.runtime import Instance
from taskiq_supervise.supervisor.service_manager import Look, ServiceManager
from taskiq_supervise.supervisor.status import PoolView, pool_status, worker_statuses
from taskiq_supervise.supervisor.usage import Usage, UsageMeter
from taskiq_supervise.worker.log_style import identify

if TYPE_CHECKING:
    from taskiq_supervise.supervisor.watching import Watcher


class Supervisor:
    """One run, from the first event to the exit status. Lives on the loop that runs it."""

    def __init__(
        self,
        plan: Plan,
        instance: Instance,
        descriptors: int,
        notifier: Notifier,
        watchdog: float | None,
    ) -> None:
        """descriptors: the soft limit that workers get. watchdog: seconds between signs of life
        that the service manager asks for, if it does."""
        self._plan = plan
        self._instance = instance
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._codes: list[int] = []
        self._failed: asyncio.Future[int] = self._loop.create_future()
        self._children = processes.Children(self._loop, self._fork_outstanding)
        self._usage = UsageMeter()
        self._division = cgroup.divide()
        counter = None if self._division is None else self._division.oom_counter
        oom = OomMeter(counter or find_counter())
        admit = None if self._division is None else self._admit
        self._pools = [
            PoolShell(
                self._loop, pool, instance, self._children, oom, self._fail, descriptors, admit
            )
            for pool in plan.pools
        ]
        self._rounds = [Rounds(self._loop, pool) for pool in self._pools]
        self._control = ControlServer(
            {"status": self._status, "reload": self._reload, "scale": self._scale}
        )
        self._health = HealthServer(lambda: self._describe({}))
        self._service_manager = ServiceManager(
            self._loop,
            notifier,
            watchdog,
            lambda: [shell.pool for shell in self._pools],
            lambda: [_look(shell) for shell in self._pools],
        )
        self._from_terminal = signals.has_terminal()
        self._watcher: Watcher | None = None

    async def supervise(self) -> int:
        """Everything; returns the exit status."""
        processes.become_subreaper()
        apps = ", ".join(pool.plan.config.app for pool in self._pools)
        setproctitle(f"taskiq-supervise: supervisor [{apps}]")
        signals.install(self._loop, self._handlers())
        try:
            await self._control.start(self._instance.listen())
            workers = sum(pool.plan.settings.workers for pool in self._pools)
            journal.logger.info(
                "taskiq-supervise %s pid=%d: %s as %r, %d worker%s",
                taskiq_supervise.__version__,
                os.getpid(),
                apps,
                self._instance.name,
                workers,
                "" if workers == 1 else "s",
            )
            if self._plan.http is not None:
                await self._health.start(*self._plan.http)
                where = ", ".join(self._health.addresses)
                journal.logger.info("/healthz and /readyz are served on %s", where)
            if self._plan.watch is not None:
                from taskiq_supervise.supervisor.watching import Watcher  # it takes a thread

                watch = self._plan.watch
                self._watcher = Watcher(watch.folders, watch.gitignore, self._files_changed)
            self._service_manager.start()
            for pool in self._pools:
                tell_of_reload = partial(self._service_manager.reload_ended, pool.plan.name)
                pool.on_change, pool.on_reload_end = self._service_manager.changed, tell_of_reload
                pool.finished.add_done_callback(partial(self._pool_finished, pool))
                pool.post(m.Started())
            for rounds in self._rounds:
                rounds.start()
            code = await self._until_all_have_ended()
            self._end_what_is_left()
            refusals = (pool.refusal for pool in self._pools if pool.refusal is not None)
            self._service_manager.ended(code, next(refusals, f"ended with status {code}"))
            return code
        finally:
            await self._close()

    async def _until_all_have_ended(self) -> int:
        """The exit status is that of the first pool that ended for a reason of its own."""
        for pool in self._pools:
            await asyncio.wait([pool.finished, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
        return next((code for code in self._codes if code), EXIT_STOPPED)

    def _pool_finished(self, pool: PoolShell, finished: "asyncio.Future[int]") -> None:
        """One that could not begin takes the others with it: half a service is none."""
        if finished.cancelled():
            return
        self._codes.append(finished.result())
        for other in self._pools:
            if other is not pool and not other.pool.stopping:
                other.post(m.Terminate())

    def _fail(self, error: BaseException) -> None:
        """A supervisor that has lost its thread must not go on half-right: it ends.

        Its workers notice, give back what they have and end too.
        """
        if not self._failed.done():
            self._failed.set_exception(error)

    def _fork_outstanding(self) -> bool:
        return any(pool.fork_outstanding for pool in self._pools)

    # --- signals ---------------------------------------------------------------------------------

    def _handlers(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: partial(self._post, m.Terminate()),
            signal.SIGINT: partial(self._post, m.Terminate()),
            signal.SIGQUIT: partial(self._post, m.Quit()),
            signal.SIGHUP: self._hang_up,
            signal.SIGTTIN: partial(self._scale_by, 1, "SIGTTIN"),
            signal.SIGTTOU: partial(self._scale_by, -1, "SIGTTOU"),
            signal.SIGUSR1: self._dump_stacks,
            signal.SIGUSR2: self._refuse_to_re_execute,
            signal.SIGCHLD: self._children.sweep,
        }

    def _files_changed(self, paths: list[str]) -> None:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        journal.logger.info("%s%s changed", paths[0], more)
        self._post(m.ReloadRequested())

    def _post(self, event: m.PoolEvent) -> None:
        for pool in self._pools:
            pool.post(event)

    def _hang_up(self) -> None:
        if self._from_terminal and not signals.has_terminal():
            journal.logger.info("the terminal is gone")
            self._post(m.Terminate())
        else:
            self._post(m.ReloadRequested())

    def _scale_by(self, change: int, by: str) -> None:
        for pool in self._pools:
            target = pool.pool.target + change
            least, most = _bounds(pool.plan.settings)
            if least <= target <= most:
                pool.post(m.Scale(target, by))
            else:
                size = pool.pool.target
                stays = f"{by}: it stays at {size} worker{'' if size == 1 else 's'}, the limit"
                pool.journal.note(stays, logging.WARNING)

    def _dump_stacks(self) -> None:
        for pool in self._pools:
            pool.dump_stacks()

    def _refuse_to_re_execute(self) -> None:
        journal.logger.warning(
            "SIGUSR2 does nothing: to replace the supervisor itself, stop and start it; "
            "tasks wait meanwhile and nothing is lost"
        )

    # --- control ---------------------------------------------------------------------------------

    def _status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        there = {
            worker.pid: worker.started
            for shell in self._pools
            for worker in shell.pool.workers
            if worker.alive
        }
        return self._describe(self._usage.measure(there, self._loop.time()))

    def _describe(self, measured: Mapping[int, Usage]) -> dict[str, Any]:
        now = self._loop.time()
        views = [
            PoolView(
                shell.plan.name,
                shell.plan.config.app,
                shell.pool,
                shell.tallies,
                shell.custody.transport,
                shell.custody.stats(),
            )
            for shell in self._pools
        ]
        pools = [pool_status(view, measured, now) for view in views]
        return {
            "name": self._instance.name,
            "pid": os.getpid(),
            "version": taskiq_supervise.__version__,
            "uptime": round(now - self._started, 3),
            "state": _worst([pool["state"] for pool in pools]),
            "message": next((pool["message"] for pool in pools if pool["message"]), None),
            "pools": pools,
            "workers": [
                worker for view in views for worker in worker_statuses(view, measured, now)
            ],
        }

    async def _reload(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """ok: null when it is not waited for; it may just have begun."""
        shells = self._named(request.get("pool"))
        if any(shell.pool.stopping for shell in shells):
            raise CommandError("it is stopping; nothing is reloaded")
        waits = [shell.reload() for shell in shells]
        if not request.get("wait"):
            return {"ok": None, "message": None, "pools": []}
        results = [
            {
                "name": shell.plan.name,
                "ok": ended.error is None,
                "message": ended.error,
                "traceback": ended.traceback,
            }
            for shell, ended in zip(shells, await asyncio.gather(*waits), strict=True)
        ]
        broken = next((result for result in results if not result["ok"]), None)
        return {
            "ok": broken is None,
            "message": None if broken is None else broken["message"],
            "pools": results,
        }

    def _scale(self, request: Mapping[str, Any]) -> dict[str, Any]:
        shells = self._named(request.get("pool"))
        if len(shells) != 1:
            names = ", ".join(shell.plan.name for shell in shells)
            raise CommandError(f"say which pool: {names}")
        shell = shells[0]
        before = shell.pool.target
        workers = _number(request, before)
        least, most = _bounds(shell.plan.settings)
        if not least <= workers <= most:
            raise CommandError(f"{workers} workers are not between {least} and {most}")
        if shell.pool.broadcast is not None and workers > 1:
            why = shell.pool.broadcast
            raise CommandError(f"its broker serves one worker without a listener: {why}")
        if shell.pool.stopping:
            raise CommandError("it is stopping")
        shell.post(m.Scale(workers, "by command"))
        return {"pool": shell.plan.name, "before": before, "workers": shell.pool.target}

    def _named(self, name: Any) -> list[PoolShell]:
        if name is None:
            return self._pools
        found = [shell for shell in self._pools if shell.plan.name == name]
        if not found:
            known = ", ".join(repr(shell.plan.name) for shell in self._pools)
            raise CommandError(f"no pool {name!r}; there is {known}")
        return found

    async def _close(self) -> None:
        self._service_manager.close()
        await self._health.close()
        if self._watcher is not None:
            self._watcher.close()
        for rounds in self._rounds:
            rounds.stop()
        await self._control.close()
        for pool in self._pools:
            await pool.close()
        self._children.close()
        signals.remove(self._loop)

    # --- the control group -----------------------------------------------------------------------

    def _admit(self, pid: int) -> None:
        assert self._division is not None
        try:
            self._division.admit(pid)
        except OSError as error:
            journal.logger.warning("pid %d stays in the supervisor's control group: %s", pid, error)

    def _end_what_is_left(self) -> None:
        """What tasks have started, and what has left its process group, would outlive us."""
        left = [] if self._division is None else self._division.end_workers()
        if left:
            journal.logger.warning("killed what tasks have left behind: %s", ", ".join(left))


def supervise(
    plan: Plan, instance: Instance, notifier: Notifier, watchdog: float | None = None
) -> int:
    """Run a supervisor until it is done; returns its exit status.

    watchdog: seconds between signs of life to the service manager. Raises OSError, WatchError,
    CannotListen.
    """

    async def main() -> int:
        descriptors = processes.raise_descriptor_limit()
        supervisor = Supervisor(plan, instance, descriptors, notifier, watchdog)
        return await supervisor.supervise()

    identify(instance=instance.name)
    return asyncio.run(main())


def _look(shell: PoolShell) -> Look:
    pool, tallies, counts = shell.pool, shell.tallies, shell.custody.stats()
    views = [tallies.view(worker) for worker in pool.crew if worker.alive]
    running = sum(len(view.running) for view in views if view is not None)
    queued = None if counts is None else counts["ready"]
    return Look(pool, queued, running, tallies.total(pool.crew))


_PHASES = ("starting", "stopping", "running", "stopped")


def _worst(phases: list[str]) -> str:
    return min(phases, key=_PHASES.index)


def _bounds(settings: Settings) -> tuple[int, int]:
    return settings.min_workers or 1, settings.max_workers or MAX_WORKERS


def _number(request: Mapping[str, Any], before: int) -> int:
    workers, by = request.get("workers"), request.get("by")
    if isinstance(workers, int) and by is None:
        return workers
    if isinstance(by, int) and workers is None:
        return before + by
    raise CommandError("say how many: `workers`, or `by` how many more")
