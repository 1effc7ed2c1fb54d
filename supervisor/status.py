"""A running instance, as one JSON object: what `status` shows, and what programs may rely on.

The pool's own state says who is there; the board in shared memory says what each worker does, so
that a worker which hangs is seen all the same; the queue counts itself. Nobody is asked anything.

Counters belong to the worker slot and outlive its workers, so that a sum over the pool does not
fall when a worker is replaced; uptime, pid and what runs belong to the worker that is there now.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskiq_supervise.ipc import Board, WorkerView
from taskiq_supervise.supervisor.core.model import LISTENER, Pool, Worker, WorkerState
from taskiq_supervise.supervisor.core.transport import Transport
from taskiq_supervise.supervisor.usage import Usage

_NO_USAGE = Usage(None, None)
_WAITING = {WorkerState.BACKOFF, WorkerState.QUARANTINED}


class Tallies:
    """Completed tasks per worker slot, over all generations; read from the board.

    Of a listener: what it has put into the queue.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._before: dict[int, tuple[int, int]] = {}
        self._received_before = 0

    def view(self, worker: Worker) -> WorkerView | None:
        """What the present worker wrote; None before it has written anything."""
        view = self._board.read(worker.seat)
        return view if worker.generation and view.generation == worker.generation else None

    def of(self, worker: Worker) -> tuple[int, int]:
        """Tasks done, and how many of those failed."""
        done, failed = self._before.get(worker.slot, (0, 0))
        view = self.view(worker) if worker.alive else None
        if view is None:
            return done, failed
        return done + view.done + view.failed, failed + view.failed

    def total(self, workers: Iterable[Worker]) -> int:
        """Tasks done since the start, also in places that are no more. workers: all there are."""
        done = sum(before for before, _ in self._before.values())
        views = [self.view(worker) for worker in workers if worker.alive]
        return done + sum(view.done + view.failed for view in views if view is not None)

    def received(self, listener: Worker) -> int:
        """By this one, and by those that have ended."""
        view = self.view(listener) if listener.alive else None
        return self._received_before + (0 if view is None else view.received)

    def close_generation(self, worker: Worker) -> bool:
        """Called once when a worker has ended; whether it completed anything."""
        if worker.slot == LISTENER:
            received = self._received_before
            self._received_before = self.received(worker)
            return self._received_before != received
        before = self._before.get(worker.slot, (0, 0))
        self._before[worker.slot] = self.of(worker)
        return self._before[worker.slot] != before


@dataclass(frozen=True, slots=True)
class PoolView:
    """What there is to know of one pool."""

    name: str
    app: str
    pool: Pool
    tallies: Tallies
    transport: Transport | None
    queue: Mapping[str, int] | None


def pool_status(view: PoolView, usage: Mapping[int, Usage], now: float) -> dict[str, Any]:
    """One pool, without its workers. usage, now: as for `worker_statuses`."""
    pool, transport = view.pool, view.transport
    reload = pool.reload
    shm = transport if transport is not None and transport.has_queue else None
    return {
        "name": view.name,
        "app": view.app,
        "state": pool.phase,
        "message": _message(pool),
        "transport": None if transport is None else _transport(transport),
        "queue_name": None if shm is None else shm.name,
        "queue_directory": None if shm is None else shm.directory,
        "queue": None if view.queue is None else dict(view.queue),
        "listener": _listener(view, usage, now),
        "zygote": {"state": pool.zygote.state.value, "generation": pool.zygote.generation},
        "target": pool.target,
        "min_workers": pool.settings.min_workers,
        "max_workers": pool.settings.max_workers,
        "reload": None if reload is None else reload.stage.value,
    }


def worker_statuses(view: PoolView, usage: Mapping[int, Usage], now: float) -> list[dict[str, Any]]:
    """usage: by pid. All times in seconds; `now` and the pool's times are of the same clock."""
    return [
        {"pool": view.name, **_worker(worker, view.tallies, usage.get(worker.pid, _NO_USAGE), now)}
        for worker in view.pool.crew
    ]


def _listener(view: PoolView, usage: Mapping[int, Usage], now: float) -> dict[str, Any] | None:
    there = [one for one in view.pool.workers if one.slot == LISTENER and not one.successor]
    listener = view.pool.holder(LISTENER) or next(iter(there), None)
    listening = None if view.transport is None else view.transport.listener
    if listener is None or listening is None:
        return None
    return {
        **_process(listener, usage.get(listener.pid, _NO_USAGE), now),
        "broker": listening.broker,
        "reason": listening.reason,
        "endpoints": list(listening.endpoints),
        "received": view.tallies.received(listener),
    }


def _process(worker: Worker, usage: Usage, now: float) -> dict[str, Any]:
    """What there is to say of any process that is looked after."""
    return {
        "pid": worker.pid if worker.alive else None,
        "state": worker.state.value,
        "health": worker.health.value if worker.alive else None,
        "generation": worker.generation,
        "uptime": round(now - worker.started, 3) if worker.alive else None,
        "restarts": worker.restarts,
        "last_exit": None if worker.last_exit is None else str(worker.last_exit),
        "last_exit_reason": None if worker.last_reason is None else worker.last_reason.value,
        "message": worker.boot_error,
        "next_start": _next_start(worker, now),
        "cpu_percent": usage.cpu_percent,
        "rss_bytes": usage.rss_bytes,
    }


def _worker(worker: Worker, tallies: Tallies, usage: Usage, now: float) -> dict[str, Any]:
    view = tallies.view(worker) if worker.alive else None
    done, failed = tallies.of(worker)
    return {
        "slot": worker.slot,
        **_process(worker, usage, now),
        "reason": None if worker.reason is None else worker.reason.value,
        "tasks": {"done": done, "failed": failed},
        "running": [
            {
                "task_id": task.task_id,
                "task_name": task.task_name,
                "elapsed": round(max(0.0, now - task.started), 3),
                "attempt": task.attempt,
                "remaining": (
                    None if task.deadline is None else round(max(0.0, task.deadline - now), 3)
                ),
            }
            for task in (view.running if view is not None else ())
        ],
    }


def _next_start(worker: Worker, now: float) -> float | None:
    if worker.state not in _WAITING or worker.deadline is None:
        return None
    return round(max(0.0, worker.deadline - now), 3)


def _transport(transport: Transport) -> str:
    if transport.listener is not None:
        joined = transport.joined_by_listener
        return transport.listener.store if joined else transport.listener.cls
    return transport.kind if transport.kind == "shm" else transport.name


def _message(pool: Pool) -> str | None:
    """What is wrong, in one line; None when nothing is."""
    if pool.zygote.error is not None:
        return f"the application cannot be loaded again: {pool.zygote.error}"
    listener = pool.holder(LISTENER)
    if listener is not None and listener.boot_error is not None:
        return f"the listener cannot start: {listener.boot_error}"
    waiting = [worker for worker in pool.crew if worker.boot_error is not None]
    if waiting:
        return f"{len(waiting)} of {pool.target} workers cannot start: {waiting[0].boot_error}"
    return None
