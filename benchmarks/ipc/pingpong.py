"""A message of 100 bytes there and back, between event loops (uvloop) in two processes.

What it can't be faster than: two eventfds and a shared page, which is what the kernel and the loop
take. Everything is told to a coroutine on both sides: a callback of the loop resumes it.

Measured for each placement by itself. A wake across CPUs takes several times what everything else
takes, most of all on a virtual machine, and whether the scheduler puts both processes on one CPU
changes from round to round; left alone, it compares placements and not queues.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import zmq
import zmq.asyncio

from benchmarks.figure import Effort, Figure, Unit
from benchmarks.ipc.processes import AsyncSide, folder, fork, on_uvloop, pinned, together
from taskiq_supervise.ipc import AsyncTaskQueue, Role, TaskQueue

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

PAYLOAD = b"x" * 100
ROUNDS = 9
COUNT = 2_000
BASE = "eventfd and shared memory"

NOTES = (
    f"{BASE}: two eventfds; 100 bytes copied into a shared page and out of it",
    "ours, there and back: two queues; `put()`, `claim()`, `start()`, `finish()` in each direction",
    "ours, task and result: `put()`, `claim()`, `start()`, `complete()` with 100 bytes, `wait()`",
    "zmq.asyncio: PAIR over ipc://, `await send()`, `await recv()`",
    "multiprocessing.Pipe: `send_bytes()`, `recv_bytes()` when the loop says that it is readable",
)

Ask = Callable[[bytes], Awaitable[bytes]]
Place = tuple[int | None, int | None]
"""The CPUs of the two processes; None: wherever the scheduler puts it."""


def play(ping: AsyncSide, pong: AsyncSide, place: Place) -> list[float]:
    sides = (pinned(on_uvloop(side), cpu) for side, cpu in zip((ping, pong), place, strict=True))
    return cast("list[float]", together(*sides)[0])


def places() -> dict[str, Place]:
    cpus = sorted(os.sched_getaffinity(0))
    found: dict[str, Place] = {"both on one CPU": (cpus[0], cpus[0])}
    if len(cpus) > 1:
        found["each on a CPU of its own"] = (cpus[0], cpus[1])
    return found | {"as the scheduler places them": (None, None)}


async def time_each(ask: Ask, count: int) -> list[float]:
    """Seconds of each of `count` round trips, after some that warm up."""
    for _ in range(count // 10 + 1):
        await ask(PAYLOAD)
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        answer = await ask(PAYLOAD)
        seconds.append(time.perf_counter() - began)
        assert len(answer) == len(PAYLOAD)
    return seconds


def questions(count: int) -> int:
    return count + count // 10 + 1


class Readable:
    """A coroutine's wait for a descriptor, with one reader for its whole life."""

    def __init__(self, descriptor: int, drain: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._drain = drain
        self._waiter: asyncio.Future[object] = self._loop.create_future()
        self._loop.add_reader(descriptor, self._ready)

    def _ready(self) -> None:
        self._waiter.set_result(self._drain())

    async def wait(self) -> object:
        drained = await self._waiter
        self._waiter = self._loop.create_future()
        return drained

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)


# ---- what it can't be faster than ----


def raw(count: int, place: Place) -> list[float]:
    page = mmap.mmap(-1, 4096)
    there, back = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    size = len(PAYLOAD)

    async def ping(barrier: Barrier) -> list[float]:
        answered = Readable(back, lambda: os.eventfd_read(back))

        async def ask(payload: bytes) -> bytes:
            page[:size] = payload
            os.eventfd_write(there, 1)
            await answered.wait()
            return page[2048 : 2048 + size]

        barrier.wait()
        seconds = await time_each(ask, count)
        answered.close()
        return seconds

    async def pong(barrier: Barrier) -> None:
        asked = Readable(there, lambda: os.eventfd_read(there))
        barrier.wait()
        for _ in range(questions(count)):
            await asked.wait()
            payload = page[:size]
            page[2048 : 2048 + size] = payload
            os.eventfd_write(back, 1)
        asked.close()

    try:
        return play(ping, pong, place)
    finally:
        os.close(there)
        os.close(back)
        page.close()


# ---- ours ----


