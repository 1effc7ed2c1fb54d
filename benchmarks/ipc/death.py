"""Death of a worker: SIGKILL of the process that runs a message, until another one has it.

The victim has started the message, the survivor waits in `claim()`, nothing else goes on. The clock
starts before the signal and stops when `claim()` has returned. Three queues, by who repairs:
a parent that reaps the victim and buries it, as the supervisor does; without one, a client that
is there as well; and, with no process but the workers, the survivor itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

from benchmarks.ipc.figure import Effort, Figure, Unit
from benchmarks.ipc.processes import (
    Victim,
    folder,
    fork,
    on_uvloop,
    together,
)
from taskiq_supervise.ipc import AsyncTaskQueue, DeathCause, Role, TaskQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

ROUNDS = 5
COUNT = 60
QUEUE = "deaths"
BASE = "the kernel ends a process, nobody repairs"

NOTES = (
    "no peer redelivers: what a consumer had taken from one of them is lost with it",
    f"{BASE}: from the signal until the pidfd is readable on the parent's loop",
)


def run_one(directory: Path, guardian: int) -> TaskQueue:
    """What the victim does: it takes a message and starts it."""
    queue = TaskQueue.open(QUEUE, directory, role=Role.WORKER, guardian=guardian)
    lease = queue.claim()
    assert lease is not None
    lease.start()
    return queue


async def survive(directory: Path, orders: Connection, count: int) -> None:
    """Waits for a message when told to, and answers with the time at which it came."""
    queue = AsyncTaskQueue(TaskQueue.open(QUEUE, directory, role=Role.WORKER))
    await queue.start()
    orders.send(None)
    for _ in range(count):
        await readable(orders)
        orders.recv()
        claim = asyncio.ensure_future(queue.claim())
        await asyncio.sleep(0)  # it runs until it waits for a message
        orders.send(None)
        lease = await claim
        came = time.perf_counter()
        lease.start()
        lease.finish(keep=False)
        orders.send(came)
    await readable(orders)
    orders.recv()
    await queue.close()


async def readable(connection: Connection) -> None:
    """The loop goes on meanwhile: it has duties."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(connection.fileno(), future.set_result, None)
    try:
        await future
    finally:
        loop.remove_reader(connection.fileno())


async def ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(pidfd, future.set_result, None)
    try:
        await future
    finally:
        loop.remove_reader(pidfd)


@asynccontextmanager
async def attached(directory: Path, role: Role) -> AsyncIterator[AsyncTaskQueue]:
    queue = AsyncTaskQueue(TaskQueue.open(QUEUE, directory, role=role))
    await queue.start()
    if role is Role.SUPERVISOR:
        queue.queue.become_supervisor("benchmark")
    try:
        yield queue
    finally:
        await queue.close()


async def kill_each(
    directory: Path, queue: TaskQueue, orders: Connection, count: int, *, bury: bool
) -> list[float]:
    seconds = []
    await readable(orders)
    orders.recv()  # the survivor is there
    for number in range(count):
        queue.put(f"task {number}", b"x" * 100)
        guardian = queue.participant if bury else 0
        victim = Victim(partial(run_one, directory, guardian))
        pidfd = os.pidfd_open(victim.pid)
        try:
            orders.send(None)
            await readable(orders)
            orders.recv()  # the survivor waits for a message
            killed = time.perf_counter()
            victim.kill()
            await ended(pidfd)
            victim.reap()
            if bury:
                queue.bury(victim.pid, DeathCause(pid=victim.pid, signal=signal.SIGKILL))
            await readable(orders)
            seconds.append(orders.recv() - killed)
        finally:
            os.close(pidfd)
    orders.send(None)
    return seconds


def with_a_participant(role: Role, count: int) -> list[float]:
    """One process starts the victims, reaps them, and is on the queue with an event loop."""
    with folder() as directory:
        mine, theirs = fork.Pipe()

        async def parent(barrier: Barrier) -> list[float]:
            async with attached(directory, role) as queue:
                barrier.wait()
                return await kill_each(
                    directory, queue.queue, mine, count, bury=role is Role.SUPERVISOR
                )

        async def survivor(barrier: Barrier) -> None:
            barrier.wait()
            await survive(directory, theirs, count)

        try:
            sides = together(on_uvloop(parent), on_uvloop(survivor))
        finally:
            mine.close()
            theirs.close()
        return cast("list[float]", sides[0])


def workers_alone(count: int) -> list[float]:
    """The process that starts the victims does nothing for the queue but put."""
    with folder() as directory:
        mine, theirs = fork.Pipe()

        async def parent(_: Barrier) -> list[float]:
            with TaskQueue.open(QUEUE, directory) as queue:
                return await kill_each(directory, queue, mine, count, bury=False)

        async def survivor(_: Barrier) -> None:
            await survive(directory, theirs, count)

        try:
            sides = together(on_uvloop(parent), on_uvloop(survivor))
        finally:
            mine.close()
            theirs.close()
        return cast("list[float]", sides[0])


def end_of_a_process(count: int) -> list[float]:
    """From the signal until the parent sees the end of a process that has the queue open."""
    with folder() as directory:

        async def parent(_: Barrier) -> list[float]:
            seconds = []
            with TaskQueue.open(QUEUE, directory) as queue:
                for number in range(count):
                    queue.put(f"task {number}", b"x" * 100)
                    victim = Victim(partial(run_one, directory, 0))
                    pidfd = os.pidfd_open(victim.pid)
                    killed = time.perf_counter()
                    victim.kill()
                    await ended(pidfd)
                    seconds.append(time.perf_counter() - killed)
                    victim.reap()
                    os.close(pidfd)
            return seconds

        return cast("list[float]", together(on_uvloop(parent))[0])


def measure(effort: Effort) -> list[Figure]:
    count, rounds = effort.of(COUNT), effort.rounds or ROUNDS
    contestants: dict[str, Callable[[], list[float]]] = {
        BASE: partial(end_of_a_process, count),
        "a supervisor reaps it and repairs": partial(with_a_participant, Role.SUPERVISOR, count),
        "no supervisor, a client repairs": partial(with_a_participant, Role.CLIENT, count),
        "no supervisor, the surviving worker repairs": partial(workers_alone, count),
    }
    title = (
        f"SIGKILL of a worker until another one has its message, "
        f"median of {rounds} rounds of {count} deaths"
    )
    unit = Unit("ms", scale=1e3, digits=2, percentiles=(50, 99))
    return [Figure("death", title, unit, NOTES, BASE).run(contestants, rounds)]
