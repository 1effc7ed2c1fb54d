"""Messages per second in one direction: 100 bytes each, one producer, one consumer, two processes.

The clock starts with the producer's first message and stops when the consumer has the last one and
has acknowledged it, where there is such a thing. Every contestant blocks or waits when its queue is
full; each queue has the size that its documentation shows, ours its default.
"""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import zmq
import zmq.asyncio

from benchmarks.ipc.figure import Effort, Figure, Once, Unit
from benchmarks.ipc.processes import Side, folder, fork, on_uvloop, together
from taskiq_supervise.ipc import AsyncTaskQueue, Role, TaskQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

PAYLOAD = b"x" * 100
BATCH = 100
ROUNDS = 7
FAST, SLOW = 100_000, 20_000
"""Messages per round, for about half a second each."""

NOTES = (
    "a payload is a `bytes` of 100; ours carries a task id of 32 characters too, as taskiq's",
    "ours, on uvloop: `await put()` of each; `await claim()`, `start()`, `finish()` of each",
    f"ours, batches: `put_many()` of {BATCH}; `listen(batch={BATCH})`, `finish_many()`",
    "zmq.asyncio, on uvloop: `await send()`, `await recv()`; ipc://, default high-water mark",
    "zmq.asyncio, acknowledged: an answer to each message, at most 1,000 not answered",
    "faster-fifo: `Queue(1000 * 1000)` as in its README; no event loop, no acknowledgement",
    f"faster-fifo, many: `put_many()` of {BATCH}, `get_many()` of at most {BATCH}",
    "multiprocessing.Queue: `put()`, `get()`; no event loop, no acknowledgement",
)


def rate(count: int, produce: Side, consume: Side) -> list[float]:
    """The sides return when they began and ended; CLOCK_MONOTONIC is the same in all processes."""
    began, ended = cast("list[float]", together(produce, consume))
    return [count / (ended - began)]


def task_ids(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


# ---- ours ----


async def opened(directory: Path, role: Role) -> AsyncTaskQueue:
    queue = AsyncTaskQueue(TaskQueue.open("oneway", directory, role=role))
    await queue.start()
    return queue


async def take_each(queue: AsyncTaskQueue, count: int) -> None:
    for _ in range(count):
        lease = await queue.claim()
        lease.start()
        lease.finish(keep=False)


async def put_each(queue: AsyncTaskQueue, ids: list[str]) -> None:
    for task_id in ids:
        await queue.put(task_id, PAYLOAD)


async def take_batches(queue: AsyncTaskQueue, count: int) -> None:
    async for leases in queue.listen(batch=BATCH):
        queue.queue.finish_many(leases)
        count -= len(leases)
        if count <= 0:
            return


async def put_batches(queue: AsyncTaskQueue, ids: list[str]) -> None:
    messages = [(task_id, PAYLOAD) for task_id in ids]
    for at in range(0, len(messages), BATCH):
        await queue.put_many(messages[at : at + BATCH])


def ours(
    count: int,
    put: Callable[[AsyncTaskQueue, list[str]], Coroutine[Any, Any, None]],
    take: Callable[[AsyncTaskQueue, int], Coroutine[Any, Any, None]],
) -> list[float]:
    warm = count // 10 + 1
    with folder() as directory:

        async def produce(barrier: Barrier) -> float:
            queue = await opened(directory, Role.CLIENT)
            ids = task_ids(count)
            barrier.wait()
            await put(queue, ids[:warm])
            barrier.wait()
            began = time.perf_counter()
            await put(queue, ids)
            barrier.wait()
            await queue.close()
            return began

        async def consume(barrier: Barrier) -> float:
            queue = await opened(directory, Role.WORKER)
            barrier.wait()
            await take(queue, warm)
            barrier.wait()
            await take(queue, count)
            ended = time.perf_counter()
            barrier.wait()
            await queue.close()
            return ended

        return rate(count, on_uvloop(produce), on_uvloop(consume))


# ---- zmq.asyncio ----


def zmq_push(count: int) -> list[float]:
    warm = count // 10 + 1
    with folder() as directory:
        address = f"ipc://{directory}/socket"

        async def produce(barrier: Barrier) -> float:
            with zmq.asyncio.Context() as context, context.socket(zmq.PUSH) as socket:
                socket.bind(address)
                barrier.wait()
                for _ in range(warm):
                    await socket.send(PAYLOAD)
                barrier.wait()
                began = time.perf_counter()
                for _ in range(count):
                    await socket.send(PAYLOAD)
                barrier.wait()
                return began

        async def consume(barrier: Barrier) -> float:
            with zmq.asyncio.Context() as context, context.socket(zmq.PULL) as socket:
                socket.connect(address)
                barrier.wait()
                for _ in range(warm):
                    await socket.recv()
                barrier.wait()
                for _ in range(count):
                    await socket.recv()
                ended = time.perf_counter()
                barrier.wait()
                return ended

        return rate(count, on_uvloop(produce), on_uvloop(consume))


def zmq_acknowledged(count: int) -> list[float]:
    window, warm = 1_000, count // 10 + 1
    with folder() as directory:
        address = f"ipc://{directory}/socket"

        async def send(socket: zmq.asyncio.Socket, messages: int) -> None:
            room = asyncio.Semaphore(window)

            async def answers() -> None:
                for _ in range(messages):
                    await socket.recv()
                    room.release()

            answered = asyncio.ensure_future(answers())
            for _ in range(messages):
                await room.acquire()
                await socket.send(PAYLOAD)
            await answered

        async def answer(socket: zmq.asyncio.Socket, messages: int) -> None:
            for _ in range(messages):
                await socket.recv()
                await socket.send(b"")

        async def produce(barrier: Barrier) -> float:
            with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.bind(address)
                barrier.wait()
                await send(socket, warm)
                barrier.wait()
                began = time.perf_counter()
                await send(socket, count)
                barrier.wait()
                return began

        async def consume(barrier: Barrier) -> float:
            with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.connect(address)
                barrier.wait()
                await answer(socket, warm)
                barrier.wait()
                await answer(socket, count)
                ended = time.perf_counter()
                barrier.wait()
                return ended

        return rate(count, on_uvloop(produce), on_uvloop(consume))


# ---- queues without an event loop ----


def blocking(count: int, put: Callable[[int], None], take: Callable[[int], None]) -> list[float]:
    warm = count // 10 + 1

    def produce(barrier: Barrier) -> float:
        barrier.wait()
        put(warm)
        barrier.wait()
        began = time.perf_counter()
        put(count)
        return began

    def consume(barrier: Barrier) -> float:
        barrier.wait()
        take(warm)
        barrier.wait()
        take(count)
        return time.perf_counter()

    return rate(count, produce, consume)


def faster_fifo_queue(count: int, *, batch: bool) -> list[float]:
    import faster_fifo

    queue = faster_fifo.Queue(1000 * 1000)
    # Both calls give up after 10 s without room or messages.

    def put(messages: int) -> None:
        for _ in range(messages):
            queue.put(PAYLOAD)

    def put_many(messages: int) -> None:
        many = [PAYLOAD] * BATCH
        for _ in range(messages // BATCH):
            queue.put_many(many)
        queue.put_many(many[: messages % BATCH])

    def take(messages: int) -> None:
        while messages:
            messages -= len(queue.get_many(max_messages_to_get=min(messages, BATCH)))

    return blocking(count, put_many if batch else put, take)


def multiprocessing_queue(count: int) -> list[float]:
    queue: Any = fork.Queue()

    def put(messages: int) -> None:
        for _ in range(messages):
            queue.put(PAYLOAD)

    def take(messages: int) -> None:
        for _ in range(messages):
            queue.get()

    try:
        return blocking(count, put, take)
    finally:
        queue.close()


def contestants(effort: Effort) -> dict[str, Once]:
    fast, slow = effort.of(FAST), effort.of(SLOW)
    found: dict[str, Once] = {}
    found["ours, batches"] = lambda: ours(fast, put_batches, take_batches)
    found["ours, one by one"] = lambda: ours(fast, put_each, take_each)
    found["zmq.asyncio PUSH/PULL"] = lambda: zmq_push(slow)
    found["zmq.asyncio DEALER/DEALER, acknowledged"] = lambda: zmq_acknowledged(slow)
    if find_spec("faster_fifo") is not None:  # the extra `bench`
        found["faster-fifo put, get_many"] = lambda: faster_fifo_queue(fast, batch=False)
        found["faster-fifo put_many, get_many"] = lambda: faster_fifo_queue(fast, batch=True)
    found["multiprocessing.Queue"] = lambda: multiprocessing_queue(fast)
    return found


def measure(effort: Effort) -> list[Figure]:
    each = contestants(effort)
    rounds = effort.rounds or ROUNDS
    title = f"One-way messages per second, 100 bytes, two processes, median of {rounds} rounds"
    unit = Unit("messages/s", higher_is_better=True)
    return [Figure("oneway", title, unit, NOTES, next(iter(each))).run(each, rounds)]