def ours_both_ways(count: int, place: Place) -> list[float]:
    with folder() as directory:

        async def opened(name: str, role: Role) -> AsyncTaskQueue:
            queue = AsyncTaskQueue(TaskQueue.open(name, directory, role=role))
            await queue.start()
            return queue

        async def receive(queue: AsyncTaskQueue) -> bytes:
            lease = await queue.claim()
            lease.start()
            payload = lease.payload
            lease.finish(keep=False)
            return payload

        async def ping(barrier: Barrier) -> list[float]:
            there, back = await opened("there", Role.CLIENT), await opened("back", Role.WORKER)

            async def ask(payload: bytes) -> bytes:
                await there.put("question", payload)
                return await receive(back)

            barrier.wait()
            seconds = await time_each(ask, count)
            barrier.wait()
            await there.close()
            await back.close()
            return seconds

        async def pong(barrier: Barrier) -> None:
            there, back = await opened("there", Role.WORKER), await opened("back", Role.CLIENT)
            barrier.wait()
            for _ in range(questions(count)):
                await back.put("answer", await receive(there))
            barrier.wait()
            await there.close()
            await back.close()

        return play(ping, pong, place)


def ours_with_result(count: int, place: Place) -> list[float]:
    with folder() as directory:

        async def ping(barrier: Barrier) -> list[float]:
            queue = AsyncTaskQueue(TaskQueue.open("tasks", directory))
            await queue.start()
            numbers = iter(range(questions(count)))

            async def ask(payload: bytes) -> bytes:
                ticket = await queue.put(f"task {next(numbers)}", payload)
                return (await queue.wait(ticket)).data

            barrier.wait()
            seconds = await time_each(ask, count)
            barrier.wait()
            await queue.close()
            return seconds

        async def pong(barrier: Barrier) -> None:
            queue = AsyncTaskQueue(TaskQueue.open("tasks", directory, role=Role.WORKER))
            await queue.start()
            barrier.wait()
            for _ in range(questions(count)):
                lease = await queue.claim()
                lease.start()
                lease.complete(lease.payload)
            barrier.wait()
            await queue.close()

        return play(ping, pong, place)


# ---- peers ----


def zmq_pair(count: int, place: Place) -> list[float]:
    with folder() as directory:
        address = f"ipc://{directory}/socket"

        async def ping(barrier: Barrier) -> list[float]:
            with zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as socket:
                socket.bind(address)

                async def ask(payload: bytes) -> bytes:
                    await socket.send(payload)
                    return await socket.recv()

                barrier.wait()
                return await time_each(ask, count)

        async def pong(barrier: Barrier) -> None:
            with zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as socket:
                socket.connect(address)
                barrier.wait()
                for _ in range(questions(count)):
                    await socket.send(await socket.recv())

        return play(ping, pong, place)


def multiprocessing_pipe(count: int, place: Place) -> list[float]:
    mine, theirs = fork.Pipe()

    async def ping(barrier: Barrier) -> list[float]:
        answered = Readable(mine.fileno(), mine.recv_bytes)

        async def ask(payload: bytes) -> bytes:
            mine.send_bytes(payload)
            return cast("bytes", await answered.wait())

        barrier.wait()
        seconds = await time_each(ask, count)
        answered.close()
        return seconds

    async def pong(barrier: Barrier) -> None:
        asked = Readable(theirs.fileno(), theirs.recv_bytes)
        barrier.wait()
        for _ in range(questions(count)):
            theirs.send_bytes(cast("bytes", await asked.wait()))
        asked.close()

    try:
        return play(ping, pong, place)
    finally:
        mine.close()
        theirs.close()


CONTESTANTS: dict[str, Callable[[int, Place], list[float]]] = {
    BASE: raw,
    "ours, there and back": ours_both_ways,
    "ours, task and result": ours_with_result,
    "zmq.asyncio": zmq_pair,
    "multiprocessing.Pipe": multiprocessing_pipe,
}


def measure(effort: Effort) -> list[Figure]:
    count, rounds = effort.of(COUNT), effort.rounds or ROUNDS
    unit = Unit("µs", scale=1e6, digits=1, percentiles=(50, 99))
    figures = []
    for where, place in places().items():
        rules = f"median of {rounds} rounds of {count:,}"
        title = f"Ping-pong of 100 bytes through uvloop, {where}, {rules}"
        contestants = {name: partial(once, count, place) for name, once in CONTESTANTS.items()}
        figure = Figure("pingpong", title, unit, NOTES, BASE)
        figures.append(figure.run(contestants, rounds))
    return figures
