"""SharedMemoryBroker is a taskiq broker like any other, and opens its queue when it is started."""

import asyncio
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from taskiq import BrokerMessage, TaskiqEvents, TaskiqMessage, TaskiqMiddleware
from taskiq.brokers.shared_broker import AsyncSharedBroker
from tests.broker.conftest import SMALL, Working, queue_of

from taskiq_supervise.broker import (
    BrokerNotStartedError,
    InvalidLabelError,
    QueueFullError,
    QueueNotStartedError,
    QueueTask,
    SharedMemoryBroker,
    wait_result,
)
from taskiq_supervise.ipc import Geometry, QueueError, Role, SegmentError


def message(task_id: str = "id", size: int = 3, **labels: Any) -> BrokerMessage:
    return BrokerMessage(task_id=task_id, task_name="t", message=b"x" * size, labels=labels)


def test_making_a_broker_opens_nothing() -> None:
    SharedMemoryBroker("anything")
    assert not list(Path(os.environ["TASKIQ_SUPERVISE_QUEUE_DIR"]).iterdir())


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0b"])
def test_a_name_that_is_no_name_is_refused_at_once(name: str) -> None:
    with pytest.raises(QueueError, match="queue name"):
        SharedMemoryBroker(name)


@pytest.mark.parametrize("number", [0, 256, "many"])
def test_a_number_of_deliveries_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="not a number from 1 to 255"):
        SharedMemoryBroker(max_deliveries=number)


async def test_the_directory_can_be_chosen(tmp_path: Path) -> None:
    broker = SharedMemoryBroker("here", directory=tmp_path / "queues", geometry=SMALL)
    async with broker:
        assert (tmp_path / "queues" / "here").is_dir()


async def test_capacity_is_rounded_up(broker: SharedMemoryBroker) -> None:
    broker = SharedMemoryBroker("roomy", capacity=300)
    await broker.startup()
    assert (await queue_of(broker)).stats().capacity == 512
    await broker.shutdown()


def test_a_larger_capacity_brings_blocks_for_its_results() -> None:
    default, large = Geometry(), Geometry.of_capacity(100_000)
    assert large.slots == 131_072
    assert large.blocks == tuple((size, count * 8) for size, count in default.blocks)
    assert Geometry.of_capacity(300).blocks == default.blocks


def test_capacity_and_geometry_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="either capacity or geometry"):
        SharedMemoryBroker("twice", capacity=300, geometry=Geometry())


async def test_kiq_before_startup_says_what_to_do(broker: SharedMemoryBroker) -> None:
    @broker.task
    async def nothing() -> None:
        return None

    with pytest.raises(BrokerNotStartedError, match=r"await broker\.startup"):
        await nothing.kiq()
    with pytest.raises(QueueNotStartedError, match=r"await broker\.startup"):
        await wait_result(broker, "x")


async def test_startup_and_shutdown_can_be_repeated(
    broker: SharedMemoryBroker, working: Working
) -> None:
    calls: list[str] = []
    broker.on_event(TaskiqEvents.CLIENT_STARTUP)(lambda _: calls.append("up"))
    broker.on_event(TaskiqEvents.CLIENT_SHUTDOWN)(lambda _: calls.append("down"))

    @broker.task
    async def nothing() -> int:
        return 5

    for _ in range(2):
        await broker.startup()
        async with working(broker):
            assert (await (await nothing.kiq()).wait_result(timeout=5)).return_value == 5
        await broker.shutdown()
        await broker.shutdown()
    assert calls == ["up", "down"] * 2


def test_a_broker_can_be_started_again_on_another_loop() -> None:
    broker = SharedMemoryBroker("loops", geometry=SMALL)

    async def properly() -> None:
        await broker.startup()
        await broker.kick(message())
        await broker.shutdown()

    asyncio.run(properly())
    asyncio.run(properly())

    async def carelessly() -> None:
        await broker.startup()
        await broker.kick(message())

    asyncio.run(carelessly())
    asyncio.run(broker.kick(message()))  # on a loop of its own, the first being closed
    asyncio.run(broker.shutdown())


async def test_another_loop_that_runs_at_the_same_time_is_refused(
    broker: SharedMemoryBroker,
) -> None:
    await broker.startup()
    with pytest.raises(BrokerNotStartedError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(broker.kick(message())))


async def test_messages_may_be_sent_until_the_last_event(broker: SharedMemoryBroker) -> None:
    @broker.on_event(TaskiqEvents.CLIENT_SHUTDOWN)
    async def farewell(_: object) -> None:
        await broker.kick(message("farewell"))

    await broker.startup()
    await broker.shutdown()
    await broker.startup()
    assert await broker.result_backend.is_result_ready("farewell") is False


async def test_a_start_that_fails_leaves_nothing_open(broker: SharedMemoryBroker) -> None:
    @broker.on_event(TaskiqEvents.CLIENT_STARTUP)
    async def fail(_: object) -> None:
        raise RuntimeError("no database")

    with pytest.raises(RuntimeError, match="no database"):
        await broker.startup()
    assert await broker.attached() is None


def test_a_broker_can_be_pickled() -> None:
    broker = SharedMemoryBroker("jar", geometry=SMALL, max_deliveries=7, kiq_timeout=2)
    copy = pickle.loads(pickle.dumps(broker))
    assert (copy.name, copy.geometry, copy.max_deliveries, copy.kiq_timeout) == (
        "jar",
        SMALL,
        7,
        2,
    )
    asyncio.run(send_once(copy))


