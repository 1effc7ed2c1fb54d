"""How messages are taken and run: never more than there is room for, and every one ends."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

from taskiq import (
    Context,
    InMemoryBroker,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
)
from taskiq.receiver import Receiver
from tests.broker.conftest import Working, stats, until

from taskiq_supervise.broker import SharedMemoryBroker
from taskiq_supervise.broker.delivery import current_delivery
from taskiq_supervise.ipc import (
    Board,
    BoardWriter,
    OutcomeKind,
)
from taskiq_supervise.worker.receiver import SupervisedReceiver, supervised


async def test_dependencies_are_resolved_and_closed(
    broker: SharedMemoryBroker, working: Working
) -> None:
    steps = []

    async def session() -> AsyncIterator[str]:
        steps.append("open")
        yield "session"
        steps.append("close")

    @broker.task
    async def work(dep: Any = TaskiqDepends(session), context: Context = TaskiqDepends()) -> str:
        return f"{dep} of {context.message.task_name}"

    async with working(broker):
        result = await (await work.kiq()).wait_result(timeout=5)
        assert result.return_value == f"session of {work.task_name}"
    assert steps == ["open", "close"]


async def test_tasks_with_dependencies_of_any_kind_are_told_from_those_without(
    broker: SharedMemoryBroker, working: Working
) -> None:
    def number() -> int:
        return 7

    @broker.task
    async def plain(x: int) -> int:
        return x

    @broker.task
    async def uncached(dep: int = TaskiqDepends(number, use_cache=False)) -> int:
        return dep

    async with working(broker):
        assert (await (await plain.kiq(3)).wait_result(timeout=5)).return_value == 3
        assert (await (await uncached.kiq()).wait_result(timeout=5)).return_value == 7
    receiver = SupervisedReceiver(broker)
    assert set(receiver.dependency_graphs) == {uncached.task_name}


async def test_a_timeout_label_ends_the_task(broker: SharedMemoryBroker, working: Working) -> None:
    @broker.task(timeout=0.01)
    async def long() -> None:
        await asyncio.Event().wait()

    async with working(broker):
        result = await (await long.kiq()).wait_result(timeout=5)
        assert isinstance(result.error, TimeoutError)


async def test_arguments_are_parsed_by_their_annotations(
    broker: SharedMemoryBroker, working: Working
) -> None:
    @broker.task
    async def kind(x: int) -> str:
        return type(x).__name__

    seven: Any = "7"
    async with working(broker):
        assert (await (await kind.kiq(seven)).wait_result(timeout=5)).return_value == "int"
    async with working(broker, validate_params=False):
        assert (await (await kind.kiq(seven)).wait_result(timeout=5)).return_value == "str"


async def test_sync_tasks_run_in_threads_beside_each_other(
    broker: SharedMemoryBroker, working: Working
) -> None:
    together = threading.Barrier(3)

    @broker.task
    def meet() -> int:
        together.wait(5)
        return threading.get_ident()

    async with working(broker):
        tasks = [await meet.kiq() for _ in range(3)]
        idents = {(await task.wait_result(timeout=5)).return_value for task in tasks}
    assert len(idents) == 3
    assert threading.get_ident() not in idents


async def test_no_more_is_taken_than_there_is_room_to_run(
    broker: SharedMemoryBroker, working: Working
) -> None:
    running: list[int] = []
    most: list[int] = []
    go_on = asyncio.Event()

    @broker.task
    async def work() -> None:
        running.append(1)
        most.append(len(running))
        await go_on.wait()
        running.pop()

    async with working(broker, max_async_tasks=3):
        tasks = [await work.kiq() for _ in range(9)]
        await until(lambda: len(running) == 3)
        counted = await stats(broker)
        assert (counted.running, counted.leased, counted.ready) == (3, 0, 6)
        go_on.set()
        for task in tasks:
            await task.wait_result(timeout=5)
    assert max(most) == 3


async def test_listening_ends_after_so_many_tasks(broker: SharedMemoryBroker) -> None:
    @broker.task
    async def work() -> None:
        return None

    await broker.startup()
    for _ in range(5):
        await work.kiq()
    receiver = SupervisedReceiver(broker, run_startup=False, max_tasks_to_execute=2)
    await asyncio.wait_for(receiver.listen(asyncio.Event()), 5)
    assert (await stats(broker)).ready == 3


async def test_draining_finishes_what_runs_and_leaves_the_rest(
    broker: SharedMemoryBroker, working: Working
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @broker.task
    async def work(number: int) -> int:
        started.set()
        await go_on.wait()
        return number

    async with working(broker, max_async_tasks=1):
        first, second = await work.kiq(1), await work.kiq(2)
        await started.wait()
        asyncio.get_running_loop().call_soon(go_on.set)
    assert (await first.get_result()).return_value == 1
    assert not await second.is_ready()
    assert (await stats(broker)).ready == 1


async def test_what_was_taken_and_has_not_begun_goes_back_when_draining(
    broker: SharedMemoryBroker,
) -> None:
    waiting, go_on = asyncio.Event(), asyncio.Event()

    class Slow(TaskiqMiddleware):
        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            waiting.set()
            await go_on.wait()
            return message

    ran = []
    broker.with_middlewares(Slow())

    @broker.task
    async def work() -> None:
        ran.append(1)

    await broker.startup()
    finish = asyncio.Event()
    receiver = SupervisedReceiver(broker, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    await work.kiq()
    await waiting.wait()
    finish.set()
    await asyncio.sleep(0)
    go_on.set()
    await listening
    assert not ran
    assert (await stats(broker)).ready == 1


async def test_the_board_shows_what_runs_and_counts_what_ran(
    broker: SharedMemoryBroker, working: Working, tmp_path: Any
) -> None:
    board = Board.create(tmp_path / "board", 1, 10)
    go_on = asyncio.Event()

    @broker.task(task_name="shown")
    async def work(fail: bool) -> None:
        await go_on.wait()
        if fail:
            raise ValueError("no")

    async with working(broker) as receiver:
        writer: BoardWriter = board.writer(0)
        writer.reset(os.getpid(), 1)
        receiver.board = writer
        tasks = [await work.kiq(fail) for fail in (False, True, False)]
        await until(lambda: board.read(0).in_flight == 3)
        running = board.read(0).running
        assert {one.task_id for one in running} == {task.task_id for task in tasks}
        assert {(one.task_name, one.attempt) for one in running} == {("shown", 1)}
        go_on.set()
        for task in tasks:
            await task.wait_result(timeout=5)
        view = board.read(0)
        assert (view.in_flight, view.done + view.failed, view.failed) == (0, 3, 1)
    board.close()


async def test_a_task_that_was_taken_away_counts_where_it_went(
    broker: SharedMemoryBroker, working: Working
) -> None:
    runs: list[str] = []

    @broker.task
    async def robbed() -> str:
        runs.append("run")
        if len(runs) == 1:
            delivery = current_delivery.get()
            assert delivery is not None
            delivery.lease.release()
        return f"{len(runs)} runs"

    async with working(broker):
        assert (await (await robbed.kiq()).wait_result(timeout=5)).return_value == "2 runs"
        assert (await stats(broker)).done == 1


class Counting(Receiver):
    """Somebody's own receiver."""

    calls = 0

    async def callback(self, message: Any, raise_err: bool = False) -> None:
        Counting.calls += 1
        await super().callback(message, raise_err)


