"""What all threads of a process are doing, on SIGUSR1.

Written by faulthandler's handler in C, which needs neither the event loop nor a turn of the
interpreter: a process that hangs is the one whose stacks are wanted. Where coroutines wait it
cannot see; that the loop says by itself, if it turns.
"""

import asyncio
import faulthandler
import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNAL = signal.SIGUSR1
STDERR = 2


def dump_to(fd: int) -> None:
    """From now on. The descriptor has to stay open."""
    # The application may have set a handler since the last time; only a first registration does.
    faulthandler.unregister(SIGNAL)
    signal.signal(SIGNAL, signal.SIG_IGN)
    faulthandler.register(SIGNAL, file=fd, all_threads=True)


def dump_tasks(fd: int) -> None:
    """Where the running loop's tasks wait. What the pipe has no room for is left out."""
    text = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(file=text)
    with suppress(BlockingIOError):
        os.write(fd, text.getvalue().encode())


@contextmanager
def of_child(pid: int) -> Iterator[None]:
    """Meanwhile the signal is for a child, which this process does nothing but wait for."""

    def hand_on(_number: int, _frame: FrameType | None) -> None:
        os.kill(pid, SIGNAL)

    faulthandler.unregister(SIGNAL)
    signal.signal(SIGNAL, hand_on)
    try:
        yield
    finally:
        dump_to(STDERR)
