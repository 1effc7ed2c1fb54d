"""A broker may be started as often as one likes and on any loop; a shutdown undoes one start."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from taskiq import (
    BrokerMessage,
    TaskiqEvents,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
    TaskiqResultTimeoutError,
)
from tests.broker.conftest import SMALL, Working, queue_of, until
from tests.conftest import descriptors

from taskiq_supervise.broker import (
    BrokerNotStartedError,
    SharedMemoryBroker,
    wait_result,
)
from taskiq_supervise.broker.delivery import current_delivery
from taskiq_supervise.ipc import Role, TaskQueue


def message(task_id: str) -> BrokerMessage:
    return BrokerMessage(task_id=task_id, task_name="t", message=b"xyz", labels={})


def roles(queue: TaskQueue) -> list[Role]:
    return sorted(Role(one.role) for one in queue.participants())


class Calls(list[str]):
    """What taskiq's events of a broker were, in order."""

    def __init__(self, broker: SharedMemoryBroker) -> None:
        super().__init__()
        for event in TaskiqEvents:
            broker.on_event(event)(partial(self._note, event))

    def _note(self, event: TaskiqEvents, _: object) -> None:
        self.append(event.name)


@pytest.fixture
def worker(broker: SharedMemoryBroker) -> SharedMemoryBroker:
    """The broker, as a worker has it."""
    broker.is_worker_process = True
    return broker


# --- in one process ------------------------------------------------------------------------------


async def test_each_shutdown_undoes_one_startup(broker: SharedMemoryBroker) -> None:
    calls = Calls(broker)
    await broker.startup()
    await broker.startup()
    await broker.shutdown()
    await broker.kick(message("still started"))
    assert calls == ["CLIENT_STARTUP"]
    await broker.shutdown()
    with pytest.raises(BrokerNotStartedError):
        await broker.kick(message("not any more"))
    await broker.shutdown()
    assert calls == ["CLIENT_STARTUP", "CLIENT_SHUTDOWN"]


async def test_another_loop_starts_and_stops_the_broker_for_itself(
    broker: SharedMemoryBroker,
) -> None:
    calls = Calls(broker)

    async def elsewhere() -> None:
        async with broker:
            await broker.kick(message("elsewhere"))
            assert len(list((await queue_of(broker)).participants())) == 2
        with pytest.raises(BrokerNotStartedError, match=r"await broker\.startup\(\) on this one"):
            await broker.kick(message("after"))
        await broker.shutdown()  # one too many: not that of the other loop

    await broker.startup()
    await asyncio.to_thread(asyncio.run, elsewhere())
    assert calls == ["CLIENT_STARTUP"]
    assert await broker.result_backend.is_result_ready("elsewhere") is False
    assert len(list((await queue_of(broker)).participants())) == 1


def test_many_threads_may_start_it_at_once() -> None:
    broker = SharedMemoryBroker("test", geometry=SMALL)
    calls = Calls(broker)
    together = threading.Barrier(8)

    async def use(number: int) -> None:
        together.wait()
        async with broker:
            await broker.kick(message(str(number)))
            together.wait()  # all have started it before the first one stops

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: asyncio.run(use(number)), range(8)))
    assert calls == ["CLIENT_STARTUP", "CLIENT_SHUTDOWN"]


def test_a_startup_whose_loop_is_closed_does_not_count_as_the_first() -> None:
    broker = SharedMemoryBroker("test", geometry=SMALL)
    calls = Calls(broker)
    asyncio.run(broker.startup())
    asyncio.run(broker.startup())  # what the events opened on the first loop is of no use here
    assert calls == ["CLIENT_STARTUP"] * 2
    asyncio.run(broker.shutdown())
    asyncio.run(broker.shutdown())
    assert calls == ["CLIENT_STARTUP"] * 2 + ["CLIENT_SHUTDOWN"]


def test_a_loop_per_call_costs_no_descriptors() -> None:
    broker = SharedMemoryBroker("test", geometry=SMALL)
    # Others in the queue: there are doorbells to watch.
    others = [TaskQueue.open("test", geometry=SMALL) for _ in range(3)]

    def open_after(cycles: int) -> int:
        for number in range(cycles):
            asyncio.run(broker.kick(message(f"{cycles}-{number}")))
        return len(descriptors())

    asyncio.run(broker.startup())
    begin = open_after(1)
    assert open_after(50) == begin
    asyncio.run(broker.shutdown())
    for other in others:
        other.close()


async def test_a_forked_child_starts_and_stops_it_for_itself(broker: SharedMemoryBroker) -> None:
    calls = Calls(broker)
    await broker.startup()

    async def child() -> None:
        async with broker:
            await broker.kick(message("childs"))
        assert calls == ["CLIENT_STARTUP"] * 2 + ["CLIENT_SHUTDOWN"]
        with pytest.raises(BrokerNotStartedError):
            await broker.kick(message("after"))

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.run(child())
            status = 0
        finally:
            os._exit(status)
    assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
    assert await broker.result_backend.is_result_ready("childs") is False
    assert calls == ["CLIENT_STARTUP"]
    assert len(list((await queue_of(broker)).participants())) == 1


