"""Every task ends for the one who waits: with its value, its error, or an error that says why."""

import asyncio
import sys
import threading
import time
from typing import Any

import pytest
from taskiq import (
    Context,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
    TaskiqResultTimeoutError,
)
from taskiq.depends.progress_tracker import ProgressTracker, TaskProgress, TaskState
from taskiq.exceptions import ResultGetError
from taskiq.kicker import AsyncKicker
from taskiq.message import BrokerMessage
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers import PickleSerializer
from taskiq.task import AsyncTaskiqTask
from tests.broker.conftest import SMALL, Working

from taskiq_supervise.broker import (
    DeadLetterError,
    ForeignResultError,
    ResultExpiredError,
    ResultNotReadyError,
    SharedMemoryBroker,
    SharedMemoryResultBackend,
    UnserializableResultError,
    UnsuitableBrokerError,
    wait_result,
)
from taskiq_supervise.ipc import Geometry


async def test_a_value_comes_back(broker: SharedMemoryBroker, working: Working) -> None:
    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working(broker):
        task = await add.kiq(1, 2)
        result = await task.wait_result(timeout=5)
        assert result.return_value == 3
        assert not result.is_err
        assert await task.is_ready()
        assert (await task.get_result()).return_value == 3


async def test_a_result_is_found_by_id_alone(broker: SharedMemoryBroker, working: Working) -> None:
    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    other = SharedMemoryBroker("test", geometry=SMALL)
    async with working(broker):
        task = await add.kicker().with_task_id("mine").kiq(3, 4)
        await other.startup()
        assert (await wait_result(other, "mine", timeout=5)).return_value == 7
        assert (await wait_result(other.result_backend, "mine")).return_value == 7
        plain = AsyncTaskiqTask("mine", backend_of(other))
        assert (await plain.wait_result(timeout=5)).return_value == 7
        assert task.task_id == "mine"
        await other.shutdown()


