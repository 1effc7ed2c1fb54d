"""Large arguments and results live in shared memory, and stay right while they are used."""

import asyncio
import gc
import logging
import os
import resource
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from taskiq import BrokerMessage, Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq.receiver import Receiver
from tests.broker.conftest import SMALL, Working, queue_of, until

from taskiq_supervise.broker import (
    CloudpickleSerializer,
    MessageTooLargeError,
    QueueFullError,
    ResultRoomError,
    ResultTooLargeError,
    SharedMemoryBroker,
    delivery,
    results,
)
from taskiq_supervise.broker.delivery import current_delivery
from taskiq_supervise.broker.payload import LARGE
from taskiq_supervise.ipc import Geometry

COUNT = 1 << 20
"""Numbers of eight bytes, much more than the blocks of the queue hold."""


@pytest.fixture
async def pickling() -> AsyncIterator[SharedMemoryBroker]:
    blocks = (*SMALL.blocks, (2 * LARGE, 16))
    geometry = Geometry(slots=SMALL.slots, participants=SMALL.participants, blocks=blocks)
    broker = SharedMemoryBroker("test", geometry=geometry)
    broker.with_serializer(CloudpickleSerializer())
    yield broker
    await broker.shutdown()


def file_below(memory: Any, folder: Path) -> bool:
    """The memory is a mapped file of this queue."""
    address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, path = line.split(maxsplit=5)
        begin, end = (int(number, 16) for number in bounds.split("-"))
        if begin <= address < end:
            return path.startswith(str(folder))
    raise AssertionError("memory that is nowhere")


async def folder_of(broker: SharedMemoryBroker) -> Path:
    return (await queue_of(broker)).directory


async def test_an_array_arrives_in_shared_memory_and_so_does_the_result(
    pickling: SharedMemoryBroker, working: Working
) -> None:
    folders: list[Path] = []

    @pickling.task
    async def double(numbers: Any) -> Any:
        assert file_below(numbers, folders[0])
        return numbers * 2

    async with working(pickling):
        folders.append(await folder_of(pickling))
        sent = np.arange(COUNT)
        doubled = (await (await double.kiq(sent)).wait_result(timeout=10)).return_value
        np.testing.assert_array_equal(doubled, sent * 2)
        assert file_below(doubled, folders[0])


