"""From the fork to the first line of the runtime: a process becomes a worker.

It starts with all signals blocked and with everything of the zygote's. Before it lets signals in it
has handlers for them; before it imports or opens anything it is tied to the supervisor.
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from typing import NoReturn

from taskiq_supervise.ipc import Board, guard_parent
from taskiq_supervise.worker import log_style, stacks
from taskiq_supervise.worker.application import Application, ApplicationError, load
from taskiq_supervise.worker.config import WorkerConfig
from taskiq_supervise.worker.failpoint import failpoint
from taskiq_supervise.worker.link import Link
from taskiq_supervise.worker.order import Descriptors, ForkOrder
from taskiq_supervise.worker.process import (
    be_more_expendable,
    be_nice,
    flush_output,
    pin_to_cpu,
    reseed,
    reset_signals,
    set_title,
    tie_to,
)
from taskiq_supervise.worker.runtime import Worker
from taskiq_supervise.worker.subordinate import BOOT_FAILED, INTERNAL_ERROR

logger = logging.getLogger("taskiq_supervise.worker")

END_PATIENCE = 3.0
"""Seconds for giving tasks back once the supervisor is gone, beside the broker's own shutdown."""


def become_worker(
    order: ForkOrder,
    forked_by: int,
    descriptors: Descriptors,
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
    link = Link(descriptors.link)

    def leave(_number: int, _frame: object) -> None:
        link.say("draining")  # by a signal, so it is no failure
        _end_group(link)
        os._exit(0)

    # Until the runtime has its own: nothing has been taken, so drained and stopped are the same.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, leave)
    stacks.dump_to(descriptors.stacks)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    failpoint("boot.before")
    if not tie_to(order.supervisor_pid, signal.SIGTERM, after=forked_by):
        os._exit(0)
    # A blocked loop never hears the death signal, and must not outlive the supervisor either.
    guard_parent(order.supervisor_pid, config.shutdown_timeout + END_PATIENCE)
    be_more_expendable()
    reseed()
    pool = {"pool": order.pool} if order.pool else {}
    of = f"{order.pool}/" if order.pool else ""
    if order.is_listener:
        log_style.identify(instance=order.instance, **pool, listener=True, gen=order.generation)
        set_title("listener", config.app)
        multiprocessing.current_process().name = f"{of}listener"
    else:
        # The guard has a thread, which keeps what the supervisor has: these are set per thread.
        be_nice(config.nice)
        if config.pin:
            pin_to_cpu(order.slot)
        log_style.identify(instance=order.instance, **pool, worker=order.slot, gen=order.generation)
        set_title(f"worker {order.slot}", config.app)
        multiprocessing.current_process().name = f"{of}worker-{order.slot}"
    leave_with(lambda: _work(order, link, descriptors, config, application), link)


def _work(
    order: ForkOrder,
    link: Link,
    descriptors: Descriptors,
    config: WorkerConfig,
    application: Application | None,
) -> int:
    if application is None:
        try:
            application = load(config)
        except ApplicationError as error:
            link.say("boot_failed", kind="import", message=error.message, traceback=error.traceback)
            return BOOT_FAILED
    board = Board.open(order.board).writer(order.seat)
    if order.is_listener:
        from taskiq_supervise.worker.listener.process import Listener  # workers do without it

        return Listener(application, config, link, order, board, descriptors).run()
    return Worker(application, config, link, order, board, descriptors).run()


def leave_with(work: Callable[[], int], link: Link | None = None) -> NoReturn:
    """Ends the process with what `work` returns.

    link: to the supervisor, which kills our process group when we have ended.

    Without atexit handlers, as children of multiprocessing do: what the application registered when
    it was imported belongs to the zygote, and the first worker that ends must not clean it up.
    """
    status = INTERNAL_ERROR
    try:
        status = work()
    except BaseException:
        logger.exception("The process failed")
    finally:
        flush_output()
        failpoint("exit.before")
        _end_group(link)
        os._exit(status)


def _end_group(link: Link | None) -> None:
    """If nobody is left to do it. It takes us along."""
    if link is not None and link.ended:
        os.killpg(0, signal.SIGKILL)
