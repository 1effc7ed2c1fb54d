"""Which signal means what to a supervisor.

Handlers run in the event loop, between two callbacks, so they only post events. SIGHUP is what a
closing terminal sends; the tasks of a supervisor that was started by hand in it get the same chance
to finish as with Ctrl-C.
"""

import asyncio
import signal
from collections.abc import Callable

from taskiq_supervise.supervisor.messages import PoolEvent, Quit, Terminate

MEANING: dict[signal.Signals, PoolEvent] = {
    signal.SIGTERM: Terminate(),
    signal.SIGINT: Terminate(),
    signal.SIGHUP: Terminate(),
    signal.SIGQUIT: Quit(),
}


def install(
    loop: asyncio.AbstractEventLoop,
    post: Callable[[PoolEvent], None],
    on_child: Callable[[], None],
) -> None:
    for number, event in MEANING.items():
        loop.add_signal_handler(number, post, event)
    loop.add_signal_handler(signal.SIGCHLD, on_child)


def remove(loop: asyncio.AbstractEventLoop) -> None:
    for number in (*MEANING, signal.SIGCHLD):
        loop.remove_signal_handler(number)