async def test_annotations_of_arrays_and_frames_cost_no_warning(
    pickling: SharedMemoryBroker, working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    @pickling.task
    async def total(numbers: np.ndarray, factor: int) -> np.ndarray:
        assert type(factor) is int
        return np.array([numbers.sum() * factor])

    @pickling.task
    async def columns(frame: pd.DataFrame, by: memoryview) -> pd.DataFrame:
        return frame[["b"]]

    two: Any = "2"
    frame = pd.DataFrame({"a": np.arange(COUNT), "b": np.arange(COUNT) * 0.5})
    async with working(pickling):
        task = await total.kiq(np.ones(COUNT), two)
        assert (await task.wait_result(timeout=10)).return_value == [2.0 * COUNT]
        selected = await (await columns.kiq(frame, memoryview(b"b"))).wait_result(timeout=10)
        pd.testing.assert_frame_equal(selected.return_value, frame[["b"]])
    assert not caplog.records


async def test_arguments_can_be_changed_in_place(
    pickling: SharedMemoryBroker, working: Working
) -> None:
    @pickling.task
    async def add_one(numbers: Any) -> Any:
        numbers += 1
        return numbers

    async with working(pickling):
        # In the pickle, in a block of the queue, in a file.
        for count in (3, LARGE // 8, COUNT):
            sent = np.zeros(count)
            for _ in range(3):
                arrived = (await (await add_one.kiq(sent)).wait_result(timeout=10)).return_value
                assert arrived.min() == arrived.max() == 1
                arrived += 1
            assert sent.max() == 0


async def test_a_task_may_return_its_own_argument(
    pickling: SharedMemoryBroker, working: Working
) -> None:
    """The file of the arguments is used for others as soon as the task is done."""

    @pickling.task
    async def whole(numbers: Any) -> Any:
        return numbers

    @pickling.task
    async def part(numbers: Any) -> Any:
        return numbers[1:], numbers[::3], numbers.reshape(2, -1).T

    async with working(pickling, max_async_tasks=3):
        kept: list[tuple[int, Any, Any]] = []
        for number in range(20):
            sent = np.full(COUNT // 4, number) + np.arange(COUNT // 4)
            tasks = await whole.kiq(sent), await part.kiq(sent)
            one, parts = [(await task.wait_result(timeout=10)).return_value for task in tasks]
            kept = [*kept[-5:], (number, one, parts)]
            for expected, array, (tail, third, turned) in kept:
                right = np.full(COUNT // 4, expected) + np.arange(COUNT // 4)
                np.testing.assert_array_equal(array, right)
                np.testing.assert_array_equal(tail, right[1:])
                np.testing.assert_array_equal(third, right[::3])
                np.testing.assert_array_equal(turned, right.reshape(2, -1).T)


async def test_what_a_task_keeps_of_its_arguments_stays_as_it_is(
    pickling: SharedMemoryBroker, working: Working
) -> None:
    kept: list[Any] = []

    @pickling.task
    async def keep(numbers: Any) -> None:
        kept.append(numbers[10:20])

    async with working(pickling):
        for number in range(10):
            await (await keep.kiq(np.full(COUNT // 4, number))).wait_result(timeout=10)
    assert [one.tolist() for one in kept] == [[number] * 10 for number in range(10)]
    kept.clear()  # taskiq keeps the function


async def test_a_retry_and_a_requeue_send_the_same_memory_again(
    pickling: SharedMemoryBroker, working: Working
) -> None:
    pickling.with_middlewares(SimpleRetryMiddleware())
    starts: list[int] = []

    @pickling.task(retry_on_error=True)
    async def total(numbers: Any, context: Context = TaskiqDepends()) -> float:
        starts.append(int(numbers[-1]))
        if len(starts) == 1:
            raise ValueError("once more")
        if len(starts) == 2:
            await context.requeue()
        return float(numbers.sum())

    sent = np.arange(COUNT)
    async with working(pickling):
        result = await (await total.kiq(sent)).wait_result(timeout=10)
        assert result.return_value == float(sent.sum())
    assert starts == [COUNT - 1] * 3


def alive(one: "weakref.ref[Any]") -> bool:
    return one() is not None


class Observed(np.ndarray):
    """An array that can be watched."""


@pytest.mark.parametrize("end", ["a value", "an error", "a retry"])
async def test_arguments_are_let_go_of_when_the_task_has_ended(
    pickling: SharedMemoryBroker, working: Working, end: str
) -> None:
    """Until then their file cannot be used again; a collection may be a long time coming."""
    seen: list[weakref.ref[Any]] = []

    def see(numbers: Any) -> None:
        held = current_delivery.get()
        assert held is not None
        seen.extend(map(weakref.ref, (numbers, *held.lease.buffers)))

    pickling.with_middlewares(SimpleRetryMiddleware())

    @pickling.task(retry_on_error=end == "a retry")
    async def look(numbers: Any, context: Context = TaskiqDepends()) -> float:
        see(numbers)
        if end == "an error" or (end == "a retry" and "_retries" not in context.message.labels):
            raise ValueError(f"not {numbers[0]}, in task {context.message.task_id}")
        return float(numbers.sum())

    @pickling.task
    def look_in_a_thread(numbers: Any) -> float:
        see(numbers)
        return float(numbers.sum())

    logging.disable()  # pytest keeps records, and they keep the traceback
    gc.disable()
    try:
        async with working(pickling):
            for task in (look, look_in_a_thread):
                sent = await task.kiq(np.ones(COUNT).view(Observed))
                await sent.wait_result(timeout=10)
                # The receiver and the thread have some last steps to do.
                await asyncio.wait_for(until(lambda: not any(alive(one) for one in seen)), 5)
                assert len(seen) == (4 if end == "a retry" and task is look else 2)
                seen.clear()
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


# --- bytes, without pickle -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [LARGE - 1, LARGE, 10_000_000])
async def test_bytes_of_any_size_go_there_and_back(
    broker: SharedMemoryBroker, working: Working, size: int
) -> None:
    @broker.task
    async def reverse(content: bytes, more: dict[str, Any]) -> dict[str, Any]:
        return {"content": content[::-1], "more": more}

    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    more = {"key": [content[:10], bytearray(content)]}
    async with working(broker):
        result = await (await reverse.kiq(content, more)).wait_result(timeout=10)
        assert result.return_value == {"content": content[::-1], "more": more}


async def test_taskiqs_own_receiver_gets_the_buffers_too(pickling: SharedMemoryBroker) -> None:
    @pickling.task
    async def total(numbers: Any) -> Any:
        return numbers, numbers.sum()

    await pickling.startup()
    finish = asyncio.Event()
    listening = asyncio.create_task(Receiver(pickling, run_startup=False).listen(finish))
    sent = np.arange(COUNT)
    array, number = (await (await total.kiq(sent)).wait_result(timeout=10)).return_value
    np.testing.assert_array_equal(array, sent)
    assert number == sent.sum()
    finish.set()
    await listening


async def test_whoever_looks_at_the_message_sees_bytes(pickling: SharedMemoryBroker) -> None:
    seen: list[bytes] = []

    class Looking(SharedMemoryBroker):
        async def kick(self, message: BrokerMessage) -> None:
            seen.append(message.message)
            await super().kick(message)

    broker = Looking("test", geometry=SMALL)
    broker.with_serializer(CloudpickleSerializer())

    @broker.task
    async def nothing(numbers: Any) -> None:
        return None

    async with broker:
        await nothing.kiq(np.ones(COUNT))
    assert isinstance(seen[0], bytes)
    assert nothing.task_name.encode() in seen[0]


async def test_clients_see_the_results_of_others_and_of_any_process(
    pickling: SharedMemoryBroker, working: Working
) -> None:
    @pickling.task
    async def ones(count: int) -> Any:
        return np.ones(count)

    other = SharedMemoryBroker("test", geometry=SMALL)
    other.with_serializer(CloudpickleSerializer())
    async with working(pickling):
        task = await ones.kiq(COUNT)
        first = (await task.wait_result(timeout=10)).return_value
        async with other:
            second = (await other.result_backend.get_result(task.task_id)).return_value
        # The queue is closed there; what was got from it stays.
        np.testing.assert_array_equal(first, second)
        assert first.sum() == COUNT


# --- no room -------------------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may be larger than 8 MB, as if a file system were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_arguments_that_find_no_room_are_an_error_that_says_where(
    broker: SharedMemoryBroker, working: Working, small_files: None
) -> None:
    @broker.task
    async def size(content: bytes) -> int:
        return len(content)

    async with working(broker):
        with pytest.raises(QueueFullError, match=r"was full for 0\.01 s: no room for a payload"):
            await size.kicker().with_labels(kiq_timeout=0.01).kiq(bytes(9_000_000))
        result = await (await size.kiq(bytes(7_000_000))).wait_result(timeout=10)
        assert result.return_value == 7_000_000


async def test_a_result_that_finds_no_room_is_an_error(
    broker: SharedMemoryBroker,
    working: Working,
    small_files: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (delivery, results):
        monkeypatch.setattr(module, "ROOM_PATIENCE", 0.01)

    @broker.task
    async def much(size: int) -> bytes:
        return bytes(size)

    async with working(broker):
        task = await much.kiq(9_000_000)
        error = (await task.wait_result(timeout=10)).error
        assert isinstance(error, ResultRoomError)
        assert (error.task_id, error.queue, error.timeout) == (task.task_id, "test", 0.01)
        assert error.size > 9_000_000
        assert "no room in the queue 'test'" in str(error)
        result = await (await much.kiq(7_000_000)).wait_result(timeout=10)
        assert result.return_value == bytes(7_000_000)


class SmallFileSystem:
    f_frsize = 4096
    f_blocks = 1000


async def test_what_the_file_system_could_not_hold_is_refused_at_once(
    broker: SharedMemoryBroker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    @broker.task
    async def much(size: int, content: bytes = b"") -> bytes:
        return bytes(size)

    async with working(broker):
        monkeypatch.setattr(os, "statvfs", lambda _: SmallFileSystem)
        with pytest.raises(
            MessageTooLargeError, match=r"\(5000\d\d\d bytes\) .* has 4096000 bytes"
        ):
            await much.kiq(1, bytes(5_000_000))
        error = (await (await much.kiq(5_000_000)).wait_result(timeout=10)).error
        assert isinstance(error, ResultTooLargeError)
        assert "does not fit" in str(error)
        result = await (await much.kiq(3_000_000)).wait_result(timeout=10)
        assert result.return_value == bytes(3_000_000)
