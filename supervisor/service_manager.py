"""What the service manager is told of us: when we are up, what we do, that we still turn.

systemd waits for READY before it starts what comes after us, shows STATUS in `systemctl status`,
waits while we reload or drain, and replaces us when our loop does not turn any more. Under anything
else nothing of this runs.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from taskiq_supervise.supervisor.core.model import LISTENER, Pool, Worker, WorkerState
from taskiq_supervise.supervisor.notify import Notifier

SETTLE = 0.1
"""Seconds in which several changes become one message."""
REFRESH = 10.0
"""Seconds between two looks at the counters while nothing else happens."""
EXTENSION = 15.0
"""Seconds more that a stop gets each time; asked for every third of it."""


@dataclass(frozen=True, slots=True)
class Look:
    """One pool at one moment."""

    pool: Pool
    queued: int | None
    """Messages that wait; None: the queue is somebody else's."""
    running: int
    """Tasks."""
    done: int
    """Tasks, since the start."""


class ServiceManager:
    """Tells it what has changed. `changed` after every event, `close` at the end.

    The notifier stays open: it may have to say why we fail.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        notifier: Notifier,
        watchdog: float | None,
        pools: Callable[[], list[Pool]],
        look: Callable[[], list[Look]],
    ) -> None:
        """watchdog: seconds between signs of life, None: not wanted. look: costs more than `pools`,
        and is of the same pools."""
        self._loop = loop
        self._notifier = notifier
        self._watchdog = watchdog
        self._pools = pools
        self._look = look
        self._pace = Pace()
        self._ready = False
        self._reloading = False
        self._stopping = False
        self._said = ""
        self._broken: dict[str, str] = {}
        """Why the last reload of a pool was rolled back, by its name."""
        self._settling: asyncio.TimerHandle | None = None
        self._refreshing: asyncio.TimerHandle | None = None
        self._living: asyncio.TimerHandle | None = None
        self._extending: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if not self._notifier.heard:
            return
        self._refresh()
        if self._watchdog is not None:
            self._live(self._watchdog)

    def changed(self) -> None:
        """Something happened: a new state is said at once, since a reload by SIGHUP is over for
        systemd if nothing says that it has begun; the rest soon, with what else happens by then."""
        if not self._notifier.heard:
            return
        values = self._transition(self._pools())
        if values:
            self._say(values)
        elif self._settling is None:
            self._settling = self._loop.call_later(SETTLE, self._say)

    def reload_ended(self, pool: str, error: str | None) -> None:
        """pool: its name. error: why it was rolled back."""
        if error is None:
            self._broken.pop(pool, None)
        else:
            self._broken[pool] = (error.splitlines() or ["no reason was given"])[0]

    def ended(self, code: int, message: str) -> None:
        """The last word. code: the exit status."""
        self.close()
        if code:
            self._notifier.send_failure(code, message)
        else:
            self._notifier.send(STATUS="stopped")

    def close(self) -> None:
        for timer in (self._settling, self._refreshing, self._living, self._extending):
            if timer is not None:
                timer.cancel()

    # --- state and status ------------------------------------------------------------------------

    def _refresh(self) -> None:
        self._say(self._transition(self._pools()))
        self._refreshing = self._loop.call_later(REFRESH, self._refresh)

    def _say(self, values: dict[str, object] | None = None) -> None:
        """values: what has to be said beside the status."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        looks = self._look()
        per_minute = self._pace.per_minute(sum(look.done for look in looks), self._loop.time())
        status = sentence(looks, per_minute, self._outcome)
        values = values or {}
        if status != self._said or values:
            self._said = status
            self._notifier.send(**values, STATUS=status)

    @property
    def _outcome(self) -> str:
        first = next(iter(self._broken), None)
        if first is None:
            return ""
        of = f" of pool {first}" if first else ""
        return f"reload{of} rolled back: {self._broken[first]}"

    def _transition(self, pools: list[Pool]) -> dict[str, object]:
        """What is said once, when a state begins."""
        if any(pool.stopping for pool in pools):
            if self._stopping:
                return {}
            self._stopping = True
            self._extending = self._loop.call_later(EXTENSION / 3, self._extend)
            # In one message: an extension counts for the phase in which it comes.
            return {"STOPPING": 1, "EXTEND_TIMEOUT_USEC": int(EXTENSION * 1e6)}
        if not self._ready:
            self._ready = all(pool.announced for pool in pools)
            return {"READY": 1} if self._ready else {}
        reloading = any(pool.reload is not None for pool in pools)
        if reloading == self._reloading:
            return {}
        self._reloading = reloading
        if reloading:
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            return {"RELOADING": 1, "MONOTONIC_USEC": now}
        return {"READY": 1}

    def _extend(self) -> None:
        """Each worker has a deadline of ours for each step of a stop, so this comes to an end."""
        self._notifier.send(EXTEND_TIMEOUT_USEC=int(EXTENSION * 1e6))
        self._extending = self._loop.call_later(EXTENSION / 3, self._extend)

    # --- the watchdog ----------------------------------------------------------------------------

    def _live(self, interval: float) -> None:
        self._living = self._loop.call_later(interval, self._live, interval)
        # Behind everything that was due by now: a loop that is stuck in it does not get there.
        self._loop.call_soon(self._notifier.send_alive)


class Pace:
    """Completed tasks per minute, over the last minute or what there is of it."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []

    def per_minute(self, done: int, now: float) -> int:
        """done: since the start; now: monotonic seconds."""
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - 60:
            del self._marks[0]
        since, before = self._marks[0]
        if now - since < 1:
            return 0
        return round((done - before) * 60 / max(now - since, 60.0))


def sentence(looks: list[Look], per_minute: int, outcome: str) -> str:
    """One line for `systemctl status`."""
    pools = [look.pool for look in looks]
    ready = sum(worker.state is WorkerState.READY for pool in pools for worker in workers_of(pool))
    target = sum(pool.target for pool in pools)
    if any(pool.stopping for pool in pools):
        running = sum(look.running for look in looks)
        if running == 0:
            return "stopping: no task runs any more"
        return f"stopping: {_count(running, 'task')} still {'runs' if running == 1 else 'run'}"
    size = f"{_count(ready, 'worker')} ready"
    if ready < target:
        size = f"{ready} of {target} workers ready"
    queued = [look.queued for look in looks if look.queued is not None]
    parts = [outcome] if outcome else []
    broken = next((text for text in map(_trouble, pools) if text), "")
    parts += [broken] if broken else []
    parts.append(size)
    if any(pool.reload is not None for pool in pools):
        parts.append("reloading")
    if queued:
        parts.append(f"{sum(queued):,} queued")
    parts.append(f"{per_minute:,} task{'' if per_minute == 1 else 's'}/min")
    return " · ".join(parts)


def workers_of(pool: Pool) -> list[Worker]:
    """Those that run tasks, one for each place."""
    return [worker for worker in pool.crew if worker.wanted and not worker.successor]


def _trouble(pool: Pool) -> str:
    if pool.zygote.error is not None:
        return f"the application cannot be loaded: {pool.zygote.error.splitlines()[0]}"
    for worker in pool.workers:
        if worker.boot_error:
            who = "the listener" if worker.slot == LISTENER else "a worker"
            return f"{who} cannot start: {worker.boot_error.splitlines()[0]}"
    return ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