async def test_waiting_is_woken_and_not_polled(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task
    async def nothing() -> None:
        return None

    async with working(broker):
        await (await nothing.kiq()).wait_result(timeout=5)
        begin = time.perf_counter()
        for _ in range(20):
            # taskiq's own would sleep for the interval once.
            await (await nothing.kiq()).wait_result(check_interval=10, timeout=5)
        assert time.perf_counter() - begin < 1


async def test_a_wait_that_takes_too_long_ends(broker: SharedMemoryBroker) -> None:
    @broker.task
    async def never() -> None:
        return None

    await broker.startup()
    task = await never.kiq()
    with pytest.raises(TaskiqResultTimeoutError, match=r"0\.01"):
        await task.wait_result(timeout=0.01)
    assert not await task.is_ready()
    with pytest.raises(ResultNotReadyError, match="has not ended yet"):
        await task.get_result()


async def test_an_unknown_id_is_an_error_and_no_wait(broker: SharedMemoryBroker) -> None:
    await broker.startup()
    with pytest.raises(ResultExpiredError, match="no task nobody in the queue 'test'"):
        await wait_result(broker, "nobody")
    with pytest.raises(ResultExpiredError):
        await broker.result_backend.is_result_ready("nobody")
    with pytest.raises(ResultGetError):
        await broker.result_backend.get_result("nobody")


async def test_an_exception_comes_back(broker: SharedMemoryBroker, working: Working) -> None:
    @broker.task
    async def divide(a: int, b: int) -> float:
        return a / b

    async with working(broker):
        result = await (await divide.kiq(1, 0)).wait_result(timeout=5)
        assert result.is_err
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            result.raise_for_error()


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("on fire", threading.Lock())


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


@pytest.mark.parametrize("error", [HoldsALock, Unspeakable])
async def test_an_exception_that_cannot_be_serialized_ends_the_wait_too(
    broker: SharedMemoryBroker, working: Working, error: type[Exception]
) -> None:
    @broker.task
    async def fail() -> None:
        raise error

    async with working(broker):
        result = await (await fail.kiq()).wait_result(timeout=5)
        assert result.is_err
        assert type(result.error).__name__ in {error.__name__, "Exception"}


async def test_a_value_that_cannot_be_serialized_is_an_error(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task
    async def lock() -> Any:
        return threading.Lock()

    async with working(broker):
        result = await (await lock.kiq()).wait_result(timeout=5)
        assert isinstance(result.error, UnserializableResultError)
        assert "_thread.lock" in str(result.error)


async def test_a_megabyte_goes_there_and_back(broker: SharedMemoryBroker, working: Working) -> None:
    @broker.task
    async def reverse(content: bytes) -> dict[str, Any]:
        return {"content": content[::-1], "more": [b"\xff"]}

    content = bytes(range(256)) * 4096
    async with working(broker):
        result = await (await reverse.kiq(content)).wait_result(timeout=5)
        assert result.return_value == {"content": content[::-1], "more": [b"\xff"]}


async def test_an_error_of_any_size_outside_of_the_function_ends_the_wait_too(
    working: Working,
) -> None:
    class Verbose(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            raise ValueError("x" * 1_000_000)

    tiny = Geometry(slots=64, participants=64, blocks=((1024, 64),))
    broker = SharedMemoryBroker("test", geometry=tiny).with_middlewares(Verbose())

    @broker.task
    async def nothing() -> None:
        return None

    async with working(broker):
        result = await (await nothing.kiq()).wait_result(timeout=5)
        assert str(result.error) == "x" * 1_000_000
    await broker.shutdown()


WORKER = """
import asyncio, signal
from concurrent.futures import ThreadPoolExecutor
from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.worker.receiver import SupervisedReceiver

broker = SharedMemoryBroker("test")

@broker.task(task_name="echo")
async def echo(content: bytes) -> bytes:
    return content

async def work():
    finish = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, finish.set)
    broker.is_worker_process = True
    async with broker:
        with ThreadPoolExecutor(1) as pool:
            receiver = SupervisedReceiver(
                broker, executor=pool, max_async_tasks=100, run_startup=False
            )
            await receiver.listen(finish)

asyncio.run(work())
"""


async def test_more_large_results_than_fit_at_once_all_come_back() -> None:
    broker = SharedMemoryBroker("test")

    @broker.task(task_name="echo")
    async def echo(content: bytes) -> bytes:
        raise NotImplementedError("the worker has its own")

    async def call(number: int) -> bool:
        content = bytes([number]) * 3_000_000
        result = await (await echo.kiq(content)).wait_result(timeout=30)
        return bool(result.return_value == content)

    async with broker:
        worker = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER)
        assert all(await asyncio.gather(*(call(number) for number in range(20))))
        worker.terminate()
        assert await worker.wait() == 0


async def test_with_pickle_any_object_is_a_result(
    broker: SharedMemoryBroker, working: Working
) -> None:
    broker.with_serializer(PickleSerializer())

    @broker.task
    async def point(x: complex) -> Any:
        return {x: x * 2}

    async with working(broker):
        result = await (await point.kiq(1j)).wait_result(timeout=5)
        assert result.return_value == {1j: 2j}


async def test_an_unknown_task_ends_the_wait_with_its_reason(
    broker: SharedMemoryBroker, working: Working
) -> None:
    async with working(broker):
        kicker: AsyncKicker[[], None] = AsyncKicker("no:such", broker, {})
        task = await kicker.kiq()
        error = (await wait_result(broker, task.task_id, timeout=5)).error
        assert isinstance(error, DeadLetterError)
        assert "no worker knows such a task" in str(error)
        assert "no:such" in str(error)


async def test_an_unparsable_message_ends_the_wait_with_its_reason(
    broker: SharedMemoryBroker, working: Working
) -> None:
    async with working(broker):
        message = BrokerMessage(task_id="bad", task_name="x", message=b"\xff{", labels={})
        await broker.kick(message)
        error = (await wait_result(broker, "bad", timeout=5)).error
        assert isinstance(error, DeadLetterError)
        assert "cannot be parsed" in str(error)


async def test_a_retry_is_waited_for(broker: SharedMemoryBroker, working: Working) -> None:
    broker.with_middlewares(SimpleRetryMiddleware())
    runs = []

    @broker.task(retry_on_error=True, max_retries=5)
    async def flaky() -> int:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError("not yet")
        return len(runs)

    async with working(broker):
        assert (await (await flaky.kiq()).wait_result(timeout=5)).return_value == 3


async def test_a_requeued_task_is_waited_for(broker: SharedMemoryBroker, working: Working) -> None:
    @broker.task
    async def again(context: Context = TaskiqDepends()) -> str:
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()
        return "the second time"

    async with working(broker):
        assert (await (await again.kiq()).wait_result(timeout=5)).return_value == "the second time"


async def test_progress_is_seen_while_the_task_runs_and_gone_after(
    broker: SharedMemoryBroker, working: Working
) -> None:
    go_on = asyncio.Event()
    said = asyncio.Event()

    @broker.task
    async def work(progress: ProgressTracker[Any] = TaskiqDepends()) -> None:
        await progress.set_progress(TaskState.STARTED, {"percent": 50})
        said.set()
        await go_on.wait()

    async with working(broker):
        task = await work.kiq()
        assert await task.get_progress() is None or said.is_set()
        await said.wait()
        progress = await task.get_progress()
        assert progress is not None
        assert (progress.state, progress.meta) == ("STARTED", {"percent": 50})
        go_on.set()
        await task.wait_result(timeout=5)
        assert await task.get_progress() is None
        assert not list((broker.base_directory / "test" / "progress").iterdir())


async def test_progress_that_a_dead_worker_left_is_swept_by_the_next(
    broker: SharedMemoryBroker,
) -> None:
    @broker.task
    async def pending() -> None:
        return None

    await broker.startup()
    task = await pending.kiq()
    for task_id in (task.task_id, "finished long ago"):
        await broker.result_backend.set_progress(task_id, TaskProgress(state="x", meta=None))
    await broker.shutdown()
    broker.is_worker_process = True
    await broker.startup()
    assert await broker.result_backend.get_progress("finished long ago") is None
    assert await task.get_progress() is not None


async def test_a_result_for_a_task_of_nobody_is_refused(broker: SharedMemoryBroker) -> None:
    await broker.startup()
    result: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=1, execution_time=0)
    with pytest.raises(ForeignResultError, match="works with SharedMemoryBroker only"):
        await backend_of(broker).set_result("x", result)


async def test_with_another_broker_the_result_backend_says_that_it_is_of_no_use() -> None:
    other = InMemoryBroker().with_result_backend(SharedMemoryResultBackend())
    with pytest.raises(UnsuitableBrokerError, match="works with SharedMemoryBroker only"):
        await other.startup()
    other.executor.shutdown()


class Elsewhere(DummyResultBackend[Any]):
    """A result backend that is not ours."""

    def __init__(self) -> None:
        self.results: dict[str, TaskiqResult[Any]] = {}

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.results[task_id] = result

    async def is_result_ready(self, task_id: str) -> bool:
        return task_id in self.results

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        return self.results[task_id]


async def test_results_may_live_elsewhere(broker: SharedMemoryBroker, working: Working) -> None:
    broker.with_result_backend(Elsewhere())

    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working(broker):
        task = await add.kiq(1, 2)
        assert (await task.wait_result(check_interval=0.001, timeout=5)).return_value == 3
        with pytest.raises(ResultExpiredError):  # its slot is free again
            await wait_result(backend_of(broker), task.task_id)


async def test_a_dead_letter_ends_the_wait_for_a_result_elsewhere(
    broker: SharedMemoryBroker, working: Working
) -> None:
    broker.with_result_backend(Elsewhere())

    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working(broker):
        kicker = add.kicker()
        kicker.task_name = "no:such"
        task = await kicker.kiq(1, 2)
        result = await task.wait_result(check_interval=0.001, timeout=5)
        assert isinstance(result.error, DeadLetterError)


def backend_of(broker: SharedMemoryBroker) -> SharedMemoryResultBackend[Any]:
    backend: SharedMemoryResultBackend[Any] = SharedMemoryResultBackend()
    backend.bind(broker)
    return backend
