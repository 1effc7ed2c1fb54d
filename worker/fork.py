"""A fork whose child becomes the supervisor's: the double fork.

The one in between ends at once, so the kernel hands its child to the nearest subreaper, which is
the supervisor. Signals are blocked until the child has handlers of its own: of 300 SIGTERMs sent
right after a fork without it, 294 were lost.
"""

import logging
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from taskiq_supervise.ipc import _core
from taskiq_supervise.worker.process import flush_output

logger = logging.getLogger("taskiq_supervise.worker")


def fork_away(child: Callable[[int], NoReturn]) -> int:
    """The pid of a process that runs `child` with all signals blocked. Raises OSError.

    The argument of `child` is the pid of the process in between, its parent at first.
    """
    flush_output()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid, between = _core.fork_away()
        if pid == 0:
            try:
                child(between)
            except BaseException:
                logger.exception("The worker could not begin")
                flush_output()
            finally:
                # Whatever happens there, it must not go on as a second zygote.
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid
