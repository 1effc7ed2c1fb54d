"""Messages per second in one direction: 100 bytes each, one producer, one consumer, two processes.

The clock starts with the producer's first message and stops when the consumer has the last one and
has acknowledged it, where there is such a thing. Every contestant blocks or waits when its queue is
full; each queue has the size that its documentation shows, ours its default.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import zmq
import zmq.asyncio

from benchmarks.figure import Effort, Figure, Once, Unit
from benchmarks.ipc.processes import Side, folder, fork, on_uvloop, together
from taskiq_supervise.ipc import AsyncTaskQueue, Role, TaskQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from multiprocessing.synchronize import Barrier

    from zmq.asyncio import Socket

PAYLOAD = b"x" * 100
BATCH = 100
WINDOW = 1_000
ROUNDS = 7
FAST, SLOW = 100_000, 20_000
"""Messages per round, for about half a second each."""

NOTES = (
    "a payload is a `bytes` of 100; ours carries a task id of 32 characters too, as taskiq's",
    "ours, on uvloop: `await put()` of each; `await claim()`, `start()`, `finish()` of each",
    f"ours, batches: `put_many()` of {BATCH}; `listen(batch={BATCH})`, `finish_many()`",
    "zmq.asyncio, on uvloop: `await send()`, `await recv()`; ipc://, default high-water mark",
    f"zmq.asyncio, acknowledged: an answer to each message, at most {WINDOW:,} not answered",
    "faster-fifo: `Queue(1000 * 1000)` as in its README; no event loop, no acknowledgement",
    f"faster-fifo, many: `put_many()` of {BATCH}, `get_many()` of at most {BATCH}",
    "multiprocessing.Queue: `put()`, `get()`; no event loop, no acknowledgement",
)


Messages = Callable[[int], None]
"""Sends, or takes, so many."""
AwaitMessages = Callable[[int], Awaitable[None]]
End = Callable[[], AbstractAsyncContextManager[AwaitMessages]]
"""One end of a queue; entered in the process of its side."""


def rate(count: int, send: Side, take: Side) -> list[float]:
    """The sides return when they began and ended; CLOCK_MONOTONIC is the same in all processes."""
    times = together(send, take)
    (began, _), (_, ended) = cast("list[tuple[float, float]]", times)
    return [count / (ended - began)]


def warm_up(count: int) -> int:
    return count // 10 + 1


def on_loops(count: int, sender: End, taker: End) -> list[float]:
    """Both ends on an event loop of their own."""

    def side(end: End) -> Side:
        async def run(barrier: Barrier) -> tuple[float, float]:
            async with end() as messages:
                barrier.wait()
                await messages(warm_up(count))
                barrier.wait()
                began = time.perf_counter()
                await messages(count)
                ended = time.perf_counter()
                barrier.wait()
            return began, ended

        return on_uvloop(run)

    return rate(count, side(sender), side(taker))


def blocking(count: int, send: Messages, take: Messages) -> list[float]:
    """For queues that know no event loop."""

    def side(messages: Messages) -> Side:
        def run(barrier: Barrier) -> tuple[float, float]:
            barrier.wait()
            messages(warm_up(count))
            barrier.wait()
            began = time.perf_counter()
            messages(count)
            return began, time.perf_counter()

        return run

    return rate(count, side(send), side(take))


# ---- ours ----


async def put_each(queue: AsyncTaskQueue, ids: list[str]) -> None:
    for task_id in ids:
        await queue.put(task_id, PAYLOAD)


async def take_each(queue: AsyncTaskQueue, count: int) -> None:
    for _ in range(count):
        lease = await queue.claim()
        lease.start()
        lease.finish(keep=False)


async def put_batches(queue: AsyncTaskQueue, ids: list[str]) -> None:
    messages = [(task_id, PAYLOAD) for task_id in ids]
    for at in range(0, len(messages), BATCH):
        await queue.put_many(messages[at : at + BATCH])


async def take_batches(queue: AsyncTaskQueue, count: int) -> None:
    async for leases in queue.listen(batch=BATCH):
        queue.queue.finish_many(leases)
        count -= len(leases)
        if count <= 0:
            return


def ours(
    count: int,
    put: Callable[[AsyncTaskQueue, list[str]], Awaitable[None]],
    take: Callable[[AsyncTaskQueue, int], Awaitable[None]],
) -> list[float]:
    with folder() as directory:

        @asynccontextmanager
        async def opened(role: Role) -> AsyncIterator[AsyncTaskQueue]:
            queue = AsyncTaskQueue(TaskQueue.open("oneway", directory, role=role))
            await queue.start()
            yield queue
            await queue.close()

        @asynccontextmanager
        async def sender() -> AsyncIterator[AwaitMessages]:
            ids = [f"{number:032x}" for number in range(count)]
            async with opened(Role.CLIENT) as queue:
                yield lambda messages: put(queue, ids[:messages])

        @asynccontextmanager
        async def taker() -> AsyncIterator[AwaitMessages]:
            async with opened(Role.WORKER) as queue:
                yield partial(take, queue)

        return on_loops(count, sender, taker)


# ---- zmq.asyncio ----


async def zmq_send(socket: Socket, count: int) -> None:
    for _ in range(count):
        await socket.send(PAYLOAD)


async def zmq_receive(socket: Socket, count: int) -> None:
    for _ in range(count):
        await socket.recv()


async def zmq_send_and_hear(socket: Socket, count: int) -> None:
    room = asyncio.Semaphore(WINDOW)

    async def answers() -> None:
        for _ in range(count):
            await socket.recv()
            room.release()

    answered = asyncio.ensure_future(answers())
    for _ in range(count):
        await room.acquire()
        await socket.send(PAYLOAD)
    await answered


async def zmq_receive_and_answer(socket: Socket, count: int) -> None:
    for _ in range(count):
        await socket.recv()
        await socket.send(b"")


def through_zmq(
    count: int,
    kinds: tuple[int, int],
    send: Callable[[Socket, int], Awaitable[None]],
    take: Callable[[Socket, int], Awaitable[None]],
) -> list[float]:
    with folder() as directory:
        address = f"ipc://{directory}/socket"

        @asynccontextmanager
        async def sender() -> AsyncIterator[AwaitMessages]:
            with zmq.asyncio.Context() as context, context.socket(kinds[0]) as socket:
                socket.bind(address)
                yield partial(send, socket)

        @asynccontextmanager
        async def taker() -> AsyncIterator[AwaitMessages]:
            with zmq.asyncio.Context() as context, context.socket(kinds[1]) as socket:
                socket.connect(address)
                yield partial(take, socket)

        return on_loops(count, sender, taker)


def zmq_push(count: int) -> list[float]:
    return through_zmq(count, (zmq.PUSH, zmq.PULL), zmq_send, zmq_receive)


def zmq_acknowledged(count: int) -> list[float]:
    kinds = (zmq.DEALER, zmq.DEALER)
    return through_zmq(count, kinds, zmq_send_and_hear, zmq_receive_and_answer)


# ---- queues without an event loop ----


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