async def send_once(broker: SharedMemoryBroker) -> None:
    await broker.startup()
    await broker.kick(message())
    await broker.shutdown()


async def test_a_forked_child_attaches_for_itself(broker: SharedMemoryBroker) -> None:
    await broker.startup()
    await broker.kick(message("parents"))
    pid = os.fork()
    if pid == 0:  # the parent's loop is not the child's to use
        status = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.run(broker.kick(message("childs")))
            status = 0
        finally:
            os._exit(status)
    assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
    assert await broker.result_backend.is_result_ready("childs") is False
    await broker.kick(message("parents again"))


async def test_a_full_queue_makes_kiq_wait_and_then_says_so(working: Working) -> None:
    small = Geometry(slots=64, participants=64, blocks=((1024, 64),))
    broker = SharedMemoryBroker("full", geometry=small, kiq_timeout=0.01)

    @broker.task
    async def nothing() -> None:
        return None

    async def fill() -> None:
        for _ in range(64 + 1):
            await nothing.kiq()

    await broker.startup()
    with pytest.raises(QueueFullError, match=r"the queue 'full' was full for 0\.01 s"):
        await fill()
    broker.kiq_timeout = None
    waiting = asyncio.create_task(nothing.kiq())
    async with working(broker):
        await (await waiting).wait_result(timeout=5)
    await broker.shutdown()


async def test_the_label_max_deliveries_has_to_be_a_number(broker: SharedMemoryBroker) -> None:
    @broker.task(max_deliveries="often")
    async def nothing() -> None:
        return None

    await broker.startup()
    with pytest.raises(InvalidLabelError, match="label max_deliveries is 'often'"):
        await nothing.kiq()
    await broker.kick(message(max_deliveries="5"))


async def test_a_damaged_queue_is_refused_at_startup(broker: SharedMemoryBroker) -> None:
    await broker.startup()
    await broker.shutdown()
    segment = broker.base_directory / "test" / "segment"
    segment.write_bytes(b"noise" + segment.read_bytes()[5:])
    with pytest.raises(SegmentError, match="not a queue segment"):
        await broker.startup()


def test_no_memory_for_the_queue_is_one_error_that_says_so() -> None:
    code = (
        "import asyncio, resource\n"
        "from taskiq_supervise.broker import SharedMemoryBroker\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "asyncio.run(SharedMemoryBroker('much').startup())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Traceback")
    assert done.stderr.count("Traceback") == 1
    assert "SegmentError: no room for a queue of" in lines[-1]


async def test_kickers_do_all_that_taskiqs_do(broker: SharedMemoryBroker, working: Working) -> None:
    sent: list[TaskiqMessage] = []

    class Watching(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            message.labels["seen"] = "yes"
            return message

        async def post_send(self, message: TaskiqMessage) -> None:
            sent.append(message)

    broker.with_middlewares(Watching())

    @broker.task(colour="red")
    async def double(x: int) -> int:
        return 2 * x

    async with working(broker):
        task = await double.kicker().with_labels(size=3).with_task_id("own").kiq(4)
        assert isinstance(task, QueueTask)
        assert task.task_id == "own"
        result = await task.wait_result(timeout=5)
        assert result.return_value == 8
        assert result.labels == {"colour": "red", "size": 3, "seen": "yes"}
        assert [one.task_id for one in sent] == ["own"]
        assert double.labels == {"colour": "red"}
        assert await double(3) == 6


async def test_a_shared_task_runs_here_and_is_waited_for_by_id(
    broker: SharedMemoryBroker, working: Working
) -> None:
    shared = AsyncSharedBroker()

    @shared.task(task_name="shared")
    async def square(x: int) -> int:
        return x * x

    shared.default_broker(broker)
    try:
        async with working(broker):
            task = await square.kiq(5)
            assert (await wait_result(broker, task.task_id, timeout=5)).return_value == 25
            task = await square.kicker().with_broker(broker).kiq(6)
            assert (await task.wait_result(check_interval=0.001, timeout=5)).return_value == 36
    finally:
        del shared.global_task_registry["shared"]


async def test_ids_come_from_the_generator_that_was_set(broker: SharedMemoryBroker) -> None:
    broker.with_id_generator(iter("abc").__next__)

    @broker.task
    async def nothing() -> None:
        return None

    await broker.startup()
    assert [(await nothing.kiq()).task_id for _ in range(3)] == ["a", "b", "c"]


async def test_a_worker_joins_the_queue_as_one(broker: SharedMemoryBroker) -> None:
    broker.is_worker_process = True
    broker.worker_slot = 2
    await broker.startup()
    queue = await queue_of(broker)
    me = next(one for one in queue.participants() if one.index == queue.participant)
    assert (me.role, me.pid, me.tag) == (Role.WORKER, os.getpid(), 3)


def test_importing_the_broker_starts_no_thread_and_opens_no_file() -> None:
    code = (
        "import os, threading; before = set(os.listdir('/proc/self/fd'))\n"
        "import taskiq_supervise.broker\n"
        "print(threading.active_count(), set(os.listdir('/proc/self/fd')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 set()\n"
