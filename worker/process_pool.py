"""The processes that run a worker's sync tasks, when it was asked for them (`use_process_pool`).

A task may wait for a free one. Its hard time limit counts from the moment it runs, which only that
process knows, so it says so over a pipe: one write of a few bytes, which the kernel keeps in one
piece.
"""

import asyncio
import multiprocessing
import os
import signal
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from taskiq_supervise.worker.log_style import current_task
from taskiq_supervise.worker.process import reset_signals, set_death_signal

_NUMBER = struct.Struct("=Q")

_beginnings: Connection | None = None
"""In a process of the pool: where to say that a task begins."""


class ProcessPool(ProcessPoolExecutor):
    """taskiq's way of running sync tasks in processes, for the loop that is running."""

    def __init__(self, processes: int | None, on_begin: Callable[[int], None]) -> None:
        """on_begin: called with the number of a task that begins, if it was given one."""
        self._inner, outer = multiprocessing.Pipe(duplex=False)
        # A fork server is the parent of its processes.
        starts_them = multiprocessing.get_start_method() != "forkserver"
        super().__init__(
            processes,
            initializer=_begin_process,
            initargs=(os.getpid() if starts_them else 0, outer),
        )
        self._on_begin = on_begin
        asyncio.get_running_loop().add_reader(self._inner.fileno(), self._hear)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Lines that are logged there say which task they are about."""
        return super().submit(_run_about, current_task.get(), fn, *args, **kwargs)

    @staticmethod
    def numbered(target: Callable[..., Any], number: int) -> Callable[..., Any]:
        """What to run in it instead of `target`, so that its beginning is said."""
        return partial(_say_and_run, number, target)

    def _hear(self) -> None:
        for (number,) in _NUMBER.iter_unpack(os.read(self._inner.fileno(), 512 * _NUMBER.size)):
            self._on_begin(number)


def _run_about(
    task: Mapping[str, Any] | None, target: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    current_task.set(task)
    return target(*args, **kwargs)


def _say_and_run(number: int, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    assert _beginnings is not None, "the pool's initializer has run"
    os.write(_beginnings.fileno(), _NUMBER.pack(number))
    return target(*args, **kwargs)


def _begin_process(parent: int, beginnings: Connection) -> None:
    """It ends with its worker, and leaves signals to it.

    parent: the worker's pid, 0 where another process starts them.
    """
    global _beginnings
    _beginnings = beginnings
    reset_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_death_signal(signal.SIGKILL)
    if parent and os.getppid() != parent:  # it died before that
        os._exit(0)
