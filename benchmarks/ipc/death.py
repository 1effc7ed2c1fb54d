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
from typing import TYPE_CHECKING, Any, cast

from benchmarks.figure import Effort, Figure, Unit
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
        await answer(orders)
        claim = asyncio.ensure_future(queue.claim())
        await asyncio.sleep(0)  # it runs until it waits for a message
        orders.send(None)
        lease = await claim
        came = time.perf_counter()
        lease.start()
        lease.finish(keep=False)
        orders.send(came)
    await answer(orders)
    await queue.close()


async def readable(descriptor: int) -> None:
    """The loop goes on meanwhile: it has duties."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(descriptor, future.set_result, None)
    try:
        await future
    finally:
        loop.remove_reader(descriptor)


async def answer(connection: Connection) -> Any:
    await readable(connection.fileno())
    return connection.recv()


def victim_of(directory: Path, queue: TaskQueue, number: int, guardian: int = 0) -> Victim:
    """It has started a message."""
    queue.put(f"task {number}", b"x" * 100)
    return Victim(partial(run_one, directory, guardian))


async def kill(victim: Victim) -> tuple[float, float]:
    """When the signal was sent, and when its end was seen; it is reaped."""
    pidfd = os.pidfd_open(victim.pid)
    try:
        killed = time.perf_counter()
        victim.kill()
        await readable(pidfd)
        seen = time.perf_counter()
    finally:
        os.close(pidfd)
    victim.reap()
    return killed, seen


@asynccontextmanager
async def attached(directory: Path, role: Role | None) -> AsyncIterator[TaskQueue]:
    """Takes part in the repairs with an event loop; None: it only puts messages."""
    if role is None:
        with TaskQueue.open(QUEUE, directory) as queue:
            yield queue
        return
    on_loop = AsyncTaskQueue(TaskQueue.open(QUEUE, directory, role=role))
    await on_loop.start()
    if role is Role.SUPERVISOR:
        on_loop.queue.become_supervisor("benchmark")
    try:
        yield on_loop.queue
    finally:
        await on_loop.close()


def death_with(role: Role | None, count: int) -> list[float]:
    """The process that starts the victims and reaps them has this role in the queue."""
    buries = role is Role.SUPERVISOR
    mine, theirs = fork.Pipe()

    async def kill_each(queue: TaskQueue) -> list[float]:
        seconds = []
        await answer(mine)  # the survivor is there
        for number in range(count):
            victim = victim_of(directory, queue, number, queue.participant if buries else 0)
            mine.send(None)
            await answer(mine)  # the survivor waits for a message
            killed, _ = await kill(victim)
            if buries:
                queue.bury(victim.pid, DeathCause(pid=victim.pid, signal=signal.SIGKILL))
            seconds.append(await answer(mine) - killed)
        mine.send(None)
        return seconds

    async def parent(barrier: Barrier) -> list[float]:
        async with attached(directory, role) as queue:
            barrier.wait()
            return await kill_each(queue)

    async def survivor(barrier: Barrier) -> None:
        barrier.wait()
        await survive(directory, theirs, count)

    with folder() as directory, mine, theirs:
        sides = together(on_uvloop(parent), on_uvloop(survivor))
    return cast("list[float]", sides[0])


def end_of_a_process(count: int) -> list[float]:
    """From the signal until the parent sees the end of a process that has the queue open."""

    async def parent(_: Barrier) -> list[float]:
        seconds = []
        async with attached(directory, None) as queue:
            for number in range(count):
                killed, seen = await kill(victim_of(directory, queue, number))
                seconds.append(seen - killed)
        return seconds

    with folder() as directory:
        return cast("list[float]", together(on_uvloop(parent))[0])


def measure(effort: Effort) -> list[Figure]:
    count, rounds = effort.of(COUNT), effort.rounds or ROUNDS
    contestants: dict[str, Callable[[], list[float]]] = {
        BASE: partial(end_of_a_process, count),
        "a supervisor reaps it and repairs": partial(death_with, Role.SUPERVISOR, count),
        "no supervisor, a client repairs": partial(death_with, Role.CLIENT, count),
        "no supervisor, the surviving worker repairs": partial(death_with, None, count),
    }
    title = (
        f"SIGKILL of a worker until another one has its message, "
        f"median of {rounds} rounds of {count} deaths"
    )
    unit = Unit("ms", scale=1e3, digits=2, percentiles=(50, 99))
    return [Figure("death", title, unit, NOTES, BASE).run(contestants, rounds)]
