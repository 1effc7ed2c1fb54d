"""From the fork to the first line of the runtime: a process becomes a worker.

It starts with all signals blocked and with everything of the zygote's. Before it lets signals in it
has handlers for them; before it imports or opens anything it is tied to the supervisor.
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from taskiq_supervise.ipc import guard_parent
from taskiq_supervise.worker.application import Application, ApplicationError, load
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.link import Link
from taskiq_supervise.worker.process import (
    be_more_expendable,
    flush_output,
    reseed,
    reset_signals,
    set_title,
    tie_to,
)
from taskiq_supervise.worker.runtime import BOOT_FAILED, INTERNAL_ERROR, Worker

logger = logging.getLogger("taskiq_supervise.worker")

END_PATIENCE = 3.0
"""Seconds for giving tasks back once the supervisor is gone, beside the broker's own shutdown."""


@dataclass(frozen=True)
class ForkOrder:
    """Which worker to fork, as the supervisor says."""

    slot: int
    generation: int
    board: str
    instance: str
    guardian: int
    """The supervisor's place in the queue; 0 if there is none."""
    supervisor_pid: int

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "ForkOrder":
        """Raises KeyError, ValueError or TypeError for a message that is none."""
        return cls(
            slot=int(message["slot"]),
            generation=int(message["generation"]),
            board=str(message["board"]),
            instance=str(message["instance"]),
            guardian=int(message["guardian"]),
            supervisor_pid=int(message["supervisor_pid"]),
        )


def become_worker(
    order: ForkOrder,
    forked_by: int,
    link_fd: int,
    foreign_fds: Iterable[int],
    config: WorkerConfig,
    application: Application | None,
) -> NoReturn:
    """What the child of the double fork runs.

    forked_by: the process in between. application: None if it has to be imported here.
    """
    for fd in foreign_fds:
        os.close(fd)
    os.setpgid(0, 0)
    reset_signals()
    # Until the runtime has its own: nothing has been taken, so drained and stopped are the same.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if not tie_to(order.supervisor_pid, signal.SIGTERM, after=forked_by):
        os._exit(0)
    # A blocked loop never hears the death signal, and must not outlive the supervisor either.
    guard_parent(order.supervisor_pid, config.shutdown_timeout + END_PATIENCE)
    be_more_expendable()
    reseed()
    set_title(f"worker {order.slot}", config.app)
    multiprocessing.current_process().name = f"worker-{order.slot}"
    leave_with(lambda: _work(order, Link(link_fd), config, application))


def _work(
    order: ForkOrder, link: Link, config: WorkerConfig, application: Application | None
) -> int:
    if application is None:
        try:
            application = load(config)
        except ApplicationError as error:
            link.say("boot_failed", kind="import", message=error.message, traceback=error.traceback)
            return BOOT_FAILED
    worker = Worker(
        application,
        config,
        link,
        slot=order.slot,
        generation=order.generation,
        board=order.board,
        guardian=order.guardian,
        supervisor_pid=order.supervisor_pid,
    )
    return worker.run()


def leave_with(work: Callable[[], int]) -> NoReturn:
    """Ends the process with what `work` returns.

    Without atexit handlers, as children of multiprocessing do: what the application registered when
    it was imported belongs to the zygote, and the first worker that ends must not clean it up.
    """
    status = INTERNAL_ERROR
    try:
        status = work()
    except BaseException:
        logger.exception("The worker failed")
    finally:
        flush_output()
        os._exit(status)


def _leave(_number: int, _frame: object) -> None:
    os._exit(0)
