"""Processes for one round: forked, so that they start warm, and gone when it is over.

The process that measures has no threads and no event loop; every side of a contest is a child.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import uvloop

SECONDS = 300.0
"""How long a round may take in all."""

fork = multiprocessing.get_context("fork")

Side = Callable[[Barrier], object]
AsyncSide = Callable[[Barrier], Coroutine[Any, Any, object]]


class SideFailed(Exception):
    """A side ended without a result; it has printed why."""


def together(*sides: Side) -> list[object]:
    """Run each side in a process of its own, all at once; their results in order."""
    barrier = fork.Barrier(len(sides), timeout=SECONDS)
    processes, ends = [], []
    for side in sides:
        mine, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_run, args=(side, barrier, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(mine)
    try:
        return _results(ends)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
            process.close()
        for end in ends:
            end.close()


class Victim:
    """A forked process that holds what main() returns until it is killed, or its parent ends.

    Made when it holds it. SideFailed: it ended by itself.
    """

    def __init__(self, main: Callable[[], object]) -> None:
        said, says = os.pipe()
        ends, self._parent_lives = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._parent_lives)
                holds = main()
                os.write(says, b"\0")
                os.read(ends, 1)
                del holds
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(says)
        os.close(ends)
        holding = os.read(said, 1)
        os.close(said)
        if not holding:
            self.reap()
            raise SideFailed("the process that was to be killed ended by itself")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._parent_lives)


def on_uvloop(main: AsyncSide) -> Side:
    """The side as a coroutine. Waiting at the barrier stops its loop."""

    def side(barrier: Barrier) -> object:
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(main(barrier))
        finally:
            loop.close()

    return side


def pinned(side: Side, cpu: int | None) -> Side:
    """The side on one CPU; None: where the scheduler likes."""

    def on_cpu(barrier: Barrier) -> object:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        return side(barrier)

    return on_cpu


def _run(side: Side, barrier: Barrier, result: Connection) -> None:
    try:
        result.send(side(barrier))
    finally:
        result.close()


def _results(ends: list[Connection]) -> list[object]:
    deadline = time.monotonic() + SECONDS
    results: dict[Connection, object] = {}
    while len(results) < len(ends):
        ready = wait(set(ends) - set(results), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise SideFailed(f"no result within {SECONDS:.0f} s")
        for end in ready:
            assert isinstance(end, Connection)
            try:
                results[end] = end.recv()
            except EOFError:
                raise SideFailed("a side of the contest failed") from None
    return [results[end] for end in ends]


@contextmanager
def folder() -> Iterator[Path]:
    """A directory in shared memory, for the time of one round."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="taskiq-bench-", dir=shm) as path:
        yield Path(path)
