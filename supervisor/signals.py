"""Which signal means what to a supervisor.

Handlers run in the event loop, between two callbacks. SIGHUP asks for new code, as daemons
understand it. It is also what the kernel sends when the terminal is gone that a supervisor was
started in; then its tasks get the same chance to finish as with Ctrl-C.

SIGWINCH stays what it is, a resized terminal; SIGUSR2 is refused, docs/supervision.md says why.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

NAMES = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)


def install(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], None]]
) -> None:
    """One handler for each of NAMES."""
    for number in NAMES:
        loop.add_signal_handler(number, handlers[number])


def remove(loop: asyncio.AbstractEventLoop) -> None:
    for number in NAMES:
        loop.remove_signal_handler(number)


def has_terminal() -> bool:
    """This process has a controlling terminal, and it is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