async def test_a_receiver_with_its_own_callback_keeps_it(broker: SharedMemoryBroker) -> None:
    @broker.task
    async def add(a: int, b: int) -> int:
        return a + b

    cls = supervised(Counting)
    assert issubclass(cls, Counting)
    await broker.startup()
    finish = asyncio.Event()
    receiver = cls(broker, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    assert (await (await add.kiq(1, 2)).wait_result(timeout=5)).return_value == 3
    finish.set()
    await listening
    assert Counting.calls == 1


async def test_other_brokers_are_run_by_taskiqs_way_and_seen_on_the_board(tmp_path: Any) -> None:
    board = Board.create(tmp_path / "board", 1, 10)
    writer = board.writer(0)
    writer.reset(os.getpid(), 1)
    broker = InMemoryBroker(await_inplace=True)
    broker.receiver = SupervisedReceiver(broker, executor=broker.executor)
    broker.receiver.board = writer
    seen: list[Any] = []

    @broker.task(task_name="elsewhere")
    async def work() -> int:
        seen.extend(one.task_name for one in board.read(0).running)
        return 4

    assert (await (await work.kiq()).wait_result()).return_value == 4
    assert seen == ["elsewhere"]
    assert board.read(0).done == 1
    broker.executor.shutdown()
    board.close()


async def test_many_messages_are_each_run_once(
    broker: SharedMemoryBroker, working: Working
) -> None:
    ran: list[int] = []

    @broker.task
    async def work(number: int) -> None:
        ran.append(number)

    async with working(broker):
        tasks = [await work.kiq(number) for number in range(200)]
        for task in tasks:
            await task.wait_result(timeout=5)
    assert sorted(ran) == list(range(200))
    attachment = await broker.attached()
    assert attachment is not None
    outcome = await attachment.queue.look(tasks[0].task_id)
    assert outcome is not None
    assert outcome.kind is OutcomeKind.RESULT