# --- in the tasks of a worker --------------------------------------------------------------------


async def test_a_task_may_use_the_broker_as_a_program_does(
    worker: SharedMemoryBroker, working: Working
) -> None:
    calls = Calls(worker)

    @worker.task
    async def double(x: int) -> int:
        return 2 * x

    @worker.task
    async def in_a_block(x: int) -> int:
        async with worker:
            return (await (await double.kiq(x)).wait_result(timeout=5)).return_value

    async with working(worker):
        for x in range(3):
            result = await (await in_a_block.kiq(x)).wait_result(timeout=5)
            assert result.return_value == 2 * x
        assert (await (await double.kiq(5)).wait_result(timeout=5)).return_value == 10
        assert calls == ["WORKER_STARTUP"]
        assert roles(await queue_of(worker)) == [Role.WORKER]


async def test_a_sync_task_may_use_it_on_a_loop_of_its_own(
    worker: SharedMemoryBroker, working: Working
) -> None:
    calls = Calls(worker)
    seen: list[list[Role]] = []

    @worker.task
    async def double(x: int) -> int:
        return 2 * x

    async def use(x: int) -> Any:
        async with worker:
            seen.append(roles(await queue_of(worker)))
            return (await (await double.kiq(x)).wait_result(timeout=5)).return_value

    @worker.task
    def on_its_own_loop(x: int) -> Any:
        return asyncio.run(use(x))

    async with working(worker):
        for x in range(3):
            result = await (await on_its_own_loop.kiq(x)).wait_result(timeout=5)
            assert result.return_value == 2 * x
        assert (await (await double.kiq(5)).wait_result(timeout=5)).return_value == 10
        assert seen == [sorted([Role.CLIENT, Role.WORKER])] * 3  # it takes no messages there
        assert roles(await queue_of(worker)) == [Role.WORKER]
        assert calls == ["WORKER_STARTUP"]


async def test_that_a_sync_task_waits_on_its_own_loop_is_told_on_the_workers(
    worker: SharedMemoryBroker,
) -> None:
    threads: list[int] = []
    await worker.startup()
    attachment = await worker.attached()
    assert attachment is not None
    await worker.kick(message("waits"))
    delivery = attachment.take(
        await attachment.claim(), keep=True, on_change=lambda: threads.append(threading.get_ident())
    )

    async def wait_in_vain() -> None:
        async with worker:
            await worker.kick(message("waited for"))
            with pytest.raises(TaskiqResultTimeoutError):
                await wait_result(worker, "waited for", timeout=0.01)

    token = current_delivery.set(delivery)
    await asyncio.to_thread(asyncio.run, wait_in_vain())
    current_delivery.reset(token)
    await until(lambda: len(threads) == 2)
    assert threads == [threading.get_ident()] * 2
    assert delivery.waiting == 0


async def test_a_task_cannot_shut_its_worker_down(
    worker: SharedMemoryBroker, working: Working
) -> None:
    calls = Calls(worker)

    @worker.task
    async def shut_down() -> str:
        await worker.shutdown()
        return "done"

    async with working(worker):
        for _ in range(2):
            result = await (await shut_down.kiq()).wait_result(timeout=5)
            assert result.return_value == "done"
        assert calls == ["WORKER_STARTUP"]


async def test_what_tasks_started_and_forgot_does_not_keep_the_worker_from_shutting_down(
    worker: SharedMemoryBroker, working: Working
) -> None:
    calls = Calls(worker)

    @worker.task
    async def forget() -> None:
        await worker.startup()

    @worker.task
    def forget_elsewhere() -> None:
        asyncio.run(worker.startup())

    async with working(worker):
        for task in (forget, forget_elsewhere):
            assert not (await (await task.kiq()).wait_result(timeout=5)).is_err
    await worker.shutdown()
    assert calls == ["WORKER_STARTUP", "WORKER_SHUTDOWN"]
    assert await worker.attached() is None
    with TaskQueue.open("test", geometry=SMALL) as queue:
        assert len(list(queue.participants())) == 1


class Refusing(TaskiqMiddleware):
    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        if "refused" in message.labels:
            raise ConnectionError("no server for statistics")


async def test_what_runs_when_the_broker_is_shut_down_ends_with_its_result(
    worker: SharedMemoryBroker, working: Working
) -> None:
    worker.with_middlewares(Refusing())
    go_on = asyncio.Event()

    @worker.task
    async def value() -> str:
        await go_on.wait()
        return "a value"

    client = SharedMemoryBroker("test", geometry=SMALL)
    await client.startup()
    async with working(worker):
        attachment = await worker.attached()
        assert attachment is not None
        well = await value.kiq()
        badly = await value.kicker().with_labels(refused=True).kiq()
        held = attachment.held
        await until(lambda: len(held) == 2 and all(delivery.started for delivery in held))
        await worker.shutdown()
        assert await worker.attached() is None
        go_on.set()
        assert (await wait_result(client, well.task_id, timeout=5)).return_value == "a value"
        error = (await wait_result(client, badly.task_id, timeout=5)).error
        assert isinstance(error, ConnectionError)
    await attachment.close()
    await client.shutdown()
