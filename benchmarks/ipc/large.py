"""A numpy array of 100 MiB to a worker process and its sum back, once everything is warm.

Each contestant hands over the array in the fastest way that its documentation shows, and the worker
sums what it gets. None can be faster than copying it into memory that both map, and the sum.
"""

from __future__ import annotations

import inspect
import mmap
import pickle
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import zmq

from benchmarks.figure import Effort, Figure, Unit
from benchmarks.ipc.processes import folder, fork, on_uvloop, together
from taskiq_supervise.ipc import AsyncTaskQueue, Role, TaskQueue

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

MIB = 1 << 20
SIZE = 100 * MIB
ROUNDS = 5
COUNT = 6
WARM = 3
BASE = "ours, out-of-band buffers"
FLOOR = "copy into a shared mapping, sum"

NOTES = (
    f"{FLOOR}: one anonymous mapping, inherited; a byte through a pipe each way. No queue at all",
    "ours, on uvloop: pickle protocol 5, `await put(id, frame, buffers=[…])`",
    "ours, the worker: sums the array that lies in `Lease.buffers`, answers with `complete()`",
    "pyzmq: PAIR over ipc://, blocking, `send_multipart([frame, array], copy=False)`",
    "pyzmq, the worker: `recv_multipart(copy=False)`, the array made of the frame's buffer",
    "multiprocessing.Queue: `put(array)`, `get()`",
    "multiprocessing.Pipe: `send_bytes(array)`, `recv_bytes_into()` a buffer that is kept",
)

Array = npt.NDArray[np.float64]
Ask = Callable[[Array], float]


def time_each(ask: Ask, size: int, count: int) -> list[float]:
    array = np.arange(size // 8, dtype=np.float64)
    expected = float(array.sum())
    seconds = []
    for number in range(WARM + count):
        began = time.perf_counter()
        total = ask(array)
        if number >= WARM:
            seconds.append(time.perf_counter() - began)
        assert total == expected, (total, expected)
    return seconds


def floor(size: int, count: int) -> list[float]:
    shared = mmap.mmap(-1, size)
    mine, theirs = fork.Pipe()

    def client(barrier: Barrier) -> list[float]:
        room = np.frombuffer(shared, dtype=np.float64)

        def ask(array: Array) -> float:
            np.copyto(room, array)
            mine.send_bytes(b"\0")
            return unpacked(mine.recv_bytes())

        return time_each(ask, size, count)

    def worker(barrier: Barrier) -> None:
        room = np.frombuffer(shared, dtype=np.float64)
        for _ in range(WARM + count):
            theirs.recv_bytes()
            theirs.send_bytes(packed(room.sum()))

    try:
        return cast("list[float]", together(client, worker)[0])
    finally:
        mine.close()
        theirs.close()
        shared.close()


def ours(size: int, count: int) -> list[float]:
    with folder() as directory:

        async def client(barrier: Barrier) -> list[float]:
            queue: Any = AsyncTaskQueue(TaskQueue.open("arrays", directory))
            await queue.start()
            array = np.arange(size // 8, dtype=np.float64)
            expected = float(array.sum())
            seconds = []
            for number in range(WARM + count):
                began = time.perf_counter()
                buffers: list[pickle.PickleBuffer] = []
                frame = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
                views = [buffer.raw() for buffer in buffers]
                ticket = await queue.put(f"array {number}", frame, buffers=views)
                total = unpacked((await queue.wait(ticket)).data)
                if number >= WARM:
                    seconds.append(time.perf_counter() - began)
                assert total == expected, (total, expected)
            barrier.wait()
            await queue.close()
            return seconds

        async def worker(barrier: Barrier) -> None:
            queue: Any = AsyncTaskQueue(TaskQueue.open("arrays", directory, role=Role.WORKER))
            await queue.start()
            for _ in range(WARM + count):
                lease = await queue.claim()
                lease.start()
                array = pickle.loads(lease.payload, buffers=lease.buffers)
                total = packed(array.sum())
                del array
                lease.complete(total)
                del lease
            barrier.wait()
            await queue.close()

        return cast("list[float]", together(on_uvloop(client), on_uvloop(worker))[0])


def pyzmq(size: int, count: int) -> list[float]:
    with folder() as directory:
        address = f"ipc://{directory}/socket"

        def client(barrier: Barrier) -> list[float]:
            with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
                socket.bind(address)

                def ask(array: Array) -> float:
                    header = pickle.dumps((array.dtype.str, array.shape))
                    socket.send_multipart([header, array.data], copy=False)
                    return unpacked(socket.recv())

                return time_each(ask, size, count)

        def worker(barrier: Barrier) -> None:
            with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
                socket.connect(address)
                for _ in range(WARM + count):
                    header, content = socket.recv_multipart(copy=False)
                    dtype, shape = pickle.loads(header.buffer)
                    array = np.frombuffer(content.buffer, dtype=dtype).reshape(shape)
                    socket.send(packed(array.sum()))

        return cast("list[float]", together(client, worker)[0])


def multiprocessing_queue(size: int, count: int) -> list[float]:
    there: Any = fork.Queue()
    back: Any = fork.Queue()

    def client(barrier: Barrier) -> list[float]:
        def ask(array: Array) -> float:
            there.put(array)
            return float(back.get())

        return time_each(ask, size, count)

    def worker(barrier: Barrier) -> None:
        for _ in range(WARM + count):
            back.put(float(there.get().sum()))

    try:
        return cast("list[float]", together(client, worker)[0])
    finally:
        there.close()
        back.close()


def multiprocessing_pipe(size: int, count: int) -> list[float]:
    mine, theirs = fork.Pipe()

    def client(barrier: Barrier) -> list[float]:
        def ask(array: Array) -> float:
            mine.send_bytes(array.data.cast("B"))
            return unpacked(mine.recv_bytes())

        return time_each(ask, size, count)

    def worker(barrier: Barrier) -> None:
        room = np.empty(size // 8, dtype=np.float64)
        for _ in range(WARM + count):
            theirs.recv_bytes_into(room.data.cast("B"))
            theirs.send_bytes(packed(room.sum()))

    try:
        return cast("list[float]", together(client, worker)[0])
    finally:
        mine.close()
        theirs.close()


def packed(total: float) -> bytes:
    return struct.pack("d", total)


def unpacked(content: bytes) -> float:
    return cast("float", struct.unpack("d", content)[0])


def measure(effort: Effort) -> list[Figure]:
    size, count = effort.of(SIZE // MIB) * MIB, effort.of(COUNT)
    rounds = effort.rounds or ROUNDS
    contestants: dict[str, Callable[[int, int], list[float]]] = {
        FLOOR: floor,
        BASE: ours,
        "pyzmq, copy=False": pyzmq,
        "multiprocessing.Queue": multiprocessing_queue,
        "multiprocessing.Pipe": multiprocessing_pipe,
    }
    base = BASE
    if "buffers" not in inspect.signature(TaskQueue.put).parameters:
        del contestants[BASE]
        base = FLOOR
    title = (
        f"numpy array of {size // MIB} MiB to a worker and its sum back, "
        f"median of {rounds} rounds of {count}"
    )
    unit = Unit("ms", scale=1e3, digits=1, percentiles=(50, 99))
    figure = Figure("large", title, unit, NOTES, base)
    each = {name: partial(once, size, count) for name, once in contestants.items()}
    return [figure.run(each, rounds)]
